"""Several events on their way into the log: one write, and for each what became of it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from pipelines.contracts.events import Assignment, Response
from serving.inference_log import InferenceLog, LogWriteError


def hand_over(log: InferenceLog, events: Sequence[Assignment | Response]) -> list[Exception | None]:
    """Write the events, which have the log's next ids; for each, the error if it was not written."""
    if not events:
        return []
    try:
        log.write_all(events)
    except LogWriteError as error:
        return [None] * error.written + [error] * (len(events) - error.written)
    except Exception:  # noqa: BLE001 - one of them cannot be encoded, which is no affair of the others
        return [_alone(log, event) for event in events]
    return [None] * len(events)


def _alone(log: InferenceLog, event: Assignment | Response) -> Exception | None:
    try:
        log.write(msgspec.structs.replace(event, id=log.next_id()))
    except Exception as error:  # noqa: BLE001 - told to whom it concerns
        return error
    return None
