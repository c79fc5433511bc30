"""The project of the stream benchmarks: numbered payments, and what each account did in the last ten minutes."""

from __future__ import annotations

import json
from pathlib import Path

VIEW, DATASET, TOPIC = "account_activity", "payments", "payments"
PARTITIONS = 2
WATERMARK_S = 600
_SPECS = {
    f"datasets/{DATASET}.yaml": {
        "name": DATASET,
        "owner": "bench@example.com",
        "description": "Payments.",
        "source": {"kind": "stream"},
        "key": ["n"],
        "event_time": "at",
        "known_at": "at",
        "arrival_delay": "0s event_time",
        "columns": {
            "n": {"type": "int64"},
            "account": {"type": "string"},
            "at": {"type": "timestamp"},
            "cents": {"type": "int64", "min": 0},
        },
    },
    f"features/{VIEW}.yaml": {
        "name": VIEW,
        "owner": "bench@example.com",
        "description": "What an account did in the last ten minutes.",
        "entity": {"name": "account", "keys": {"account": "string"}},
        "datasets": [DATASET],
        "transform": "activity.py:build",
        "features": {name: {"type": "int64"} for name in ("payments_10m", "cents_10m", "newest")},
        "look_back": "10m event_time",
        "publish_every": "1s event_time",  # see `write_project`
        "freshness": "1m event_time",
        "stream": {
            "topic": TOPIC,
            "dataset": DATASET,
            "watermark": f"{WATERMARK_S}s event_time",
            "independent_keys": True,
        },
    },
}
_TRANSFORM = """
import ibis


def build(tables):
    rows = tables["payments"]
    made = rows.group_by(["account", "available_at"]).agg(
        payments=rows.count(), cents=rows.cents.sum(), newest=rows.n.max()
    )
    last = ibis.range_window(
        group_by="account",
        order_by="available_at",
        preceding=ibis.interval(minutes=10),
        following=ibis.interval(hours=0),
    )
    return made.select(
        "account",
        event_timestamp=made.available_at,
        payments_10m=made.payments.sum().over(last),
        cents_10m=made.cents.sum().over(last).cast("int64"),
        newest=made.newest.max().over(last),
    )
"""


def write_project(folder: Path, publish_every: str = "1s event_time") -> Path:
    """The project's `include`, written into a folder, its view published at these steps."""
    include = folder / "include"
    for name, spec in _SPECS.items():
        (include / name).parent.mkdir(parents=True, exist_ok=True)
        changes = {"publish_every": publish_every} if "publish_every" in spec else {}
        (include / name).write_text(json.dumps(spec | changes))
    (include / "transforms").mkdir()
    (include / "models").mkdir()
    (include / "transforms" / "activity.py").write_text(_TRANSFORM)
    return include


def make_topic(servers: str) -> None:
    """The stream's topic."""
    from confluent_kafka.admin import AdminClient
    from confluent_kafka.cimpl import NewTopic

    client = AdminClient({"bootstrap.servers": servers})  # kept by its name: with the client its answers would go
    client.create_topics([NewTopic(TOPIC, PARTITIONS)])[TOPIC].result(30)
