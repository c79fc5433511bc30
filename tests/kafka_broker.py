"""A real Kafka broker for tests, on free ports: started by `scripts/kafka/broker.py`, killed and restarted at will."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.free_ports import free_ports

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "kafka" / "broker.py"


class Broker:
    """One broker and its data, which outlives it."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.port, self._controller_port = free_ports(2)
        self.servers = f"127.0.0.1:{self.port}"
        self._output = data / "out"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self, wait: bool = True) -> None:
        command = [sys.executable, str(SCRIPT), "run", "--port", str(self.port), "--data", str(self.data)]
        self.data.mkdir(parents=True, exist_ok=True)
        with self._output.open("ab") as output:
            self._process = subprocess.Popen(
                [*command, "--controller-port", str(self._controller_port)],
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        if wait:
            self.wait()

    def wait(self, seconds: float = 300.0) -> None:
        """Return when it answers."""
        from confluent_kafka import KafkaException
        from confluent_kafka.admin import AdminClient

        assert self._process is not None
        deadline = time.monotonic() + seconds
        client = AdminClient({"bootstrap.servers": self.servers, "log_level": 0})
        while True:
            assert self._process.poll() is None, self._output.read_text()
            try:
                if client.list_topics(timeout=2).brokers:
                    return
            except KafkaException:
                assert time.monotonic() < deadline, self._output.read_text()

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def make_topic(self, name: str, partitions: int = 1) -> None:
        """A topic that keeps messages of any age: those of tests are stamped with the years they tell of."""
        from confluent_kafka.admin import AdminClient
        from confluent_kafka.cimpl import NewTopic

        kept = {"retention.ms": "-1", "message.timestamp.before.max.ms": str(2**62)}
        client = AdminClient({"bootstrap.servers": self.servers})  # kept by its name: with it its answers would go
        client.create_topics([NewTopic(name, partitions, config=kept)])[name].result(30)

    def produce(self, topic: str, messages: Iterable[tuple[bytes, int]]) -> None:
        """Send messages (value, microseconds); all are acknowledged when this returns."""
        from confluent_kafka import Producer

        producer = Producer({"bootstrap.servers": self.servers, "enable.idempotence": True})
        for value, time_us in messages:
            producer.produce(topic, value, timestamp=time_us // 1000)
        assert producer.flush(60) == 0


def fetched() -> str:
    """Empty when the jars and Java are there (fetched now when missing), else why not."""
    done = subprocess.run([sys.executable, str(SCRIPT), "fetch"], capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stderr.strip() or "no Kafka"


@contextmanager
def broker(data: Path) -> Iterator[Broker]:
    """A running broker. Without Kafka the test is skipped; under `CI=true` that is a failure."""
    if missing := fetched():
        assert os.environ.get("CI") != "true", missing
        pytest.skip(missing)
    made = Broker(data)
    try:
        made.start()
        yield made
    finally:
        made.kill()
