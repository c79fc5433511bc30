"""Where arms are scored: in the event loop while that is harmless, else in a thread each.

A release that is alone is scored in the loop, and so is the champion in shadow, whose challenger has a process of its
own (`serving/shadow.py`). A challenger that answers clients may be slow or never return: a thread of its own can be
waited for no longer than the route allows. The champion then gets one, too, so that neither arm has an advantage in the
latencies that evidence compares. Threads cost a request more than a small model does, though; so two releases that have
shown in their threads, or as second arms, that they are quick are both scored in the loop, the challenger under an
alarm, until one of them is slow again (`Pace`).
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter_ns
from types import FrameType

from pipelines.contracts.events import ARMS, Arm
from serving.models import LoadedModel
from serving.scoring import Outcome, Scorer
from serving.scoring_together import score_together

_QUICK_US = 2000
"""What a scoring may take that is done in the loop (wall)."""
_PROVEN = 64
"""So many scorings of each arm were quick before they are done there."""
_SLOW_COSTS = 8
"""So many quick ones a slow one undoes: where the processor is shared, any scoring may be interrupted for a while."""
_ALARM_S = 0.02
"""When a challenger's scoring in the loop is ended; it is then done again in a thread, and so are all later ones."""


class Pace:
    """Whether two releases that are compared are both quick enough for the loop; of one version of one route."""

    def __init__(self) -> None:
        self.at_once = False
        self._quick: dict[Arm, int] = dict.fromkeys(ARMS, 0)
        self._never = False

    def note(self, arm: Arm, outcome: Outcome) -> None:
        """Take in what one scoring took."""
        self.note_together(arm, (outcome,), outcome.own_us)

    def note_together(self, arm: Arm, outcomes: Sequence[Outcome], each_us: float) -> None:
        """Take in what several took that were scored together, each its share."""
        failed = sum(outcome.status == "error" for outcome in outcomes)
        # However many it held up, one interruption is one.
        slow = failed + (each_us > _QUICK_US)
        quick = 0 if each_us > _QUICK_US else len(outcomes) - failed
        standing = self._quick[arm] = max(0, min(_PROVEN, self._quick[arm] + quick) - slow * _SLOW_COSTS)
        if self.at_once:
            self.at_once = standing > 0
        else:
            self.at_once = not self._never and min(self._quick.values()) == _PROVEN

    def give_up(self) -> None:
        """Threads from now on."""
        self.at_once, self._never = False, True


class TooSlow(BaseException):
    """The alarm: no `except Exception` of a release's code may take it for its own."""


class Alarm:
    """Ends a call in the main thread that takes longer than it may, by a signal: Python code and sleeps, not C code."""

    def __init__(self) -> None:
        self._armed = False
        self.works = threading.current_thread() is threading.main_thread()
        if self.works:
            signal.signal(signal.SIGALRM, self._strike)

    def score(self, model: LoadedModel, scorers: Sequence[Scorer]) -> list[Outcome]:
        """The outcomes. Raises TooSlow."""
        self._armed = True
        # Each may take what counts as quick; one alone may take much longer before it is given up. It strikes until it
        # is heard: Python drops what is raised in a destructor or in a callback of the garbage collector.
        signal.setitimer(signal.ITIMER_REAL, _ALARM_S + (len(scorers) - 1) * _QUICK_US / 1e6, _ALARM_S)
        try:
            return score_together(model, scorers)
        finally:
            self._armed = False  # first: no signal is taken up between the entry here and this line
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _strike(self, _signal: int, _frame: FrameType | None) -> None:
        if self._armed:
            raise TooSlow


class Arms:
    """Scores requests for which two releases are in place."""

    def __init__(self) -> None:
        self._pools = {arm: self._pool(arm) for arm in ARMS}
        self._apart = self._pool("apart")
        self._alarm = Alarm()

    async def score(
        self, pace: Pace, arm: Arm, scorer: Scorer, model: LoadedModel, timeout_s: float | None = None
    ) -> Outcome:
        """The outcome, or an `error` outcome once `timeout_s` (wall) has passed; the late result is dropped."""
        if (outcomes := self.score_in_loop(pace, arm, (scorer,), model)) is not None:
            return outcomes[0]
        outcome = await _in_thread(self._pools[arm], scorer, model, timeout_s)
        pace.note(arm, outcome)
        return outcome

    def in_loop(self, pace: Pace) -> bool:
        """Whether both releases are scored in the loop."""
        return pace.at_once and self._alarm.works

    def score_in_loop(
        self, pace: Pace, arm: Arm, scorers: Sequence[Scorer], model: LoadedModel
    ) -> list[Outcome] | None:
        """The outcomes of requests that are scored together; None when they have to be scored in threads."""
        if not self.in_loop(pace):
            return None
        began = perf_counter_ns()
        try:
            outcomes = score_together(model, scorers) if arm == "champion" else self._alarm.score(model, scorers)
        except TooSlow:
            pace.give_up()
            return None
        each_us = (perf_counter_ns() - began) / 1000 / len(outcomes)
        pace.note_together(arm, outcomes, each_us)
        return outcomes

    async def score_apart(self, scorer: Scorer, model: LoadedModel, timeout_s: float) -> Outcome:
        """The same for a release that no route vouches for: what it holds up are others of its kind alone."""
        return await _in_thread(self._apart, scorer, model, timeout_s)

    def replace(self, arm: Arm) -> None:
        """A fresh thread for an arm whose old one may never return."""
        old, self._pools[arm] = self._pools[arm], self._pool(arm)
        old.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        """Wait for no one."""
        for pool in (*self._pools.values(), self._apart):
            pool.shutdown(wait=False, cancel_futures=True)

    @staticmethod
    def _pool(name: str) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1, thread_name_prefix=f"score-{name}")


async def _in_thread(pool: ThreadPoolExecutor, scorer: Scorer, model: LoadedModel, timeout_s: float | None) -> Outcome:
    future = asyncio.get_running_loop().run_in_executor(pool, scorer.score, model)
    done, _ = await asyncio.wait((future,), timeout=timeout_s)
    if future.cancelled():
        return Outcome("error", 0, error="switched off while it waited for its turn")
    if done:
        return future.result()
    future.cancel()
    assert timeout_s is not None
    return Outcome("error", int(timeout_s * 1e6), error=f"timeout after {timeout_s * 1000:.0f} ms")
