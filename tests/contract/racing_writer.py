"""A writer of a race: `python -m tests.contract.racing_writer ROOT ENDPOINT NUMBER ROUNDS`.

It appends rows of its own, and replaces a partition of its own, again and again.
"""

from __future__ import annotations

import sys
import time

import pyarrow as pa

from pipelines.adapters.delta_lake import DeltaLake
from pipelines.adapters.s3_storage import storage_options
from pipelines.contracts.errors import TransientError


def rows(writer: int, round_: int, part: str) -> pa.Table:
    return pa.table({"writer": [writer], "round": [round_], "part": [part]})


def insist(write: object, *arguments: object, **more: object) -> None:
    """What a task's retries do."""
    for _ in range(50):
        try:
            write(*arguments, **more)
        except TransientError:
            time.sleep(0.01)  # the other one is just committing
        else:
            return
    raise SystemExit("lost fifty races")


if __name__ == "__main__":
    root, endpoint, writer, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    lake = DeltaLake(root, storage_options(endpoint) if endpoint else None)
    own = f"own-{writer}"
    for number in range(rounds):
        insist(lake.append, "raced", rows(writer, number, "log"), ["part"])
        insist(lake.replace, "raced", rows(writer, number, own), ["part"], where=f"part = '{own}'")
