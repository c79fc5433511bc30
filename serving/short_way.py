"""Infer requests that are answered without ASGI: those read in one turn of the loop together, at its end.

A request costs less together with others than alone: a write to the log and a call of the model serve many, and the
processor does one kind of thing at a time with what it has at hand. Nobody waits for company: a request that is alone
in its turn is answered in it. Where features are read elsewhere, one question is asked for all of a turn.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Coroutine, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from serving.admission import Admission
from serving.gateway import Gateway
from serving.infer import Answer
from serving.infer_together import Begun, Finished, ask_for, begin_together, finish_together, give_up, read_now
from serving.oip import http as oip_http
from serving.oip.errors import Refusal
from serving.oip.request import InferRequest
from serving.replies import Headers, Replies, Reply
from serving.route_table import Plan
from serving.trace_context import sent

if TYPE_CHECKING:
    from serving.direct import DirectProtocol

_MOST = 32
"""Requests that are answered together; more make none of them cheaper."""
_TOGETHER_S = 0.004
"""What answering them may take (wall): others are read, and answers leave, in between."""
_DEARER = 1.25
"""How much more a request may be thought to cost than before: any measurement may be an interruption."""


class Asked:
    """A request that waits for its reply. `since`: when the loop saw that there was something to read (monotonic)."""

    __slots__ = ("body", "connection", "headers", "model", "plan", "reply", "since")

    def __init__(
        self, connection: DirectProtocol, model: str, plan: Plan, headers: Headers, body: bytes, since: float
    ) -> None:
        self.connection = connection
        self.model = model
        self.plan = plan
        self.headers = headers
        self.body = body
        self.since = since
        self.reply: Reply | None = None


class _Company(NamedTuple):
    """Requests on their way together; `asked` and `requests` have one for each of `begun`."""

    asked: list[Asked]
    requests: list[InferRequest]
    begun: Begun


class ShortWay:
    """The requests of one worker that wait for the end of their turn."""

    def __init__(self, gateway: Gateway, admission: Admission, replies: Replies) -> None:
        self._gateway = gateway
        self._admission = admission
        self._replies = replies
        self._waiting: deque[Asked] = deque()
        self._costs_s: dict[str, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def take(self, connection: DirectProtocol, model: str, headers: Headers, body: bytes, since: float) -> Asked | None:
        """Take on a request whose body is here; None when it has to take the general way.

        It has to when more than features would have to be waited for, when no route in force is of its model, and when
        it lacks the clients' token.
        Past the limit of requests in flight it has its reply already.
        """
        gateway = self._gateway
        plan = gateway.table.plans.get(model)
        if plan is None or not gateway.answers_at_once(plan) or len(body) > gateway.limits.max_body_bytes:
            return None
        if not gateway.clients.allows_any_of(headers):
            return None
        asked = Asked(connection, model, plan, headers, body, since)
        try:
            self._admission.check_number(more=1)
        except Refusal as refusal:
            asked.reply = self._replies.of_error(refusal)
            return asked
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._answer_some)
        self._waiting.append(asked)
        return asked

    def _answer_some(self) -> None:
        some = self._next()
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._answer_some)
        near: list[Asked] = []
        far: list[Asked] = []
        for asked in some:
            asked.plan = self._newest_plan(asked)
            (far if self._gateway.reads_elsewhere(asked.plan) else near).append(asked)
        if near:
            self._answer_now(near)
        if far:
            self._answer_later(far)

    def _next(self) -> list[Asked]:
        """The first of those that wait, as many as are answered in a moment; one at least."""
        waiting, costs_s = self._waiting, self._costs_s
        some: list[Asked] = []
        left_s = _TOGETHER_S
        while waiting and len(some) < _MOST:
            left_s -= costs_s.get(waiting[0].model, _TOGETHER_S)
            if some and left_s < 0:
                break
            some.append(waiting.popleft())
        return some

    def _answer_now(self, some: list[Asked]) -> None:
        began = monotonic()
        company = self._begin(some)
        try:
            read_now(self._gateway, company.begun)
        except Exception as error:  # noqa: BLE001 - a fault of ours, told to the clients
            self._fail(company, error)
        self._finish(company)
        self._learn(some, monotonic() - began)

    def _answer_later(self, some: list[Asked]) -> None:
        began = monotonic()
        company = self._begin(some)
        reading = ask_for(self._gateway, company.begun)
        took_s = monotonic() - began

        async def finish() -> None:
            try:
                await reading
            except Exception as error:  # noqa: BLE001 - a fault of ours, told to the clients
                self._fail(company, error)
            began = monotonic()
            self._finish(company)
            self._learn(some, took_s + monotonic() - began)

        self._keep(finish())

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _begin(self, some: list[Asked]) -> _Company:
        """Read the bodies and begin what can be: the others have their replies already."""
        replies, limits = self._replies, self._gateway.limits
        company = _Company([], [], [])
        self._admission.inflight += len(some)
        for asked in some:
            try:
                self._admission.check_wait(asked.since)
                request = oip_http.infer_request(asked.headers, asked.body, limits)
            except Exception as error:  # noqa: BLE001 - told to the client
                self._send(asked, replies.of_error(error, asked.model))
            else:
                company.asked.append(asked)
                company.requests.append(request)
        coming = [
            (asked.plan, request, sent(asked.headers))
            for asked, request in zip(company.asked, company.requests, strict=True)
        ]
        try:
            company.begun.extend(begin_together(self._gateway, coming))
        except Exception as error:  # noqa: BLE001 - a fault of ours, told to the clients
            company.begun.extend([error] * len(coming))
        return company

    def _fail(self, company: _Company, error: Exception) -> None:
        give_up(company.begun)
        company.begun[:] = [error] * len(company.asked)

    def _finish(self, company: _Company) -> None:
        """Score, and send every reply."""
        finished: list[Finished]
        try:
            finished = finish_together(self._gateway, company.begun)
        except Exception as error:  # noqa: BLE001 - a fault of ours, told to the clients
            finished = [error] * len(company.asked)
        for asked, request, one in zip(company.asked, company.requests, finished, strict=True):
            if isinstance(one, (Answer, Exception)):
                self._send(asked, self._reply(asked, request, one))
            else:
                self._keep(self._send_later(asked, request, one))

    async def _send_later(self, asked: Asked, request: InferRequest, answer: Awaitable[Answer]) -> None:
        found: Answer | Exception
        try:
            found = await answer
        except Exception as error:  # noqa: BLE001 - told to the client
            found = error
        self._send(asked, self._reply(asked, request, found))

    def _send(self, asked: Asked, reply: Reply) -> None:
        asked.reply = reply
        self._admission.inflight -= 1
        asked.connection.send_replies()

    def _newest_plan(self, asked: Asked) -> Plan:
        """The newest plan of the model; the one the request came under, when by now it would take the general way."""
        plan = self._gateway.table.plans.get(asked.model, asked.plan)
        return plan if self._gateway.answers_at_once(plan) else asked.plan

    def _reply(self, asked: Asked, request: InferRequest, answer: Answer | Exception) -> Reply:
        if isinstance(answer, Exception):
            return self._replies.of_error(answer, asked.model)
        try:
            return self._replies.of_answer(request, answer)
        except Exception as error:  # noqa: BLE001 - a fault of ours, told to the client
            return self._replies.of_error(error, asked.model)
        finally:
            self._replies.answered(asked.model, answer, int((monotonic() - asked.since) * 1e6))

    def _learn(self, some: Sequence[Asked], took_s: float) -> None:
        """Take in what requests cost; of several models, the same for each."""
        each_s = took_s / len(some)
        for model in {asked.model for asked in some}:
            self._costs_s[model] = min(each_s, _DEARER * self._costs_s.get(model, each_s))
