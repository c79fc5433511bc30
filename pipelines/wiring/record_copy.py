"""The decision record's copy in the lake: whoever rewrites the control database would have to rewrite this too."""

from __future__ import annotations

import logging

import pyarrow as pa

from pipelines.adapters.delta_lake import open_lake
from pipelines.adapters.rollout_store import RolloutStore
from pipelines.contracts.errors import SlipwayError
from pipelines.rollout.record import Entry
from pipelines.settings import Settings

TABLE = "record/decisions"
_log = logging.getLogger("slipway.record")


def copy(settings: Settings, store: RolloutStore, model: str) -> int:
    """Append the model's entries that the lake does not have yet; returns how many.

    A lake that cannot be written delays nothing: the next call appends what is missing.
    """
    entries = store.entries(model)
    if not entries:
        return 0

    def missing(last: int | None) -> pa.Table:
        rows = [line for line in entries if line.n > (last or 0)]
        return pa.table(
            {
                "model": pa.array([line.model for line in rows], pa.string()),
                "n": pa.array([line.n for line in rows], pa.int64()),
                "prev_hash": pa.array([line.prev_hash for line in rows], pa.string()),
                "hash": pa.array([line.hash for line in rows], pa.string()),
                "body": pa.array([line.body for line in rows], pa.string()),
            }
        )

    try:
        return open_lake(settings).advance(TABLE, f"record/{model}", entries[-1].n, missing) or 0
    except (SlipwayError, OSError) as error:
        _log.warning("the record of %s is not copied into the lake: %s", model, error)
        return 0


def copied(settings: Settings) -> dict[str, list[Entry]]:
    """The copy by model, in order."""
    lake = open_lake(settings)
    found: dict[str, list[Entry]] = {}
    if lake.exists(TABLE):
        for row in lake.read(TABLE).sort_by([("model", "ascending"), ("n", "ascending")]).to_pylist():
            found.setdefault(row["model"], []).append(Entry(**row))
    return found
