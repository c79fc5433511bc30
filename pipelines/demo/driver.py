"""The driver of the replay: event time moves on hour by hour, and everything that must happen in an hour happens.

In each hour: features known by its start are readable online, the application asks for the hour's flights, and the
truths and costs that became known are reported. The driver waits where a person would: when a stage has the requests it
asked for, until its gate has spoken.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from pipelines.contracts.clocks import Clock
from pipelines.demo.application import Answer, Application, Ask, Fact
from pipelines.demo.world import World

HOUR_US = 3_600_000_000
FACTS_EVERY = 6

Cost = Callable[[dict[str, Any], float], float]
Payload = Callable[[Ask], dict[str, Any]]


class Publisher(Protocol):
    """Makes readable online what is known at an event time."""

    def tick(self, as_of_us: int) -> int: ...


@dataclass(slots=True)
class Replay:
    """One model's replay. `now_us` is event now: the clock's tick.

    `cost` makes the KPI of a served answer and its truth; `payload` makes what the application really sends.
    """

    model: str
    world: World
    application: Application
    publisher: Publisher
    clock: Clock
    now_us: int
    cost: Cost | None = None
    keep: int = 1
    payload: Payload | None = None
    sent: int = 0
    _owed: list[tuple[int, str, float, float | None]] = field(default_factory=list)
    _reporting: asyncio.Task[None] | None = None

    async def jump(self, to_us: int) -> None:
        """Event now becomes `to_us` with no request in between; what became known is reported."""
        self.now_us = to_us
        self.clock.tick(to_us)
        await self._report()

    async def hours(self, until: Callable[[], bool], end_us: int, on_hour: Callable[[int, int], None]) -> bool:
        """Replay whole hours until `until()` holds or event now reaches `end_us`; tells which (True: it holds).

        `on_hour(event_us, requests)` is called behind each hour.
        """
        hour, holds = 0, until()
        while not holds and self.now_us < end_us:
            asked = await self._hour()
            hour += 1
            if hour % FACTS_EVERY == 0:
                self._start_report()
            on_hour(self.now_us, asked)
            holds = until()
        await self._report()
        return holds

    async def _hour(self) -> int:
        end = self.now_us + HOUR_US
        self.publisher.tick(self.now_us)
        asks = self.world.between(self.now_us, end, self.keep)
        if self.payload is not None:
            asks = [Ask(ask.request_id, ask.event_us, self.payload(ask)) for ask in asks]
        if asks:
            await self.application.ask(self.model, asks, self.world.datatypes, self._remember)
            await self.application.paired()
        self.sent += len(asks)
        self.now_us = end
        self.clock.tick(end)
        return len(asks)

    def _remember(self, answer: Answer) -> None:
        truth = self.world.truths.get(answer.request_id)
        if truth is None:
            return
        kpi = self.cost(answer.outputs, truth.value) if self.cost else None
        heapq.heappush(self._owed, (max(truth.known_us, answer.event_us), answer.request_id, truth.value, kpi))

    def _known(self) -> tuple[list[Fact], list[Fact]]:
        labels: list[Fact] = []
        kpis: list[Fact] = []
        while self._owed and self._owed[0][0] <= self.now_us:
            at, request_id, value, kpi = heapq.heappop(self._owed)
            labels.append(Fact(request_id, at, value))
            if kpi is not None:
                kpis.append(Fact(request_id, at, kpi))
        return labels, kpis

    def _start_report(self) -> None:
        if self._reporting is None or self._reporting.done():
            if self._reporting is not None:
                self._reporting.result()
            self._reporting = asyncio.create_task(self._send(*self._known()))

    async def _report(self) -> None:
        if self._reporting is not None:
            await self._reporting
            self._reporting = None
        await self._send(*self._known())

    async def _send(self, labels: list[Fact], kpis: list[Fact]) -> None:
        await asyncio.gather(
            *([self.application.labels(self.model, labels)] if labels else []),
            *([self.application.kpis(self.model, kpis)] if kpis else []),
        )


def moment(text: str) -> int:
    """Microseconds of an RFC 3339 date or time; without a zone it is UTC."""
    parsed = datetime.fromisoformat(text)
    aware = parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)
    return int(aware.timestamp()) * 1_000_000
