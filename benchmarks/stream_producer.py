"""Sends the numbered events to a topic at a rate, and may be killed: what is not known to have come is sent again.

    python -m benchmarks.stream_producer SERVERS TOPIC FILE EVENTS RATE

An event is a line of FILE before it is sent, and a number in FILE.acknowledged when the broker has it; started again,
the producer sends the lines whose number is not there as they are, and goes on. So an event may be sent twice.
"""

from __future__ import annotations

import json
import sys
import time
from io import FileIO
from pathlib import Path
from typing import Any

from benchmarks.stream_events import Event, event


def produced(file: Path) -> list[Event]:
    """The events of a producer's file, by number."""
    return [Event(*json.loads(line)) for line in _lines(file)]


def acknowledged(file: Path) -> set[int]:
    """The numbers of the events which the broker has said it has."""
    return set(map(int, _lines(file.with_suffix(".acknowledged"))))


def _lines(file: Path) -> list[bytes]:
    """Whole lines: one that a kill has cut off is none, for what it tells had not happened yet."""
    return file.read_bytes().split(b"\n")[:-1] if file.exists() else []


def _appending(file: Path) -> FileIO:
    """The file, behind its last whole line. Nothing is buffered, so that a kill loses nothing that was written."""
    opened = FileIO(file, "a")
    opened.truncate(sum(len(line) + 1 for line in _lines(file)))
    return opened


def main(servers: str, topic: str, name: str, events: int, rate: float) -> None:
    from confluent_kafka import Producer

    file = Path(name)
    sent, known = produced(file), acknowledged(file)
    client = Producer({"bootstrap.servers": servers, "enable.idempotence": True, "linger.ms": 5, "log_level": 0})
    with _appending(file) as lines, _appending(file.with_suffix(".acknowledged")) as told:

        def send(n: int, one: Event) -> None:
            def delivered(error: object, _message: Any) -> None:
                if error is None:
                    told.write(b"%d\n" % n)

            while True:
                try:
                    client.produce(
                        topic, one.value.encode(), one.account.encode(), timestamp=one.stamp_ms, on_delivery=delivered
                    )
                    break
                except BufferError:  # a broker that is away: wait for it
                    client.poll(0.5)
            client.poll(0)

        for n, one in enumerate(sent):
            if n not in known:
                send(n, one)
        begun = time.time()
        for n in range(len(sent), events):
            time.sleep(max(0.0, begun + (n - len(sent)) / rate - time.time()))  # the rate
            one = event(n, time.time())
            lines.write(json.dumps(one).encode() + b"\n")
            send(n, one)
        client.flush(300)
    if missing := events - len(acknowledged(file)):
        sys.exit(f"{missing} events were not acknowledged")


if __name__ == "__main__":
    main(*sys.argv[1:4], events=int(sys.argv[4]), rate=float(sys.argv[5]))
