"""Second arms are scored after the answer has left, by a process of the lowest priority: no client waits for them.

A place is reserved before the assignment is written, so that the log promises a pair only when one will come. When the
queue is full, or moves too slowly, nothing is promised, and the shed request is counted.

The worker's part is to send what scoring needs, and to log what comes back: its log stays the one in which a request's
events stand in their order. A release that hangs, or ends its process, holds up and loses nothing but its own pairs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from time import monotonic
from typing import Any, NamedTuple

from pipelines.contracts.errors import ContractError
from serving.shadow_link import Link, name_of
from serving.shadow_messages import Begin, Done, Loading, Scored, ToWorker, Up
from serving.spare_time import SpareTime

_log = logging.getLogger("slipway.shadow")

_LONGEST_WAIT_S = 5.0
"""Nothing is promised that would wait longer for its turn (wall), as far as can be foreseen."""
_WEIGHT = 0.2
"""Of the newest company, in what a request is thought to take."""
_MOST = 4
"""Requests of a company: what comes back is logged in one turn of the loop, and whoever comes meanwhile waits."""
_ON_THE_WAY = 2
"""Companies sent at a time: one is scored, and the next is there. Those that wait here grow, and cost less."""
_TICK_S = 0.5
_PATIENCE_S = 2.0
"""The least that a company may keep the process busy, with one arm, before it is given up."""
_UNBOUND_S = 30.0
"""The same of an arm that no route bounds: a champion, for which clients wait as long as it takes."""
_LOADING_S = 60.0
"""How long starting, and loading a release, may keep the process busy."""
_REST_S = 60.0
"""A process that has had no work for so long (wall) ends: it holds releases in memory."""
_AGAIN_S = 0.5
"""Between the end of a process and the start of the next (wall)."""
_TRIES = 3
"""So many processes that end before they are up, and what was promised is given up; so many that were killed with the
same company, and it is to blame."""
_NONE_S = 60.0
"""After that nothing is promised for so long (wall)."""
_FROM_OUTSIDE = frozenset({-signal.SIGKILL, -signal.SIGTERM})


class Company(NamedTuple):
    """Requests that are scored together, with what comes with it: how they are sent, under a number, with or without
    the arm beside (None: they are no longer wanted); who takes their outcomes; who is told that there are none, and
    why; how long each may keep the process busy with the arm asked for before it is given up (None: no bound).

    Those of one `kind` are sent together when they wait. `alone`: the arm beside has ended their process, or held it
    up.
    """

    kind: Hashable
    requests: tuple[Any, ...]
    message: Callable[[Sequence[Any], int, bool], bytes | None]
    settle: Callable[[Sequence[Any], Sequence[Scored]], None]
    fail: Callable[[Sequence[Any], str], None]
    patience_s: float | None
    alone: bool = False


class ShadowQueue:
    """At most `capacity` requests reserved, waiting or being scored, and no more than there is `spare` time for."""

    def __init__(self, capacity: int, begin: Begin, spare: SpareTime) -> None:
        self._capacity = capacity
        self._begin = begin
        self._spare = spare
        self._taken = 0
        self._each_s = 0.0  # what a request takes while others wait (wall)
        self._waiting: deque[Company] = deque()
        self._sent: deque[Company] = deque()
        self._answered: deque[tuple[Company, Sequence[Scored]]] = deque()
        self._number = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._link: Link | None = None
        self._is_up = self._is_loading = False
        self._turn_comes = False
        self._moved_at = 0.0
        self._killed_with_first = 0
        self._none_until = 0.0  # while no process can be had (monotonic)
        self._done = asyncio.Event()
        self._done.set()

    @property
    def taken(self) -> int:
        return self._taken

    @property
    def pid(self) -> int | None:
        """Of the process that scores, if there is one."""
        return self._link.pid if self._link is not None else None

    @property
    def used_s(self) -> float:
        """Processor time of that process so far."""
        return self._link.account()[1] if self._link is not None else 0.0

    def start(self) -> None:
        """Begin to score, in the running loop."""
        self._loop = asyncio.get_running_loop()
        self._go_on()

    def reserve(self) -> bool:
        """Take a place, if there is one. Every place taken must be used by `put` or given back by `release`."""
        if self._taken >= self._capacity or self._taken * self._each_s > _LONGEST_WAIT_S:
            return False
        if self._none_until and monotonic() < self._none_until:
            return False
        if not self._spare.take():
            return False
        self._taken += 1
        return True

    def release(self, places: int = 1) -> None:
        """Give back places that will not be used, or have been."""
        self._taken -= places

    def put(self, company: Company) -> None:
        """Use the reserved places."""
        self._waiting.append(company)
        self._done.clear()
        self._go_on()

    async def drain(self, timeout_s: float) -> None:
        """Score what is waiting, for at most `timeout_s` (wall), then stop."""
        if self._loop is None:
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._done.wait(), timeout_s)
        self._loop = None
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait((self._keeper,))

    def _go_on(self) -> None:
        """Do the next thing once this turn of the loop has ended, and what came with it has been answered."""
        if self._loop is None:
            return
        if self._keeper is None and self._waiting:
            self._keeper = self._loop.create_task(self._keep(), name="shadow")
        if not self._turn_comes and (self._answered or (self._link is not None and self._has_to_send())):
            self._turn_comes = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        """One company goes, or one comes back: clients are not held up by many."""
        self._turn_comes = False
        if self._answered:
            company, scored = self._answered.popleft()
            with self._spare:
                self._end(company, lambda: company.settle(company.requests, scored))
            self._spare.are_done(len(company.requests))
        elif self._link is not None and self._has_to_send():
            with self._spare:
                self._send_next(self._link)
        self._go_on()

    def _send_next(self, link: Link) -> None:
        company = self._next()
        try:
            message = company.message(company.requests, self._number + 1, company.alone)
        except Exception:  # noqa: BLE001 - its own failure, not that of those behind it
            _log.exception("a second arm's request cannot be sent")
            self._end(company, lambda: company.fail(company.requests, "its request cannot be sent"))
        else:
            if message is None:
                self._end(company, lambda: None)
            else:
                self._send(link, company, message)

    def _send(self, link: Link, company: Company, message: bytes) -> None:
        link.send(message)
        if not self._sent:
            self._moved_at = monotonic()
        self._number += 1
        self._sent.append(company)

    def _has_to_send(self) -> bool:
        return bool(self._waiting) and len(self._sent) < _ON_THE_WAY

    def _next(self) -> Company:
        """The company that has waited longest, and those behind it that it can go with."""
        company = self._waiting.popleft()
        requests = company.requests
        while self._waiting and (more := self._waiting[0]).kind == company.kind:
            if len(requests) + len(more.requests) > _MOST:
                break
            requests += more.requests
            self._waiting.popleft()
        return company._replace(requests=requests)

    def _take(self, message: ToWorker) -> None:
        has_loaded, self._is_loading = self._is_loading, isinstance(message, Loading)
        match message:
            case Up():
                self._is_up, self._moved_at = True, monotonic()
            case Done():
                self._check(message)
                company, now = self._sent.popleft(), monotonic()
                if not has_loaded:  # which the next one will not have to
                    each_s = (now - self._moved_at) / len(company.requests)
                    self._each_s += _WEIGHT * (each_s - self._each_s)
                self._moved_at, self._killed_with_first = now, 0
                self._answered.append((company, message.scored))
                self._go_on()

    def _check(self, done: Done) -> None:
        """Raises ContractError for an answer that is not that of the first company sent."""
        sent, number = len(self._sent), self._number - len(self._sent) + 1
        requests = len(self._sent[0].requests) if sent else 0
        if not sent or done.number != number or len(done.scored) != requests:
            got = f"company {done.number} with {len(done.scored)} outcomes"
            expected = f"company {number} with {requests}" if sent else "none"
            raise ContractError("answer of a shadow process", got=got, expected=expected)

    async def _keep(self) -> None:
        """Have a process while there is work, and for a while after it."""
        failed_starts = 0
        while self._waiting or self._sent:
            self._is_up = self._is_loading = False
            link = Link(self._begin, self._take, self._spare)
            try:
                await link.open()
                self._link = link
                self._go_on()
                await self._attend(link)
            except Exception:  # noqa: BLE001 - without this task no second arm is ever scored again
                _log.exception("no shadow process")
            finally:
                self._link = None
                code = await asyncio.shield(link.end())
            failed_starts = 0 if self._is_up else failed_starts + 1
            self._go_over(link, code, give_up=failed_starts >= _TRIES)
            if self._waiting:
                await asyncio.sleep(_AGAIN_S)  # a process that cannot live is not to keep the machine busy
        self._keeper = None
        self._go_on()

    async def _attend(self, link: Link) -> None:
        """Return when the process has ended, is stuck, or has had nothing to do for long."""
        idle_s = 0.0
        while not await link.lost(_TICK_S):
            if not self._sent:
                link.stuck_s = 0.0
            idle_s = 0.0 if self._sent or self._waiting or self._answered else idle_s + _TICK_S
            if idle_s > _REST_S:
                return
            if self._sent and link.stuck_s > self._allowed_s(link):
                link.kill()

    def _allowed_s(self, link: Link) -> float:
        """How long the process may be busy with what it is at."""
        first = self._sent[0]
        if self._is_loading or not self._is_up:
            return _LOADING_S
        if first.patience_s is None or link.is_beside:
            return _UNBOUND_S
        return max(_PATIENCE_S, first.patience_s * len(first.requests))

    def _go_over(self, link: Link, code: int, *, give_up: bool) -> None:
        """What becomes of what was sent: the first is to blame for an end of its own making, the others go again. So
        does the first where it was the arm beside, which nobody has asked for: without it.
        """
        first = self._sent[0] if self._sent else None
        if give_up:
            _log.error("no shadow process comes up: the second arms of %d requests are lost", self._taken)
            self._none_until = monotonic() + _NONE_S
            lost = (*self._sent, *self._waiting)
            self._sent.clear()
            self._waiting.clear()
            for company in lost:
                self._end(company, lambda: None)
        elif first is not None and self._is_up:
            self._killed_with_first += 1
            if link.gave_up or code not in _FROM_OUTSIDE or self._killed_with_first >= _TRIES:
                how = "gave no answer" if link.gave_up else f"ended the process that scored it ({name_of(code)})"
                self._killed_with_first = 0
                if link.is_beside:
                    _log.error("an arm scored for its times alone %s: its company goes again without it", how)
                    # Of a kind of its own: those that wait behind it are compared.
                    self._sent[0] = first._replace(kind=object(), alone=True)
                else:
                    _log.error("a second arm %s", how)
                    self._sent.popleft()
                    self._end(first, lambda: first.fail(first.requests, how))
        self._waiting.extendleft(reversed(self._sent))
        self._sent.clear()

    def _end(self, company: Company, settle: Callable[[], None]) -> None:
        try:
            settle()
        except Exception:  # noqa: BLE001 - one company must not end all later ones
            _log.exception("shadow scoring failed")
        self.release(len(company.requests))
        if not (self._waiting or self._sent or self._answered):
            self._done.set()
