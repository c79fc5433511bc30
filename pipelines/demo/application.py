"""The application of the rehearsal: asks the gateway, remembers the answers, and reports truths and costs.

It knows the gateway only by its HTTP interface, as any caller would.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import aiohttp

from pipelines.contracts.errors import TerminalError, TransientError

CONCURRENCY = 16
PER_CALL = 2000


@dataclass(frozen=True, slots=True)
class Ask:
    """One prediction asked for: id, event time in microseconds, inputs by name."""

    request_id: str
    event_us: int
    inputs: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: the outputs by name."""

    request_id: str
    event_us: int
    outputs: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Fact:
    """A truth or a cost for a request: `value` became known at `event_us`."""

    request_id: str
    event_us: int
    value: float


@dataclass(slots=True)
class Tally:
    """What the application itself counted. While the disk is full or slow, an answer says that it is not logged."""

    sent: int = 0
    logged: int = 0


def oip_inputs(inputs: dict[str, Any], datatypes: dict[str, str]) -> list[dict[str, Any]]:
    """Inputs by name as OIP v2 tensors of one row; a missing value is left out."""
    return [
        {"name": name, "datatype": datatypes[name], "shape": [1], "data": [value]}
        for name, value in inputs.items()
        if value is not None
    ]


class Application:
    """An asynchronous client of one gateway. Use as an asynchronous context manager."""

    def __init__(self, url: str, *, replay: bool) -> None:
        self.url = url
        self.replay = replay
        self.tally = Tally()
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Application:
        connector = aiohttp.TCPConnector(limit=CONCURRENCY)
        self._session = aiohttp.ClientSession(self.url, connector=connector, timeout=aiohttp.ClientTimeout(total=20))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def ask(
        self, model: str, asks: Sequence[Ask], datatypes: dict[str, str], on_answer: Callable[[Answer], None]
    ) -> None:
        """Ask for all of `asks`, `CONCURRENCY` at a time. Raises TerminalError on an answer other than 200."""
        queue = iter(asks)

        async def worker() -> None:
            for ask in queue:
                on_answer(await self._infer(model, ask, datatypes))

        await asyncio.gather(*(worker() for _ in range(min(CONCURRENCY, len(asks)))))

    async def _infer(self, model: str, ask: Ask, datatypes: dict[str, str]) -> Answer:
        body: dict[str, Any] = {"id": ask.request_id, "inputs": oip_inputs(ask.inputs, datatypes)}
        if self.replay:
            body["parameters"] = {"event_time": ask.event_us}
        self.tally.sent += 1
        answer = await self._post(f"/v2/models/{model}/infer", body, (200,))
        self.tally.logged += bool(answer["parameters"]["logged"])
        outputs = {output["name"]: output["data"][0] for output in answer["outputs"]}
        return Answer(answer["id"], ask.event_us, outputs)

    async def labels(self, model: str, facts: Sequence[Fact]) -> None:
        """Report truths; returns once the gateway has them on disk."""
        await self._report(f"/v1/models/{model}/labels", "labels", facts)

    async def kpis(self, model: str, facts: Sequence[Fact]) -> None:
        """Report costs; returns once the gateway has them on disk."""
        await self._report(f"/v1/models/{model}/kpis", "kpis", facts)

    async def _report(self, path: str, key: str, facts: Sequence[Fact]) -> None:
        for start in range(0, len(facts), PER_CALL):
            part = facts[start : start + PER_CALL]
            rows = [{"id": fact.request_id, "value": fact.value, "at": fact.event_us} for fact in part]
            await self._post(path, {key: rows}, (202,))

    async def paired(self) -> None:
        """Wait until the gateway's second arms have scored what they owe: they too must see this hour's features."""
        assert self._session is not None
        for _ in range(200):
            async with self._session.get("/v1/routes") as response:
                if (await response.json())["shadow_waiting"] == 0:
                    return
            await asyncio.sleep(0.005)  # the gateway's second arms are still at work

    async def stage_of(self, model: str) -> str:
        """The stage of the route that the gateway follows for a model; empty when it has none."""
        assert self._session is not None
        async with self._session.get("/v1/routes") as response:
            routes = (await response.json())["routes"]
        return next((str(each["route"]["stage"]) for each in routes if each["model"] == model), "")

    async def _post(self, path: str, body: dict[str, Any], good: tuple[int, ...]) -> Any:
        assert self._session is not None
        for attempt in range(20):
            try:
                async with self._session.post(
                    path, data=json.dumps(body), headers={"content-type": "application/json"}
                ) as response:
                    text = await response.text()
                    if response.status in good:
                        return json.loads(text) if text else {}
                    if response.status not in (429, 503):
                        raise TerminalError(f"POST {path}", got=f"{response.status} {text[:300]}", expected=str(good))
            except (TimeoutError, aiohttp.ClientConnectionError):
                pass
            await asyncio.sleep(0.05 * (attempt + 1))  # an overloaded or restarting gateway needs a moment
        raise TransientError(
            f"POST {path}", got="no answer in 20 tries", expected=str(good), hint="slipway status; logs/gateway.log"
        )
