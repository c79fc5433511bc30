"""Slipway from a notebook: the few things a data scientist does by hand.

from slipway import training_set, release, score

frame = training_set("late_arrival", as_of="2013-07-01").to_pandas()
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipelines.contracts.clocks import parse_event_time
from pipelines.settings import Settings

if TYPE_CHECKING:
    import pyarrow as pa

    from pipelines.contracts.release import Release
    from pipelines.wiring.training import Trained

__all__ = ["release", "score", "train", "training_set"]


def training_set(model: str, as_of: str | int | None = None, settings: Settings | None = None) -> pa.Table:
    """The model's training set as known at `as_of` (RFC 3339 text, microseconds, or None for event now).

    An Arrow table with request_id, event_timestamp, inputs, `<view>.<feature>`, label, label_timestamp;
    `.to_pandas()` gives a frame. The same set is made once and read again.
    """
    from pipelines.training.training_set import read
    from pipelines.wiring.training import make_training_set

    own = settings or Settings()
    digest = make_training_set(own, model, _moment(own, as_of))
    return read(own.training_sets, digest)[0]


def train(model: str, as_of: str | int | None = None, settings: Settings | None = None) -> Trained:
    """Train and register a release of the model as known at `as_of`, as the model's train DAG does."""
    from pipelines.wiring.training import train as run

    own = settings or Settings()
    return run(own, model, _moment(own, as_of))


def release(name: str, model: str | None = None, settings: Settings | None = None) -> Release:
    """A registered release by digest, prefix of it, or semantic version; verified."""
    from pipelines.adapters.control_db import control_db
    from pipelines.wiring.scoring import load_release

    own = settings or Settings()
    return load_release(own, control_db(own).release(name, model).digest)


def score(of: Release, requests: pa.Table, settings: Settings | None = None) -> dict[str, Any]:
    """A release's outputs by name for past requests, with the features that could be read at their `event_timestamp`.

    `requests` has event_timestamp and the release's inputs; a training set will do.
    """
    from pipelines.wiring.scoring import score_table

    return dict(score_table(settings or Settings(), of, requests).outputs)


def _moment(settings: Settings, as_of: str | int | None) -> int:
    return settings.event_clock().event_now_us() if as_of is None else parse_event_time(as_of)
