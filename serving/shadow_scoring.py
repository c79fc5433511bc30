"""Scoring in the shadow process: pairs beside each other, by a clock that stands while others have the processor.

Two releases that are scored in different processes, one in a hurry and one when there is time, cannot be compared by
what they took. So the arm that has answered is scored once more, beside the other one: for the same requests, in the
same company, in random order.
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter_ns

from pipelines.contracts.events import ARMS, NOT_COMPARED, OTHER, Arm
from pipelines.contracts.pii import KeyedHash
from serving.models import LoadedModel, why_not_loaded
from serving.scoring import Clock, Outcome
from serving.scoring_together import in_companies, score_together
from serving.shadow_mark import Mark
from serving.shadow_messages import Company, Done, Loading, Scored, SentRequest, packed, scorer_of

_log = logging.getLogger("slipway.shadow")

_UNUSED_S = 600.0
"""A release that was not asked for so long makes room when another is loaded (wall)."""
_RUN_DELAY = 1
"""Its place in a thread's `schedstat`: nanoseconds spent ready to run, and waiting for a processor."""


def own_time() -> Clock:
    """A clock of this thread, in nanoseconds: wall time without the time in which it waited for a processor.

    What it sleeps counts. Where the kernel keeps no such account it is wall time.
    """
    try:
        account = os.open("/proc/thread-self/schedstat", os.O_RDONLY)
    except OSError:
        _log.warning("this kernel has no schedstat: latencies of shadow pairs are wall time")
        return perf_counter_ns

    def waited() -> int:
        return int(os.pread(account, 64, 0).split()[_RUN_DELAY])

    shown = 0

    def now() -> int:
        nonlocal shown
        before = waited()
        while True:
            wall, after = perf_counter_ns(), waited()
            if after == before:
                # The scheduler's clock is not the one of the wall: over a long wait the two may differ by microseconds.
                shown = max(shown, wall - after)
                return shown
            before = after  # it has waited between the two looks, which then do not belong together

    return now


class PairScorer:
    """Scores companies, with the releases that they name. `tell` sends a message to the worker at once; `mark` is for
    whatever it cannot tell any more.
    """

    def __init__(
        self, releases: Path, keyed: KeyedHash | None, clock: Clock, tell: Callable[[bytes], None], mark: Mark
    ) -> None:
        self._releases = releases
        self._keyed = keyed
        self._clock = clock
        self._tell = tell
        self._mark = mark
        self._models: dict[str, LoadedModel] = {}
        self._asked_at: dict[str, float] = {}

    def answer(self, company: Company) -> bytes:
        """The company's `Done`, as it travels."""
        done = Done(company.number, self._score(company))
        try:
            return packed(done)
        except Exception:  # noqa: BLE001 - a release has made what cannot be sent: only its requests have failed
            done.scored = [one if _travels(one) else _failed("an output that cannot be logged") for one in done.scored]
            return packed(done)

    def _score(self, company: Company) -> list[Scored]:
        wanted = company.wanted
        models: dict[Arm, LoadedModel] = {}
        for arm in ARMS:
            if arm != wanted and (company.alone or not company.beside):
                continue
            self._mark.begin(beside=arm != wanted)
            try:
                models[arm] = self._model(company.releases[arm])
            except Exception as error:  # noqa: BLE001 - of whatever kind: this release does not score
                _log.error("release %s not loaded: %s", company.releases[arm][:12], error)
                if arm == wanted:
                    why = why_not_loaded(error, self._releases / company.releases[arm])
                    return [_failed(why)] * len(company.requests)
        allowed_us = company.timeout_us if wanted == "challenger" else None
        return [
            one
            for few in in_companies(company.requests, list(models.values()))
            for one in self._score_alike(company, few, models, allowed_us)
        ]

    def _score_alike(
        self, company: Company, few: Sequence[SentRequest], models: dict[Arm, LoadedModel], allowed_us: int | None
    ) -> list[Scored]:
        """Requests that every arm scores by one call. Should one call fail, all are scored alone, by every arm.

        Else the arm that failed would have its times of requests alone, and the other one of all together. A call that
        takes longer than one request may is no answer to whether each would have come in time.
        """
        order = list(models)
        random.shuffle(order)
        made: dict[Arm, list[Outcome]] = {}
        for arm in order:
            # Its own columns: a release may write into them.
            scorers = [scorer_of(one, company.places) for one in few]
            self._mark.begin(beside=arm != company.wanted)
            _let_others_go_first()
            made[arm] = score_together(models[arm], scorers, self._clock)
        failed = len(made) > 1 and any(_has_failed(outcome) for of_arm in made.values() for outcome in of_arm)
        if len(few) > 1 and (failed or _is_late(made[company.wanted][0], allowed_us)):
            return [one for request in few for one in self._score_alike(company, [request], models, allowed_us)]
        other = made.get(OTHER[company.wanted])
        # All of a company have its times: they are one observation, and one pair has it.
        untold = NOT_COMPARED if company.beside else None
        told = untold if other is None or _has_failed(other[0]) else other[0].latency_us
        return [_scored(outcome, untold if at else told, allowed_us) for at, outcome in enumerate(made[company.wanted])]

    def _model(self, digest: str) -> LoadedModel:
        now = time.monotonic()
        self._asked_at[digest] = now
        model = self._models.get(digest)
        if model is None:
            self._tell(packed(Loading()))
            for old in [one for one in self._models if now - self._asked_at[one] > _UNUSED_S]:
                del self._models[old], self._asked_at[old]
            model = self._models[digest] = LoadedModel(self._releases / digest, digest, self._keyed)
        return model


def _let_others_go_first() -> None:
    """Give up the processor, if anybody else is ready to have it.

    The lowest priority is no matter of never: a scheduler that is fair (EEVDF) runs whoever has had less than is due
    to it, even so little, as soon as a running worker has had its slice, and until the next tick of the clock. Between
    two scorings nothing is lost; in the midst of one, a client would wait for the rest of it.
    """
    os.sched_yield()


def _is_late(outcome: Outcome, timeout_us: int | None) -> bool:
    return timeout_us is not None and outcome.own_us > timeout_us


def _scored(outcome: Outcome, beside_us: int | None, timeout_us: int | None) -> Scored:
    if timeout_us is not None and _is_late(outcome, timeout_us):
        outcome = Outcome("error", timeout_us, error=f"timeout after {timeout_us / 1000:.0f} ms")
    return Scored(
        outcome.status,
        outcome.latency_us,
        outcome.raw,
        outcome.score,
        outcome.outputs,
        outcome.model_us,
        outcome.error,
        outcome.unavailable,
        beside_us,
    )


def _has_failed(outcome: Outcome) -> bool:
    return outcome.status == "error"


def _failed(why: str) -> Scored:
    return _scored(Outcome("error", 0, error=why), None, None)


def _travels(one: Scored) -> bool:
    try:
        packed(Done(0, [one]))
    except Exception:  # noqa: BLE001 - see `answer`
        return False
    return True
