"""Requests gathered for a heavy model, as its spec asks for (`serving.batching`): scored together, in a thread.

A batch goes when it has `max_size` rows or its oldest request has waited `max_wait_ms`; while one is being scored the
next gathers. Requests of light models need none of this: those of one turn of the loop are scored together anyway
(`serving/short_way.py`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import monotonic, perf_counter_ns
from typing import NamedTuple
from weakref import WeakKeyDictionary

from pipelines.contracts.release import Batching
from serving.metrics import Metrics
from serving.models import LoadedModel
from serving.scoring import Outcome, Scorer
from serving.scoring_together import score_together


class _Waiting(NamedTuple):
    model: LoadedModel
    scorer: Scorer
    future: asyncio.Future[Outcome]
    since: float


class Batches:
    """The gathering requests of every release that is batched; belongs to the event loop."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._batchers: WeakKeyDictionary[LoadedModel, Batcher] = WeakKeyDictionary()

    async def score(self, model: LoadedModel, scorer: Scorer, timeout_s: float | None = None) -> Outcome:
        """The outcome, or an `error` outcome once `timeout_s` (wall) has passed; the late result is dropped.

        Its latency is that of the request: the time in which the batch gathered is part of it.
        """
        assert model.batching is not None
        arrived = perf_counter_ns()
        batcher = self._batchers.get(model)
        if batcher is None:
            rows = self._metrics.batch_rows.labels(model.manifest.model, model.digest[:12])
            batcher = self._batchers[model] = Batcher(model.batching, rows.observe)
        try:
            outcome = await asyncio.wait_for(batcher.put(model, scorer), timeout_s)
        except TimeoutError:
            assert timeout_s is not None
            return Outcome("error", int(timeout_s * 1e6), error=f"timeout after {timeout_s * 1000:.0f} ms")
        outcome.latency_us = (perf_counter_ns() - arrived) // 1000 + scorer.reads.took_us
        return outcome

    def replace(self, model: LoadedModel) -> None:
        """Wait no longer for a release whose thread may never return."""
        if (batcher := self._batchers.pop(model, None)) is not None:
            batcher.close()

    def close(self) -> None:
        """Wait for no one."""
        for batcher in self._batchers.values():
            batcher.close()


class Batcher:
    """The requests of one release. `observe` is told the rows of every batch."""

    def __init__(self, batching: Batching, observe: Callable[[int], None]) -> None:
        self._max_size = batching.max_size
        self._max_wait_s = batching.max_wait_ms / 1000
        self._observe = observe
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="score-batch")
        self._waiting: deque[_Waiting] = deque()
        self._rows = 0
        self._timer: asyncio.TimerHandle | None = None
        self._scoring = False
        self._closed = False

    def put(self, model: LoadedModel, scorer: Scorer) -> asyncio.Future[Outcome]:
        """Let a request wait for its batch."""
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        if self._closed:
            future.set_result(_switched_off())
            return future
        self._waiting.append(_Waiting(model, scorer, future, monotonic()))
        self._rows += scorer.bound.rows
        self._go_if_due()
        return future

    def close(self) -> None:
        """Score no more: whoever waits gets an error."""
        self._closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        for one in self._waiting:
            _settle(one, _switched_off())
        self._waiting.clear()

    def _go_if_due(self) -> None:
        if self._scoring or not self._waiting:
            return
        left_s = self._max_wait_s - (monotonic() - self._waiting[0].since)
        if self._rows >= self._max_size or left_s <= 0:
            self._go()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(left_s, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._go_if_due()

    def _go(self) -> None:
        batch: list[_Waiting] = []
        rows = 0
        while self._waiting and (not batch or rows + self._waiting[0].scorer.bound.rows <= self._max_size):
            one = self._waiting.popleft()
            self._rows -= one.scorer.bound.rows
            if not one.future.done():  # nobody waits for one that took too long
                batch.append(one)
                rows += one.scorer.bound.rows
        if not batch:
            return
        self._scoring = True
        scorers = [one.scorer for one in batch]
        task = asyncio.get_running_loop().run_in_executor(self._pool, score_together, batch[0].model, scorers)

        def done(task: asyncio.Future[list[Outcome]]) -> None:
            self._scoring = False
            self._observe(rows)
            outcomes = [_switched_off() for _ in batch] if task.cancelled() else task.result()
            for one, outcome in zip(batch, outcomes, strict=True):
                _settle(one, outcome)
            self._go_if_due()

        task.add_done_callback(done)


def _settle(one: _Waiting, outcome: Outcome) -> None:
    if not one.future.done():
        one.future.set_result(outcome)


def _switched_off() -> Outcome:
    return Outcome("error", 0, error="switched off while it waited for its turn")
