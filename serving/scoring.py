"""One arm's way through a request: features, matrix, model, post-processing, validity. It never raises."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter_ns
from typing import Literal

import msgspec
import numpy as np

from pipelines.contracts.batch_scores import BatchScore
from pipelines.contracts.errors import ContractError
from pipelines.contracts.events import FeatureRead
from serving.inputs import Bound, complete
from serving.models import LoadedModel
from serving.oip.datatypes import Scalar
from serving.online_features.plan import Reads, ViewRead

_ERROR_CHARS = 300
_SCALARS = (float, int, str, bool)

Clock = Callable[[], int]
"""Nanoseconds since some moment."""


class Outcome(msgspec.Struct):
    """What one arm made of one request; the fields of its Response event."""

    status: Literal["ok", "error", "invalid"]
    latency_us: int
    raw: list[float] = []
    score: list[float] = []
    outputs: dict[str, list[Scalar]] = {}
    features_us: int = 0
    model_us: int = 0
    features: list[FeatureRead] = []
    degraded: list[str] = []
    error: str = ""
    unavailable: bool = False
    """The release refuses to answer without its online features: its declared way, and no fault of its own."""
    batch: BatchScore | None = None
    """What is answered in the place of a failure."""

    @property
    def own_us(self) -> int:
        """Its time without that of the features, which were read before, for all arms."""
        return self.latency_us - self.features_us


class Scorer:
    """Scores one request, for one arm or for both, from what was read online for it beforehand."""

    def __init__(self, bound: Bound, reads: Reads) -> None:
        self.bound = bound
        self.reads = reads

    @property
    def rows(self) -> int:
        """Of the request."""
        return self.bound.rows

    def score(self, model: LoadedModel, clock: Clock = perf_counter_ns) -> Outcome:
        """The model's outcome. A failure of any kind is an outcome with status `error`."""
        started = clock()
        reads: list[ViewRead] = []
        try:
            reads = self.ready(model)
            outcome = refused(model, reads)
            if outcome is None:
                matrix = model.matrix(self.bound, features_of(reads))
                before = clock()
                raw = model.predict(matrix)
                outcome = self.outcome(model, raw, (clock() - before) // 1000)
        except Exception as error:  # noqa: BLE001 - whatever a release's own code raises is that release's failure
            outcome = Outcome("error", 0, error=_text_of(error))
        return self.finished(outcome, reads, clock() - started)

    def ready(self, model: LoadedModel) -> list[ViewRead]:
        """What was read for the model. Raises ContractError when an input that it requires has no value."""
        if missing := complete(model.manifest.inputs, self.bound):
            raise ContractError(f"input {missing}", got="null", expected="a value: this release requires it")
        return self.reads.of(model.digest) if model.manifest.views else []

    def outcome(self, model: LoadedModel, raw: np.ndarray, model_us: int) -> Outcome:
        """What post-processing makes of the request's raw scores [rows]."""
        release, bound, contract = model.release, self.bound, model.manifest.output
        made = release.outputs(raw, bound.columns)
        outputs = {name: _plain(name, made, bound.rows) for name in contract.fields}
        values = np.asarray(made[contract.score])
        if values.dtype == np.float64:
            score: list[float] = outputs[contract.score]  # type: ignore[assignment]  # the same numbers
        else:
            score = np.asarray(values, dtype=np.float64).tolist()
        status: Literal["ok", "invalid"] = "ok" if release.valid(score) else "invalid"
        return Outcome(status, 0, raw=raw.tolist(), score=score, outputs=outputs, model_us=model_us)

    def finished(self, outcome: Outcome, reads: list[ViewRead], took_ns: int) -> Outcome:
        """The outcome with its times and what was read for it."""
        # The reading was done once for both arms and counts for each: their latencies stay comparable.
        outcome.features_us = self.reads.took_us
        outcome.latency_us = took_ns // 1000 + self.reads.took_us
        outcome.features = [read.logged for read in reads]
        outcome.degraded = [read.degraded for read in reads if read.degraded]
        return outcome


def features_of(reads: list[ViewRead]) -> dict[tuple[str, str], np.ndarray]:
    """The columns read, by view and feature."""
    return {(read.logged.view, name): column for read in reads for name, column in read.columns.items()}


def refused(model: LoadedModel, reads: list[ViewRead]) -> Outcome | None:
    """The outcome of a release that does not answer by defaults, when a view of its could not be read."""
    if model.manifest.on_features_unavailable == "defaults":
        return None
    lost = [read.degraded for read in reads if read.unavailable]
    return Outcome("error", 0, error="; ".join(lost)[:_ERROR_CHARS], unavailable=True) if lost else None


def _text_of(error: Exception) -> str:
    """One line for the log, short and valid UTF-8 whatever the release's code put into it."""
    return f"{type(error).__name__}: {error}"[:_ERROR_CHARS].encode(errors="replace").decode()


def _plain(name: str, made: dict[str, np.ndarray], rows: int) -> list[Scalar]:
    values = made.get(name)
    if values is None:
        raise ContractError("post-processing", got=sorted(made), expected=f"also {name}")
    flat = np.asarray(values)
    if flat.shape != (rows,):
        raise ContractError(f"post-processing: {name}", got=flat.shape, expected=f"({rows},)")
    plain: list[Scalar] = flat.tolist()
    # Everything the log and the answer can carry; a release that makes anything else has failed.
    if flat.dtype.kind not in "biufU" and not all(value is None or type(value) in _SCALARS for value in plain):
        raise ContractError(f"post-processing: {name}", got=flat.dtype, expected="numbers, booleans or text")
    return plain
