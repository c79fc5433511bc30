"""How much work that nobody waits for a thread has time for, so that those who wait for its other work do not feel it.

A queue whose server is busy for a share `u` of the time makes its customers wait in proportion to 1 / (1 - u) (M/M/1:
L. Kleinrock, Queueing Systems I, 1975, section 3.2). Work that takes a share `s` of the rest, 1 - u, makes that
1 / ((1 - u)(1 - s)): whatever the load, they wait 1 / (1 - s) times as long. So the bound is a share of the idle time:
where there is much of it, much may be done, and a thread that is nearly busy has time for next to nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic, thread_time

_LOOK_S = 0.005
"""How often the thread's account is looked at, at most: that is a system call."""
_SAVED_S = 0.005
"""What may be spent at once after a time of little work: clients that come meanwhile wait for it."""
_FIRST_S = 100e-6
"""What a piece of work is thought to cost before any is done."""
_WEIGHT = 0.05
"""Of what the latest pieces have cost, in what one is thought to cost."""
_UNSEEN = 1.3
"""What work costs in all, for each second of it that is seen: the loop wakes up for it, and finds its caches cold."""


class SpareTime:
    """The account of one thread, which calls it: `share` of its idle time may be taken; at 1 there is no bound.

    What a piece of work costs is learnt: it is done `with` this, and `are_done` says how many have been.
    """

    def __init__(
        self, share: float, now: Callable[[], float] = monotonic, busy: Callable[[], float] = thread_time
    ) -> None:
        self._share = share
        self._now = now
        self._busy = busy
        self._left_s = _SAVED_S
        self._costs_s = _FIRST_S
        self._looked_at = self._was_busy = self._began = self._spent_s = 0.0

    def take(self) -> bool:
        """Take the time for one piece of work, if there is."""
        if self._share >= 1:
            return True
        self._look()
        if self._left_s <= 0:
            return False
        self._left_s -= self._costs_s
        return True

    def are_done(self, pieces: int) -> None:
        """Learn from the time that was spent since the last ones were."""
        each_s = _UNSEEN * self._spent_s / pieces
        self._costs_s += _WEIGHT * (each_s - self._costs_s)
        self._spent_s = 0.0

    def __enter__(self) -> None:
        self._began = self._busy()

    def __exit__(self, *_: object) -> None:
        self._spent_s += self._busy() - self._began

    def _look(self) -> None:
        now = self._now()
        passed_s = now - self._looked_at
        if passed_s < _LOOK_S:
            return
        busy = self._busy()
        idle_s = max(0.0, passed_s - (busy - self._was_busy))
        self._left_s = min(_SAVED_S, self._left_s + self._share * idle_s)
        self._looked_at, self._was_busy = now, busy
