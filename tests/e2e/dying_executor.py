"""Looks at a rollout and carries out its decisions, as a gate and the task behind it do, and kills itself on the way.

`python -m tests.e2e.dying_executor HOME` says `ready`, then reads `ROLLOUT N`: SIGKILL before the N-th write or commit
of the control database. A rollout that has ended before: it ends as usual.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import sqlalchemy as sa

from pipelines.adapters.control_db import control_db
from pipelines.settings import Settings
from pipelines.wiring import rollouts


def main(home: str) -> None:
    settings = Settings(home=Path(home))
    print("ready", flush=True)
    rollout_id, boundary = sys.stdin.readline().split()
    left = int(boundary)

    def count(_connection: object, _cursor: object = None, statement: str = "COMMIT", *_: object) -> None:
        nonlocal left
        if not statement.lstrip().startswith(("INSERT", "UPDATE", "COMMIT")):
            return
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    for event in ("before_cursor_execute", "commit"):
        sa.event.listen(control_db(settings).engine, event, count)
    while rollouts.load(settings, rollout_id).slot != "ended":
        rollouts.look(settings, rollout_id)
        rollouts.advance(settings, rollout_id)
        time.sleep(0.02)  # a little more often than a gate


if __name__ == "__main__":
    main(sys.argv[1])
