"""Looks at a rollout and carries out its decisions, as a gate and the task behind it do, and kills itself on the way.

`python -m tests.e2e.dying_executor HOME ROLLOUT N`: SIGKILL before the N-th statement or commit of the control
database. Fewer than N: it ends as usual.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import sqlalchemy as sa

from pipelines.adapters.control_db import control_db
from pipelines.settings import Settings
from pipelines.wiring import rollouts


def main(home: str, rollout_id: str, boundary: int) -> None:
    settings = Settings(home=Path(home))
    left = boundary

    def count(*_: object) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    for event in ("before_cursor_execute", "commit"):
        sa.event.listen(control_db(settings).engine, event, count)
    while rollouts.load(settings, rollout_id).slot != "ended":
        rollouts.look(settings, rollout_id)
        rollouts.advance(settings, rollout_id)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
