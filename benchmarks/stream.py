"""A stream from the producer to the online store: how long it takes, and what is left when its processes are killed.

    .venv/bin/python -m benchmarks.stream latency [--rate 1000] [--seconds 60]
    .venv/bin/python -m benchmarks.stream kills [--events 200000] [--rate 2000] [--every 20]

Real Kafka and Spark on this machine, each run with a home of its own. Events are numbered payments of 200 accounts;
10 % are up to 5 minutes late, 1 % later than the watermark of 10 minutes, 0.5 % broken. `latency`: a reader looks at
the online store all the time; an event counts from the moment it is given to the producer to the look at which its
account's newest number has reached it. `kills`: the stream's process and the broker are killed in turn (SIGKILL). Then
the dataset is made once more from the producer's own file alone, in another home, and computed by one build: the rows
of the dataset, of the view and of the online store have to be equal. Needs setup.py --spark.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sqlite3
import struct
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.provenance import RESULTS, provenance, record
from pipelines.adapters.delta_lake import DeltaLake
from pipelines.features.engine import Span
from pipelines.settings import Settings
from pipelines.spec.loading import load_view
from pipelines.wiring import datasets, features
from pipelines.wiring.stream_state import frontier_us
from tests.kafka_broker import Broker, broker
from tests.streamed_project import expected_online, latest, online

SEED = 11
ACCOUNTS = 200
VIEW, DATASET, TOPIC = "account_activity", "payments", "payments"
WATERMARK_S = 600
SPECS = {
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
        "publish_every": "1s event_time",
        "freshness": "1m event_time",
        "stream": {
            "topic": TOPIC,
            "dataset": DATASET,
            "watermark": f"{WATERMARK_S}s event_time",
            "independent_keys": True,
        },
    },
}
TRANSFORM = """
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


def project(folder: Path) -> Path:
    include = folder / "include"
    for name, spec in SPECS.items():
        (include / name).parent.mkdir(parents=True, exist_ok=True)
        (include / name).write_text(json.dumps(spec))
    (include / "transforms").mkdir()
    (include / "models").mkdir()
    (include / "transforms" / "activity.py").write_text(TRANSFORM)
    return include


class Producer(threading.Thread):
    """Sends events at a rate, each by the account's key, and keeps a file of what it has sent: value and timestamp."""

    def __init__(self, servers: str, file: Path, events: int, rate: float) -> None:
        super().__init__(daemon=True)
        self.servers, self.file, self.events, self.rate = servers, file, events, rate
        self.sent_at: dict[int, tuple[str, float]] = {}

    def run(self) -> None:
        from confluent_kafka import Producer as Client

        draw = random.Random(SEED)
        options = {"enable.idempotence": True, "linger.ms": 5, "log_level": 0}
        client = Client({"bootstrap.servers": self.servers, **options})
        begun = time.time()
        with self.file.open("w") as file:
            for n in range(self.events):
                time.sleep(max(0.0, begun + n / self.rate - time.time()))  # the rate
                now = time.time()
                late = draw.choices((0.0, draw.uniform(0, 300), draw.uniform(700, 900)), (0.89, 0.1, 0.01))[0]
                account = f"a{draw.randrange(ACCOUNTS)}"
                at = datetime.fromtimestamp(now - late, UTC).isoformat()
                value = json.dumps({"n": n, "account": account, "at": at, "cents": draw.randrange(10_000)})
                if draw.random() < 0.005:
                    value = value[:-9]
                elif late < WATERMARK_S:
                    self.sent_at[n] = (account, now)
                stamp = int(now * 1000)
                file.write(json.dumps([value, stamp]) + "\n")
                client.produce(TOPIC, value.encode(), account.encode(), timestamp=stamp)
                client.poll(0)
        left = client.flush(120)
        assert left == 0, f"{left} events were not acknowledged"


