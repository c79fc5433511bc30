"""The gateway's ASGI application: paths to handlers, refusals to protocol errors. Pure ASGI, no framework on the way.

Run alone with `uvicorn --factory serving.app:create`; in production `serving.service` puts it ahead of BentoML's own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

from pipelines.settings import Settings
from serving import feedback, rollback
from serving.admission import Admission
from serving.connections import ARRIVED
from serving.gateway import Gateway
from serving.infer import Answer, infer, infer_at_once, infer_pinned
from serving.json_depth import refuse_deeper
from serving.metrics import CONTENT_TYPE
from serving.oip import http as oip_http
from serving.oip.errors import Malformed, Overloaded, Refusal, TooLarge, Unavailable, Unknown, WrongMethod
from serving.oip.request import InferRequest
from serving.oip.response import Prediction, error_body, model_metadata, server_metadata, to_json
from serving.pinned import PinnedModels

if TYPE_CHECKING:
    from serving.grpc_door import GrpcDoor

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

Headers = Sequence[tuple[bytes, bytes]]
Reply = tuple[int, bytes, bytes, Headers]
"""Status, body, content type, further headers."""

_log = logging.getLogger("slipway.app")

_GRPC_GRACE_S = 5.0
"""How long calls over gRPC that have begun may take when the gateway stops (wall)."""


class GatewayApp:
    """Answers every path under /v1, /v2 and /metrics; `owns` tells which those are."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.pinned = PinnedModels(gateway.settings.releases, gateway.limits.pinned_releases, gateway.keyed)
        self.admission = Admission(gateway.limits)
        self._buffered = 0

    @staticmethod
    def owns(path: str) -> bool:
        """Whether this application answers the path."""
        return path.startswith(("/v2/", "/v1/")) or path in ("/v2", "/metrics")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One HTTP request."""
        self.admission.inflight += 1
        try:
            self._admit(scope)
            await self._serve(scope, receive, send)
        except Refusal as refusal:
            await _reply(send, *self._refusal(refusal))
        except Exception:  # noqa: BLE001 - a fault of ours is answered and logged, never a dropped connection
            await _reply(send, *self._fault(scope["path"]))
        finally:
            self.admission.inflight -= 1

    def _admit(self, scope: Scope) -> None:
        """Raises Overloaded past the limit of requests in flight, or for one that waited too long for its turn."""
        if _sheddable(scope):
            self.admission.check_number()
        self._check_wait(scope)

    def _check_wait(self, scope: Scope) -> None:
        """Raises Overloaded for a request that waited too long for its turn, since its head or its body was here."""
        arrived = scope.get(ARRIVED)
        if arrived is not None and _sheddable(scope):
            self.admission.check_wait(arrived)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        parts = scope["path"].strip("/").split("/")
        match parts:
            case ["v2", "models", model, "infer"]:
                _method(scope, "POST")
                await self._infer(model, scope, receive, send)
            case ["v2", "models", model, "versions", version, "infer"]:
                _method(scope, "POST")
                body = await self._body(scope, receive)
                loaded = await self.pinned.get(model, version)
                request = oip_http.infer_request(scope["headers"], body, self.gateway.limits)
                prediction = await infer_pinned(self.gateway, loaded, request)
                await _reply(send, 200, *oip_http.infer_response(request, prediction))
            case ["v1", "models", model, "labels" | "kpis" as kind]:
                _method(scope, "POST")
                self.gateway.table.plan(model)
                body = await self._json(scope, receive)
                take = feedback.take_labels if kind == "labels" else feedback.take_kpis
                await _reply(send, 202, to_json({"accepted": await take(self.gateway, model, body)}))
            case ["v1", "models", model, "rollback"]:
                _method(scope, "POST")
                rollback.authorize(self.gateway, _header(scope, b"authorization"))
                body = await self._json(scope, receive)
                done = await rollback.roll_back(self.gateway, self.gateway.table.plan(model), body)
                await _reply(send, 200, to_json(done))
            case _:
                await self._describe(parts, scope, send)

    async def _infer(self, model: str, scope: Scope, receive: Receive, send: Send) -> None:
        started = perf_counter_ns()
        plan = self.gateway.table.plan(model)
        body = await self._body(scope, receive)
        headers = scope["headers"]
        request = oip_http.infer_request(headers, body, self.gateway.limits)
        answer = await infer(self.gateway, plan, request, _traceparent(headers))
        try:
            await _reply(send, *self._form(request, answer))
        finally:
            self._answered(model, answer, started)

    def infer_at_once(self, model: str, headers: Headers, body: bytes, turn_began: float) -> Reply | None:
        """The reply to an infer request whose body is here, or None when it takes the general way.

        It does when something would have to be waited for, and when it is not a plain request for a model in force.
        `turn_began` is when the loop saw that there was something to read: requests read in one turn wait for each
        other, and one that waited too long is refused as on the general way.
        """
        gateway = self.gateway
        plan = gateway.table.plans.get(model)
        limits = gateway.limits
        if plan is None or not gateway.answers_at_once(plan) or len(body) > limits.max_body_bytes:
            return None
        started = perf_counter_ns()
        try:
            self.admission.check_wait(turn_began)
            if self.admission.inflight >= limits.max_inflight:
                raise _overloaded()
            request = oip_http.infer_request(headers, body, limits)
            answer = infer_at_once(gateway, plan, request, _traceparent(headers))
            reply = self._form(request, answer)
        except Refusal as refusal:
            return self._refusal(refusal)
        except Exception:  # noqa: BLE001 - as in `__call__`
            return self._fault(f"/v2/models/{model}/infer")
        self._answered(model, answer, started)
        return reply

    def _answered(self, model: str, answer: Answer, started_ns: int) -> None:
        self.gateway.shadow.requests += 1
        if answer.after is not None:
            self.gateway.shadow.put(answer.after)
        self.gateway.metrics.request_times(model).observe((perf_counter_ns() - started_ns) // 1000)

    async def _describe(self, parts: list[str], scope: Scope, send: Send) -> None:
        """The paths that only tell: metadata, health, routes, metrics."""
        gateway = self.gateway
        match parts:
            case ["metrics"]:
                await _reply(send, 200, gateway.metrics.render(), CONTENT_TYPE)
                return
            case ["v2"]:
                described: Any = server_metadata()
            case ["v2", "health", "live"]:
                described = {"live": True}
            case ["v2", "health", "ready"]:
                _check(gateway.started, "gateway", "still starting")
                described = {"ready": True}
            case ["v2", "models", model]:
                plan = self.gateway.table.plan(model)
                versions = await asyncio.to_thread(self.pinned.versions, model)
                described = model_metadata(plan.champion.manifest, list(versions))
            case ["v2", "models", model, "ready"]:
                self.gateway.table.plan(model)
                described = {"name": model, "ready": True}
            case ["v2", "models", model, "versions", version]:
                loaded = await self.pinned.get(model, version)
                described = model_metadata(loaded.manifest, [loaded.manifest.semver])
            case ["v2", "models", model, "versions", version, "ready"]:
                await self.pinned.get(model, version)
                described = {"name": model, "version": version, "ready": True}
            case ["v1", "routes"]:
                described = self._routes()
            case _:
                raise Unknown("path", got=scope["path"], expected="a path of the gateway", hint="GET /v2 describes it.")
        _method(scope, "GET")
        await _reply(send, 200, to_json(described))

    def _routes(self) -> dict[str, Any]:
        table = self.gateway.table
        return {
            "gateway": self.gateway.settings.gateway_name,
            "database": table.source.error or "ok",
            "shadow_waiting": self.gateway.shadow.taken,
            "routes": [
                {
                    "model": model,
                    "version": plan.route.version,
                    "route": plan.route,
                    "effective": plan.effective,
                    "overrides": [
                        {
                            "id": str(held.event.id),
                            "reason": held.event.reason,
                            "actor": held.event.actor,
                            "action": held.event.action,
                            "rollout_id": held.event.rollout_id,
                            "withdrawn": held.withdrawn,
                            "cleared_by": held.cleared_by,
                        }
                        for held in self.gateway.overrides.of(model)
                    ],
                }
                for model, plan in sorted(table.plans.items())
            ],
            "pending": [{"model": model, "version": route.version} for model, route in sorted(table.pending.items())],
            "load_errors": dict(table.load_errors),
        }

    async def _json(self, scope: Scope, receive: Receive) -> bytes:
        body = await self._body(scope, receive)
        refuse_deeper(body, self.gateway.limits.max_json_depth)
        return body

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """The request's body. Raises TooLarge, Malformed for one that does not come in time, and Overloaded.

        A body that came apart from its head has waited for a turn of its own: bodies that are completed together wait
        for each other.
        """
        limit = self.gateway.limits.max_body_bytes
        length = _header(scope, b"content-length")
        if length is not None and length.isdigit() and int(length) > limit:
            raise TooLarge("body", got=f"{int(length)} bytes", expected=f"at most {limit}")
        message = await receive()
        body: bytes = message.get("body", b"")
        if message.get("more_body"):
            body = await self._rest(body, receive)
        if message["type"] == "http.disconnect":
            raise _gone()
        if len(body) > limit:
            raise TooLarge("body", got=f"{len(body)} bytes", expected=f"at most {limit}")
        self._check_wait(scope)
        return body

    async def _rest(self, body: bytes, receive: Receive) -> bytes:
        """A body that comes in parts. How long it may take is watched by the connection (`serving/connections.py`)."""
        limits = self.gateway.limits
        chunks = [body]
        size = len(body)
        self._buffered += size
        try:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise _gone()
                chunk: bytes = message.get("body", b"")
                chunks.append(chunk)
                size += len(chunk)
                self._buffered += len(chunk)
                if size > limits.max_body_bytes:
                    raise TooLarge("body", got=f"{size} bytes or more", expected=f"at most {limits.max_body_bytes}")
                if self._buffered > limits.max_buffered_bytes:
                    raise Overloaded("gateway", got="too many bodies on their way", hint="Send it again later.")
                if not message.get("more_body"):
                    return b"".join(chunks)
        finally:
            self._buffered -= size

    def _refusal(self, refusal: Refusal) -> Reply:
        self.gateway.metrics.refused.labels(str(refusal.status)).inc()
        headers = refusal.headers
        if refusal.retryable:
            headers = (*headers, (b"retry-after", str(self.gateway.limits.retry_after_s).encode()))
        return refusal.status, error_body(str(refusal)), oip_http.JSON, headers

    def _fault(self, path: str) -> Reply:
        """The reply when something went wrong that is our fault; call it where the exception is handled."""
        _log.exception("unexpected error on %s", path)
        self.gateway.metrics.refused.labels("500").inc()
        return 500, error_body("internal error; the gateway's log has the details"), oip_http.JSON, ()

    def _form(self, request: InferRequest, answer: Answer) -> Reply:
        if isinstance(answer.result, Prediction):
            return 200, *oip_http.infer_response(request, answer.result)
        return self._refusal(answer.result)


def _traceparent(headers: Headers) -> str | None:
    for name, value in headers:
        if name == b"traceparent":
            return value[:128].decode("latin-1") or None
    return None


def _overloaded() -> Overloaded:
    return Overloaded("gateway", got="more requests than it can serve", hint="Send it again later.")


def _sheddable(scope: Scope) -> bool:
    """Health, metrics and rollback are never shed: an overloaded gateway has to be seen and obeyed."""
    return scope["method"] == "POST" and not scope["path"].endswith("/rollback")


def _gone() -> Malformed:
    return Malformed("body", got="a part of it", expected="all of it: the connection has ended")


def _check(condition: bool, what: str, got: str) -> None:
    if not condition:
        raise Unavailable(what, got=got, expected="to be ready")


def _method(scope: Scope, method: str) -> None:
    if scope["method"] != method and not (method == "GET" and scope["method"] == "HEAD"):
        raise WrongMethod("method", got=scope["method"], expected=method)


def _header(scope: Scope, name: bytes) -> bytes | None:
    for key, value in scope["headers"]:
        if key == name:
            found: bytes = value
            return found
    return None


async def _reply(
    send: Send,
    status: int,
    body: bytes,
    content_type: bytes = oip_http.JSON,
    headers: Headers = (),
) -> None:
    base = [(b"content-type", content_type), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*base, *headers]})
    await send({"type": "http.response.body", "body": body})


def with_lifespan(app: GatewayApp, inner: App | None, on_started: Callable[[], None] = lambda: None) -> App:
    """The application in front of `inner`, which answers what the gateway does not own.

    The gateway starts before `inner` does and stops after it, so that nothing is accepted before it can be logged.
    """

    async def dispatch(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (inner is None or app.owns(scope["path"])):
            await app(scope, receive, send)
        elif scope["type"] == "lifespan":
            await lifespan(scope, receive, send)
        elif inner is not None:
            await inner(scope, receive, send)

    async def lifespan(scope: Scope, receive: Receive, send: Send) -> None:
        grpc_door: GrpcDoor | None = None

        async def on_receive() -> MutableMapping[str, Any]:
            nonlocal grpc_door
            message = await receive()
            if message["type"] == "lifespan.startup":
                await app.gateway.start()
                grpc_door = await _open_grpc(app)
                on_started()
            elif grpc_door is not None:
                await grpc_door.stop(_GRPC_GRACE_S)
            return message

        async def on_send(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "lifespan.shutdown.complete":
                await app.gateway.stop()
            await send(message)

        if inner is not None:
            await inner(scope, on_receive, on_send)
            return
        await on_receive()
        await send({"type": "lifespan.startup.complete"})
        await on_receive()
        await on_send({"type": "lifespan.shutdown.complete"})

    return dispatch


async def _open_grpc(app: GatewayApp) -> GrpcDoor | None:
    """The gRPC door, where a port is set for it."""
    settings = app.gateway.settings
    if not settings.gateway_grpc_port:
        return None
    from serving.grpc_door import GrpcDoor

    door = GrpcDoor(app.gateway, app.pinned, app.admission)
    host = f"[{settings.listen}]" if ":" in settings.listen else settings.listen
    await door.start(f"{host}:{settings.gateway_grpc_port}")
    return door


def create() -> App:
    """A complete application from the environment's settings, without BentoML."""
    return with_lifespan(GatewayApp(Gateway(Settings())), None)
