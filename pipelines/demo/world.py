"""What really happened, in order: the requests an application would have made, and the truths it learnt later.

Made once from a model's own `requests` and `labels` transforms over the whole sample; the replay lets the gateway see
it hour by hour.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.demo.application import Ask
from pipelines.demo.specs import copy_include, edit_model
from pipelines.settings import Settings
from pipelines.spec.loading import load_model
from pipelines.wiring import datasets, requests_and_labels

END_OF_SAMPLE_US = 1_389_312_000_000_000  # 2014-01-10: the last flight of 2013 has landed


@dataclass(frozen=True, slots=True)
class Truth:
    """A label and the event time it became known."""

    value: float
    known_us: int


@dataclass(frozen=True, slots=True)
class World:
    """Requests of one model by event time, and truths by request id."""

    asks: list[Ask]
    truths: dict[str, Truth]
    datatypes: dict[str, str]

    def between(self, start_us: int, end_us: int, keep: int = 1) -> list[Ask]:
        """Requests with start < event time <= end, in order; of those every `keep`-th by position in the year."""
        first = bisect.bisect_right(self.asks, start_us, key=lambda ask: ask.event_us)
        last = bisect.bisect_right(self.asks, end_us, key=lambda ask: ask.event_us)
        return [self.asks[index] for index in range(first, last) if index % keep == 0]


def world(requests: pa.Table, labels: pa.Table, datatypes: dict[str, str]) -> World:
    """The world of a requests table (request_id, event_timestamp, inputs) and a labels table (request_id, label,
    label_timestamp). NaN is a missing value.
    """
    names = [name for name in datatypes if name in requests.column_names]
    ordered = requests.sort_by([("event_timestamp", "ascending"), ("request_id", "ascending")])
    columns = [_plain(ordered.column(name)) for name in names]
    ids, times = ordered.column("request_id").to_pylist(), _micros(ordered.column("event_timestamp"))
    asks = [
        Ask(request_id, at, dict(zip(names, values, strict=True)))
        for request_id, at, *values in zip(ids, times, *columns, strict=True)
    ]
    known = labels.filter(pc.is_valid(labels.column("label")))
    truths = dict(
        zip(
            known.column("request_id").to_pylist(),
            map(Truth, known.column("label").cast(pa.float64()).to_pylist(), _micros(known.column("label_timestamp"))),
            strict=True,
        )
    )
    return World(asks, truths, datatypes)


def _micros(column: pa.ChunkedArray) -> list[int]:
    return list(column.cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_pylist())


def _plain(column: pa.ChunkedArray) -> list[Any]:
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), None, column)
    return list(column.to_pylist())


def of_the_year(installation: Settings, model: str, spec_file: str) -> World:
    """The world of a model over the whole sample, taken up in a home of its own that knows everything at once.

    `spec_file` of `include/demo` says which inputs there are.
    """
    home = installation.root / "world"
    all_knowing = installation.model_copy(update={"home": home, "include_dir": home / "include"})
    copy_include(installation.include_dir, all_knowing.include_dir)
    edit_model(all_knowing.include_dir, model, spec_file, size=1.0, seed=0)
    spec = load_model(all_knowing.include_dir, model)
    for name in spec.datasets():
        datasets.ingest(all_knowing, name, END_OF_SAMPLE_US)
    return world(
        requests_and_labels.requests(all_knowing, model, END_OF_SAMPLE_US),
        requests_and_labels.labels(all_knowing, model, END_OF_SAMPLE_US),
        {name: declared.datatype for name, declared in spec.inputs.items()},
    )
