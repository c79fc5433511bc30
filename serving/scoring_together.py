"""Requests that are scored by one call of their model, because they came together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from time import perf_counter_ns
from typing import Protocol, TypeVar

from serving.models import LoadedModel
from serving.scoring import Clock, Outcome, Scorer, features_of, refused


def score_together(model: LoadedModel, scorers: Sequence[Scorer], clock: Clock = perf_counter_ns) -> list[Outcome]:
    """The model's outcome for each request: the same scores, bit for bit, as each alone.

    Every request has waited for the whole: `model_us` is the time of the call by `clock` (wall), `latency_us` counts
    from the beginning of the first. Where one of them would fail, each is scored by itself, so that only that one does.
    """
    outcomes: list[Outcome] = []
    for few in in_companies(scorers, (model,)):
        if len(few) > 1:
            with suppress(Exception):  # each by itself tells whose it is
                outcomes += _by_one_call(model, few, clock)
                continue
        outcomes += [scorer.score(model, clock) for scorer in few]
    return outcomes


class OfRows(Protocol):
    """A request, in whatever form."""

    @property
    def rows(self) -> int:
        """How many it has."""
        ...


_Request = TypeVar("_Request", bound=OfRows)


def in_companies(requests: Sequence[_Request], models: Sequence[LoadedModel]) -> Iterable[list[_Request]]:
    """The requests, as many together as suits every model, so that each gives them the same company."""
    if all(model.row_by_row for model in models):
        return _of_few_rows(requests, min(model.most_rows for model in models))
    return [[one] for one in requests]


def _of_few_rows(requests: Sequence[_Request], most: int) -> Iterator[list[_Request]]:
    """The requests in their order, as many together as have no more rows than a batch was tried with."""
    few: list[_Request] = []
    rows = 0
    for request in requests:
        rows += request.rows
        if few and rows > most:
            yield few
            few, rows = [], request.rows
        few.append(request)
    yield few


def _by_one_call(model: LoadedModel, scorers: Sequence[Scorer], clock: Clock) -> list[Outcome]:
    started = clock()
    reads = [scorer.ready(model) for scorer in scorers]
    outcomes = [refused(model, one) for one in reads]
    scored = [at for at, outcome in enumerate(outcomes) if outcome is None]
    matrix = model.matrix_of([(scorers[at].bound, features_of(reads[at])) for at in scored])
    before = clock()
    raw = model.predict(matrix)
    model_us = (clock() - before) // 1000
    first = 0
    for at in scored:
        scorer = scorers[at]
        behind = first + scorer.bound.rows
        outcomes[at] = scorer.outcome(model, raw[first:behind], model_us)
        first = behind
    took = clock() - started
    return [
        scorer.finished(outcome, of_scorer, took)
        for scorer, outcome, of_scorer in zip(scorers, outcomes, reads, strict=True)
        if outcome is not None
    ]
