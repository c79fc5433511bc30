"""The shadow process of one worker: `python -m serving.shadow_process SOCKET MARK WORKER` (two descriptors, pid).

It has the lowest priority there is: it gets the processor while the worker has nothing to do, and gives it up at once
when something has come. It ends with its socket, or with its worker.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path

from serving.orphans import end_with

_CHUNK = 1 << 16


def _step_back() -> None:
    """Take the lowest priority that this machine allows."""
    try:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except OSError:  # a sandbox that filters the call, or knows no such policy
        os.nice(19)


def main() -> None:
    """Answer companies until the worker has no more."""
    descriptor, mark, worker = map(int, sys.argv[1:])
    _step_back()  # before anything is imported: that, too, has time
    end_with(worker, signal.SIGKILL)
    # Sent to the whole group: the worker first finishes what it promised.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    from pipelines.contracts.pii import KeyedHash
    from serving.shadow_mark import Mark
    from serving.shadow_messages import Begin, Incoming, Up, packed
    from serving.shadow_scoring import PairScorer, own_time

    with socket.socket(fileno=descriptor) as connection:
        connection.sendall(packed(Up()))
        incoming = Incoming()
        scorer: PairScorer | None = None
        while data := connection.recv(_CHUNK):
            for message in incoming.of_worker(data):
                if isinstance(message, Begin):
                    keyed = KeyedHash(message.pii_key) if message.pii_key else None
                    scorer = PairScorer(Path(message.releases), keyed, own_time(), connection.sendall, Mark(mark))
                else:
                    assert scorer is not None, "the worker begins with Begin"
                    connection.sendall(scorer.answer(message))


if __name__ == "__main__":
    main()
