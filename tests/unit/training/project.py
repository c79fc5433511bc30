"""A small project on files: visits to shops, and whether the visitor bought. Real specs, datasets, views and log."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import sqlalchemy as sa

from pipelines.adapters import control_schema
from pipelines.adapters.control_db import control_db
from pipelines.collect.numbering import Numbered
from pipelines.collect.tables import to_tables
from pipelines.contracts.clocks import to_us
from pipelines.contracts.events import Assignment, EventId, FeatureRead, Label, Response
from pipelines.contracts.release import Release
from pipelines.settings import Settings

START = datetime(2024, 1, 1, tzinfo=UTC)
DAYS = 90
A_DAY = 40


def moment(day: float) -> int:
    """Microseconds of so many days after the start."""
    return to_us(START + timedelta(days=day))


AS_OF, LATER = moment(60), moment(85)
"""When the first release is trained, and when a challenger is tried."""

VISITS = """\
name: visits
owner: shop@example.com
description: Visits.
source: {kind: file, path: data/visits.parquet, format: parquet}
key: [visit]
event_time: at
known_at: at
arrival_delay: 0s event_time
columns:
  visit: {type: string}
  shop: {type: string}
  at: {type: timestamp}
  basket: {type: float64, nullable: true}
  minutes: {type: float64}
"""
SALES = """\
name: sales
owner: shop@example.com
description: What came of the visits; some are never told.
source: {kind: file, path: data/sales.parquet, format: parquet}
key: [visit]
event_time: told
known_at: told
arrival_delay: 0s event_time
columns:
  visit: {type: string}
  shop: {type: string}
  told: {type: timestamp}
  bought: {type: float64}
"""
SHOP = """\
name: shop
owner: shop@example.com
description: The share of buyers among the shop's visits of the last week.
entity: {name: shop, keys: {shop: string}}
datasets: [sales]
transform: shop.py:build
features:
  buyers: {type: float64}
look_back: 7d event_time
publish_every: 1h event_time
freshness: 1d event_time
"""
SHOP_PY = """\
import ibis


def build(tables):
    sales = tables["sales"]
    hours = sales.group_by(["shop", "available_at"]).agg(n=sales.count(), bought=sales.bought.sum())
    last = ibis.range_window(group_by="shop", order_by="available_at", preceding=ibis.interval(hours=167), following=0)
    return hours.select(
        "shop", event_timestamp=hours.available_at, buyers=hours.bought.sum().over(last) / hours.n.sum().over(last)
    )
"""
REQUESTS_PY = """\
def requests(tables):
    visits = tables["visits"]
    return visits.select("shop", "basket", "minutes", request_id=visits.visit, event_timestamp=visits.at)


def labels(tables):
    sales = tables["sales"]
    return sales.select(request_id=sales.visit, label=sales.bought, label_timestamp=sales.known_at)
"""
POST_PY = """\
import numpy as np


def apply(raw, inputs, params):
    return {"score": np.clip(raw, 0.0, 1.0), "offer": raw >= params["threshold"]}
"""
MODEL = """\
name: buys
owner: shop@example.com
description: Will the visitor buy?
task: binary
requests: {{datasets: [visits], transform: buys.py:requests}}
labels: {{datasets: [sales], transform: buys.py:labels, unlabelled: {unlabelled}, maturity: 1d event_time}}
inputs:
  shop: {{datatype: BYTES}}
  basket: {{datatype: FP64, required: false}}
{inputs}views:
  - {{view: shop, entity: {{shop: shop}}, features: [buyers]}}
input_features: [{features}]
postprocess: {{file: buys_post.py, params: {{threshold: 0.5}}}}
output: {{score: score, low: 0.0, high: 1.0, fields: {{score: FP64, offer: BOOL}}}}
slices: [shop]
training:
  trainer: {trainer}
  window: all
  split: {{validation: 10d event_time, test: 20d event_time, gap: 1d event_time}}
  trials: 2
  calibration: none
offline_gates:
  - {{metric: log_loss, max: {most}}}
  - {{metric: log_loss, against: champion, max_worse_rel: 0.05}}
rollout:
  start: auto
  max_wait: 3d event_time
  approvers: [approver]
  stages: [{{name: backtest, requests: 50}}, {{name: shadow, requests: 100}}]
  policy:
    schema: slipway-gate/1
    metrics: [{{name: logloss, kind: paired_loss, promote_margin_rel: 0.05}}]