class Stream:
    """`slipway stream` with its JVM, as a process group; killed at the end of the block, however it ends."""

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def __init__(self, settings: Settings, log: Path) -> None:
        names = ("home", "include_dir", "kafka", "kafka_topic")
        self._environment = {**os.environ, **{f"SLIPWAY_{n.upper()}": str(getattr(settings, n)) for n in names}}
        self._log, self._beat = log, settings.run_dir / "stream.beat"
        self.start()

    def start(self) -> None:
        self._started = time.time()
        command = [sys.executable, "-m", "pipelines.cli.main", "stream", VIEW]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, env=self._environment, stdout=log, stderr=log, start_new_session=True
            )

    def wait(self) -> None:
        """Return when it takes messages."""
        while not self._beat.exists() or self._beat.stat().st_mtime < self._started:
            assert self._process.poll() is None, self._log.read_text()[-3000:]
            time.sleep(0.2)  # nothing tells when Spark is up

    def kill(self) -> None:
        with suppress(ProcessLookupError):  # it has ended already
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def make_topic(servers: str) -> None:
    from confluent_kafka.admin import AdminClient
    from confluent_kafka.cimpl import NewTopic

    client = AdminClient({"bootstrap.servers": servers})  # kept by its name: with the client its answers would go
    client.create_topics([NewTopic(TOPIC, 2)])[TOPIC].result(30)


def newest_online(settings: Settings) -> dict[str, int]:
    """The newest number of each account, as a reader of the online store finds it."""
    file = settings.feast_dir / "online_store.db"
    version = load_view(settings.include_dir, VIEW).feast_name(settings.include_dir)
    if not file.exists():
        return {}
    with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as connection:
        query = f"SELECT entity_key, value_text FROM \"slipway_{version}\" WHERE feature_name = 'newest'"
        try:
            rows = connection.execute(query).fetchall()
        except sqlite3.OperationalError:  # before the view's table is made
            return {}
    found = {}
    for key, text in rows:
        # The key ends with its one value: type, length, text.
        for length in range(1, 8):
            if key[-length - 4 : -length] == struct.pack("<I", length) and key[-length:].startswith(b"a"):
                found[key[-length:].decode()] = int(text)
    return found


def latency(rate: float, seconds: int) -> dict[str, Any]:
    folder = Path(tempfile.mkdtemp(prefix="slipway-stream-"))
    with broker(folder / "kafka") as kafka:
        make_topic(kafka.servers)
        settings = Settings(home=folder / "home", include_dir=project(folder), kafka=kafka.servers)
        with Stream(settings, folder / "stream.log") as stream:
            # Spark and the first batches warm up on a few events of their own; they are not counted.
            warm = 20
            producer = Producer(kafka.servers, folder / "produced.jsonl", int(rate * (seconds + warm)), rate)
            stream.wait()
            producer.start()
            waiting: dict[str, list[tuple[int, float]]] = {}
            taken, took = 0, []
            ended = None
            while ended is None or (any(waiting.values()) and time.time() < ended + 60):
                if not producer.is_alive() and ended is None:
                    ended = time.time()
                newest, seen = newest_online(settings), time.time()
                events = list(producer.sent_at.copy().items())  # the producer goes on adding
                for n, (account, sent) in events[taken:]:
                    waiting.setdefault(account, []).append((n, sent))
                taken = len(events)
                for account, listed in waiting.items():
                    reached = newest.get(account, -1)
                    took += [(n, seen - sent) for n, sent in listed if n <= reached]
                    waiting[account] = [one for one in listed if one[0] > reached]
                time.sleep(0.02)  # between two looks
    counted = [late for n, late in took if n >= warm * rate]
    p50, p99, worst = (round(float(np.quantile(counted, q)), 2) for q in (0.5, 0.99, 1.0))
    missing = sum(map(len, waiting.values()))
    return {
        "rate": rate,
        "seconds": seconds,
        "events": len(counted),
        "never_readable": missing,
        "s": {"p50": p50, "p99": p99, "max": worst},
    }


