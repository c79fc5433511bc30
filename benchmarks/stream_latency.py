"""How long a message takes to be readable online."""

from __future__ import annotations

import sqlite3
import struct
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.stream_events import BROKEN, TOO_LATE, event
from benchmarks.stream_process import Stream
from benchmarks.stream_project import TOPIC, VIEW, make_topic, write_project
from pipelines.settings import Settings
from pipelines.spec.loading import load_view
from tests.kafka_broker import broker

WARM_S = 20
"""Spark and the first batches warm up on events of their own, which are not counted."""


class _Sending(threading.Thread):
    """Sends events at a rate. sent: of each good one its number, its account and when it was given to the producer."""

    def __init__(self, servers: str, events: int, rate: float) -> None:
        super().__init__(daemon=True)
        self.servers, self.events, self.rate = servers, events, rate
        self.sent: list[tuple[int, str, float]] = []

    def run(self) -> None:
        from confluent_kafka import Producer

        options = {"enable.idempotence": True, "linger.ms": 5, "log_level": 0}
        client = Producer({"bootstrap.servers": self.servers, **options})
        begun = time.time()
        for n in range(self.events):
            time.sleep(max(0.0, begun + n / self.rate - time.time()))  # the rate
            now = time.time()
            one = event(n, now)
            if one.kind not in (BROKEN, TOO_LATE):
                self.sent.append((n, one.account, now))
            client.produce(TOPIC, one.value.encode(), one.account.encode(), timestamp=one.stamp_ms)
            client.poll(0)
        left = client.flush(120)
        assert left == 0, f"{left} events were not acknowledged"


def latency(rate: float, seconds: int, publish_every: str) -> dict[str, Any]:
    """p50, p99 and the worst of the times from the producer to the look at the store that shows the event, in s.

    They include the wait for the row's stamp: one to two steps of `publish_every`.
    """
    folder = Path(tempfile.mkdtemp(prefix="slipway-stream-"))
    with broker(folder / "kafka") as kafka:
        make_topic(kafka.servers)
        settings = Settings(home=folder / "home", include_dir=write_project(folder, publish_every), kafka=kafka.servers)
        with Stream(settings, folder / "stream.log") as stream:
            sending = _Sending(kafka.servers, int(rate * (seconds + WARM_S)), rate)
            stream.wait()
            sending.start()
            waiting: dict[str, list[tuple[int, float]]] = {}
            taken, took = 0, []
            ended = None
            while ended is None or (any(waiting.values()) and time.time() < ended + 60):
                if not sending.is_alive() and ended is None:
                    ended = time.time()
                newest, seen = newest_online(settings), time.time()
                events = sending.sent[taken:]
                for n, account, sent in events:
                    waiting.setdefault(account, []).append((n, sent))
                taken += len(events)
                for account, listed in waiting.items():
                    reached = newest.get(account, -1)
                    took += [(n, seen - sent) for n, sent in listed if n <= reached]
                    waiting[account] = [one for one in listed if one[0] > reached]
                time.sleep(0.02)  # between two looks
    counted = [late for n, late in took if n >= WARM_S * rate]
    p50, p99, worst = (round(float(np.quantile(counted, q)), 2) for q in (0.5, 0.99, 1.0))
    return {
        "rate": rate,
        "seconds": seconds,
        "publish_every": publish_every,
        "events": len(counted),
        "never_readable": sum(map(len, waiting.values())),
        "s": {"p50": p50, "p99": p99, "max": worst},
    }


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