"""


def make(folder: Path, seed: int = 3) -> Settings:
    """The project in `folder`, its datasets and view published up to the last day."""
    include = folder / "include"
    _write_data(include / "data", seed)
    for path, text in {
        "datasets/visits.yaml": VISITS,
        "datasets/sales.yaml": SALES,
        "features/shop.yaml": SHOP,
        "transforms/shop.py": SHOP_PY,
        "transforms/buys.py": REQUESTS_PY,
        "transforms/buys_post.py": POST_PY,
    }.items():
        (include / path).parent.mkdir(parents=True, exist_ok=True)
        (include / path).write_text(text)
    (include / "models").mkdir()
    settings = Settings(home=folder / "home", include_dir=include, clock="replay", mlflow_port=9)
    set_model(settings)
    publish(settings)
    return settings


def set_model(
    settings: Settings,
    *,
    trainer: str = "logistic",
    unlabelled: str = "drop",
    new_input: str = "",
    most: float = 0.69,
) -> None:
    """Write the model's spec. `new_input` adds a required number to its payload and features."""
    line = f"  {new_input}: {{datatype: FP64}}\n" if new_input else ""
    features = ", ".join(["basket", *([new_input] if new_input else [])])
    text = MODEL.format(trainer=trainer, unlabelled=unlabelled, inputs=line, features=features, most=most)
    (settings.include_dir / "models" / "buys.yaml").write_text(text)


def publish(settings: Settings) -> None:
    """Datasets and the view, as far as the files go."""
    from pipelines.wiring import datasets, features

    end = moment(DAYS + 2)
    for name in ("visits", "sales"):
        datasets.ingest(settings, name, end)
    features.publish(settings, features.build(settings, "shop", end))


def log_traffic(settings: Settings, release: Release, frame: pa.Table, *, with_features: bool, extra: str = "") -> None:
    """Write requests of `frame` (columns of a training set) into the inference log, answered by the champion.

    `with_features` logs the view's values as read, all 0.123; `extra` names a column that is sent besides.
    """
    from pipelines.adapters.delta_lake import DeltaLake

    events: list[Any] = []
    names = ["shop", "basket", *([extra] if extra else [])]
    pin = release.manifest.views[0]
    for row in frame.to_pylist():
        at = to_us(row["event_timestamp"])
        common = {"model": "buys", "request_id": row["request_id"], "wall_us": at}
        reads = [FeatureRead(pin.view, ["buyers"], [at], [[0.123]])] if with_features else []
        sent = {name: [row[name]] for name in names}
        events += [
            Assignment(
                id=EventId("gw0", 0, 1, len(events)), event_us=at, arm="champion", share_ppm=0, salt="", unit="u",
                mode="single", stage="live", rollout_id=None, route_version=1, champion=release.digest, inputs=sent,
                slices={"shop": row["shop"]}, **common,
            ),
            Response(
                id=EventId("gw0", 0, 1, len(events) + 1), event_us=at, arm="champion", release=release.digest,
                rollout_id=None, status="ok", served=True, raw=[0.5], score=[0.5], features=reads, **common,
            ),
            Label(
                id=EventId("gw0", 0, 1, len(events) + 2), value=row["label"],
                event_us=to_us(row["label_timestamp"]), **common,
            ),
        ]  # fmt: skip
    numbered = [Numbered(event, seq, None, False) for seq, event in enumerate(events)]
    for kind, table in to_tables(numbered, 0).items():
        DeltaLake(settings.lake).append(f"inference/{kind}", table, ["model"])


def _write_data(folder: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = DAYS * A_DAY
    at = np.sort(rng.uniform(0, DAYS * 86_400, count))
    shop = rng.choice(["north", "south", "west"], count)
    basket = rng.normal(0, 1, count)
    logit = 1.5 * basket + np.where(shop == "north", 0.8, -0.4)
    bought = (rng.random(count) < 1 / (1 + np.exp(-logit))).astype(float)
    lost = rng.random(count) < 0.03
    visit = np.array([f"v{index:05d}" for index in range(count)])
    told = at + rng.uniform(600, 36_000, count)
    folder.mkdir(parents=True)
    pq.write_table(
        pa.table(
            {
                "visit": visit,
                "shop": shop,
                "at": _times(at),
                "basket": pa.array(basket, mask=rng.random(count) < 0.02),
                "minutes": rng.uniform(1, 60, count),
            }
        ),
        folder / "visits.parquet",
    )
    kept = ~lost
    pq.write_table(
        pa.table({"visit": visit[kept], "shop": shop[kept], "told": _times(told[kept]), "bought": bought[kept]}),
        folder / "sales.parquet",
    )


def _times(seconds: np.ndarray) -> pa.Array:
    micros = to_us(START) + (seconds * 1_000_000).astype(np.int64)
    return pa.array(micros).cast(pa.timestamp("us", tz="UTC"))


def crown(settings: Settings, digest: str) -> None:
    """Make a release the champion, without a rollout."""
    with control_db(settings).write() as connection:
        connection.execute(sa.delete(control_schema.champion))
        row = {"model": "buys", "release": digest, "decision_id": "d"}
        connection.execute(sa.insert(control_schema.champion).values(**row))