def kills(events: int, rate: float, every_s: float) -> dict[str, Any]:
    folder = Path(tempfile.mkdtemp(prefix="slipway-stream-"))
    killed = {"stream": 0, "broker": 0}
    draw = random.Random(SEED)
    with broker(folder / "kafka") as kafka:
        make_topic(kafka.servers)
        settings = Settings(home=folder / "home", include_dir=project(folder), kafka=kafka.servers)
        lake = DeltaLake(settings.lake)
        with Stream(settings, folder / "stream.log") as stream:
            producer = Producer(kafka.servers, folder / "produced.jsonl", events, rate)
            producer.start()
            while producer.is_alive():
                producer.join(every_s * draw.uniform(0.5, 1.5))
                stream.wait()
                victim = "broker" if killed["stream"] > 2 * killed["broker"] else "stream"
                _kill(victim, stream, kafka)
                killed[victim] += 1
            expected = made_from_file(folder, settings.include_dir)
            rows = DeltaLake(expected.lake).read(datasets.table_of(DATASET)).num_rows
            deadline = time.time() + 300
            while not caught_up(settings, expected, rows):
                assert time.time() < deadline, f"{folder}: not all of {rows} rows came, or the view differs"
                time.sleep(1)  # nothing tells when it is done
    order = [("n", "ascending")]
    ours = lake.read(datasets.table_of(DATASET)).sort_by(order)
    theirs = DeltaLake(expected.lake).read(datasets.table_of(DATASET)).sort_by(order)
    return {
        "events": events,
        "rate": rate,
        "killed": killed,
        "rows": rows,
        "refused": lake.read(f"quarantine/{DATASET}").num_rows,
        "dataset_equal": ours.equals(theirs.select(ours.column_names)),
        "view_rows": len(latest(expected, VIEW)),
        "view_equal": latest(settings, VIEW) == latest(expected, VIEW),
        "online_equal": online(settings, VIEW) == expected_online(expected, VIEW),
    }


def _kill(victim: str, stream: Stream, kafka: Broker) -> None:
    if victim == "stream":
        stream.kill()
        stream.start()
    else:
        kafka.kill()
        kafka.start()


def caught_up(settings: Settings, expected: Settings, rows: int) -> bool:
    lake, table = DeltaLake(settings.lake), datasets.table_of(DATASET)
    view = features.table_of(load_view(settings.include_dir, VIEW).feast_name(settings.include_dir))
    if not (lake.exists(table) and lake.exists(view)) or lake.read(table, ["n"]).num_rows < rows:
        return False
    return latest(settings, VIEW) == latest(expected, VIEW)


def made_from_file(folder: Path, include: Path) -> Settings:
    """Another home, whose dataset is made of the producer's file by the rules as they are written, and a build."""
    rows = []
    for line in (folder / "produced.jsonl").read_text().splitlines():
        value, stamp_ms = json.loads(line)
        try:
            row = json.loads(value)
        except ValueError:
            continue
        at = datetime.fromisoformat(row["at"])
        came = datetime.fromtimestamp(stamp_ms // 1000, UTC).replace(microsecond=stamp_ms % 1000 * 1000)
        if (came - at).total_seconds() <= WATERMARK_S:
            known = max(at, came)
            rows.append({**row, "at": at, "known_at": known, "day": known.date()})
    stamp = pa.timestamp("us", "UTC")
    types = {"n": pa.int64(), "account": pa.string(), "at": stamp, "cents": pa.int64(), "known_at": stamp}
    table = pa.Table.from_pylist(rows, schema=pa.schema({**types, "day": pa.date32()}))
    settings = Settings(home=folder / "rebuilt", include_dir=include)
    newest = max(int(row["known_at"].timestamp()) * 1_000_000 + row["known_at"].microsecond for row in rows)
    lake = DeltaLake(settings.lake)
    lake.append(datasets.table_of(DATASET), table, ["day"], txn=(datasets.INGEST, newest))
    spec = load_view(include, VIEW)
    made = features.compute(settings, spec, Span(None, frontier_us(spec, newest)), created_us=0)
    lake.append(features.table_of(spec.feast_name(include)), made, ["day"])
    return settings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("latency", "kills"))
    parser.add_argument("--rate", type=float, default=0)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--every", type=float, default=20, help="seconds between two kills, about")
    parser.add_argument("--write", action="store_true", help=f"into {RESULTS}")
    options = parser.parse_args()
    begun = provenance()
    if options.part == "latency":
        found = latency(options.rate or 1000, options.seconds)
    else:
        found = kills(options.events, options.rate or 2000, options.every)
    print(json.dumps(found, indent=1))
    if options.write:
        record(RESULTS / f"stream_{options.part}.json", begun | {"benchmark": "stream", **found})


if __name__ == "__main__":
    main()
