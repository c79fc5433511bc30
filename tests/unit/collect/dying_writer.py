"""One life after the other of a worker's log, each killed at a byte of its writes: `dying_writer BUS BOOK BYTES`.

Life k writes k bytes of segments and dies in the write that would be longer. What was appended is entered in the book
(epoch and counter a line) as an answer would leave. Prints how many lives ended so.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from pipelines.contracts.events import EventId, Label
from serving.inference_log import InferenceLog

_write = os.write


def live(bus: Path, book: int, left: int) -> None:
    """Append until `left` bytes are written."""

    def dying(descriptor: int, data: bytes) -> int:
        nonlocal left
        if left < len(data):
            _write(descriptor, data[:left])
            os.kill(os.getpid(), signal.SIGKILL)
        left -= len(data)
        return _write(descriptor, data)

    os.write = dying
    log = InferenceLog(bus, "gw0", 0, segment_bytes=100)
    while True:
        event_id = log.append(label)
        _write(book, f"{event_id.epoch} {event_id.n}\n".encode())


def label(event_id: EventId) -> Label:
    return Label(id=event_id, model="m", request_id=f"q{event_id.n}", value=1.0, event_us=0, wall_us=event_id.n)


def main(bus: str, book: str, count: str) -> None:
    descriptor = os.open(book, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    killed = 0
    for left in range(int(count)):
        if (child := os.fork()) == 0:
            try:
                live(Path(bus), descriptor, left)
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        killed += os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    sys.stdout.write(str(killed))


if __name__ == "__main__":
    main(*sys.argv[1:])
