"""The sample's project with its datasets as streams: every view is fed by messages instead of builds."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pyarrow as pa
from ruamel.yaml import YAML

from pipelines.adapters.delta_lake import DeltaLake, connect
from pipelines.datasets.messages import Message
from pipelines.features.engine import Span
from pipelines.features.online_layout import stored_seconds
from pipelines.features.publishing import Pending
from pipelines.settings import PROJECT, Settings
from pipelines.spec.loading import load_dataset, load_view
from pipelines.wiring import datasets, features
from pipelines.wiring.stream_state import frontier_us
from tests import odd_days

WATERMARK = "2h event_time"
BY_VIEW = {
    # The dataset that streams, and whether a key's rows arise from its own rows alone.
    "carrier_punctuality": ("flights_landed", True),
    "congestion_at_origin": ("flights_departed", False),
    "plane": ("flights_landed", False),
    "route_punctuality": ("flights_landed", True),
    "weather_at_origin": ("weather", True),
}
STREAMED = sorted({dataset for dataset, _ in BY_VIEW.values()})


def write(folder: Path, views: dict[str, tuple[str, bool]] = BY_VIEW, **changes: Any) -> Path:
    """A copy of `include` with streams for these views, and without the others and the models. Returns it."""
    include = folder / "include"
    shutil.copytree(PROJECT / "include", include, ignore=shutil.ignore_patterns("__pycache__", "models*", "demo"))
    (include / "models").mkdir()
    for path in (include / "features").glob("*.yaml"):
        if path.stem not in views:
            path.unlink()
    turn(include, views, **changes)
    return include


def turn(include: Path, views: dict[str, tuple[str, bool]] = BY_VIEW, **changes: Any) -> None:
    """Make streams of these views, and of the datasets that their messages fill, in the specs of a project."""
    yaml = YAML(typ="safe")
    for view, (dataset, independent) in views.items():
        path = include / "features" / f"{view}.yaml"
        stream = {"topic": dataset, "dataset": dataset, "watermark": WATERMARK, "independent_keys": independent}
        path.write_text(json.dumps({**yaml.load(path.read_text()), "stream": stream, **changes}))
    for dataset in {dataset for dataset, _ in views.values()}:
        path = include / "datasets" / f"{dataset}.yaml"
        spec = {**yaml.load(path.read_text()), "source": {"kind": "stream"}}
        if dataset != "weather":
            spec.pop("checks")  # Great Expectations takes its time, batch by batch; one dataset shows that it is asked
        path.write_text(json.dumps(spec))


def messages(include: Path, dataset: str, seed: int = 3, partitions: int = 2) -> list[Message]:
    """The odd days' rows of a dataset as messages, each up to an hour late, in the order in which they come."""
    spec = load_dataset(include, dataset)
    draw = random.Random(f"{seed} {dataset}")
    rows = odd_days.dataset(spec, draw)
    known = rows.column("known_at").cast(pa.int64()).to_pylist()
    timed = [(told + draw.randrange(3_600) * 1_000_000, row) for told, row in zip(known, objects(rows), strict=True)]
    made, ends = [], [0] * partitions
    for time_us, row in sorted(timed, key=lambda pair: pair[0]):
        partition = draw.randrange(partitions)
        made.append(Message(json.dumps(row).encode(), time_us, f"{dataset}@test/{partition}", ends[partition]))
        ends[partition] += 1
    return made


def objects(rows: pa.Table) -> list[dict[str, Any]]:
    """Rows as a producer writes them: JSON's types, times as text."""
    plain = rows.drop_columns(["known_at", "day"]).to_pylist()
    return [{k: v.isoformat() if hasattr(v, "isoformat") else v for k, v in row.items()} for row in plain]


# --- what a stream must have made -----------------------------------------------------------------------------------


def latest(settings: Settings, view: str) -> list[dict[str, Any]]:
    """The view's rows in the lake: of those that share keys and time, the one created last."""
    spec = load_view(settings.include_dir, view)
    keys = ", ".join([*spec.entity.keys, "event_timestamp"])
    with connect() as connection:
        DeltaLake(settings.lake).bind(connection, "v", features.table_of(spec.feast_name(settings.include_dir)))
        rows = connection.execute(
            f"SELECT * EXCLUDE (created_timestamp) FROM v QUALIFY row_number() OVER (PARTITION BY {keys} "
            f"ORDER BY created_timestamp DESC) = 1 ORDER BY event_timestamp, {keys}"
        )
        return list(rows.fetch_arrow_table().to_pylist())


def rebuilt(settings: Settings, view: str) -> list[dict[str, Any]]:
    """The view from all that is in the lake, in one piece."""
    spec = load_view(settings.include_dir, view)
    assert spec.stream is not None
    newest = datasets.published_through(settings, spec.stream.dataset)
    assert newest is not None
    rows = features.compute(settings, spec, Span(None, frontier_us(spec, newest)), created_us=0)
    order = [("event_timestamp", "ascending"), *((key, "ascending") for key in spec.entity.keys)]
    return list(rows.sort_by(order).drop_columns(["created_timestamp"]).to_pylist())


def online(settings: Settings, view: str) -> dict[bytes, dict[str, tuple[bytes, int]]]:
    """What the online store has of a view: by key and feature, the value and its time."""
    version = load_view(settings.include_dir, view).feast_name(settings.include_dir)
    found: dict[bytes, dict[str, tuple[bytes, int]]] = {}
    with sqlite3.connect(settings.feast_dir / "online_store.db") as connection:
        query = f'SELECT entity_key, feature_name, value, event_ts FROM "slipway_{version}"'
        for key, name, value, stamp in connection.execute(query):
            found.setdefault(key, {})[name] = (value, stamp)
    return found


def expected_online(settings: Settings, view: str) -> dict[bytes, dict[str, tuple[bytes, int]]]:
    """What it must have, after a build of all that is in the lake."""
    spec = load_view(settings.include_dir, view)
    assert spec.stream is not None
    newest = datasets.published_through(settings, spec.stream.dataset)
    assert newest is not None
    until_us = frontier_us(spec, newest)
    due = Pending(spec, features.compute(settings, spec, Span(None, until_us), created_us=0)).take(until_us)
    values = zip(*due.messages(), strict=True)
    return {
        key: {name: (message, stored_seconds(event_us)) for name, message in zip(spec.features, of_key, strict=True)}
        for key, event_us, of_key in zip(due.keys, due.event_us, values, strict=True)
    }
