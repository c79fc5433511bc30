"""The gateway's ASGI application: paths to handlers. Pure ASGI, no framework on the way."""

from __future__ import annotations

import asyncio
from time import perf_counter_ns
from typing import Any

import msgspec

from serving import feedback, openapi, rollback
from serving.admission import Admission
from serving.bodies import Bodies, Receive, Scope, Send, header
from serving.connections import ARRIVED
from serving.gateway import Gateway
from serving.infer import infer, infer_pinned
from serving.json_depth import refuse_deeper
from serving.metrics import CONTENT_TYPE
from serving.oip import http as oip_http
from serving.oip.errors import Unavailable, Unknown, WrongMethod
from serving.oip.response import model_metadata, server_metadata, to_json
from serving.pinned import PinnedModels
from serving.replies import Headers, Replies
from serving.short_way import ShortWay
from serving.trace_context import sent


class GatewayApp:
    """Answers every path under /v1 and /v2, /metrics, /docs.json and /; `owns` tells which those are."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.pinned = PinnedModels(gateway.settings.releases, gateway.limits.pinned_releases, gateway.keyed)
        self.replies = Replies(gateway)
        self.admission = Admission(gateway.limits)
        self.short_way = ShortWay(gateway, self.admission, self.replies)
        self._bodies = Bodies(gateway.limits)

    @staticmethod
    def owns(path: str) -> bool:
        """Whether this application answers the path."""
        return path.startswith(("/v2/", "/v1/")) or path in ("/", "/v2", "/metrics", "/docs.json")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One HTTP request."""
        self.admission.inflight += 1
        try:
            if _sheddable(scope):
                self.admission.check_number()
            self._check_wait(scope)
            await self._serve(scope, receive, send)
        except Exception as error:  # noqa: BLE001 - a fault of ours is answered and logged, never a dropped connection
            await _reply(send, *self.replies.of_error(error, scope["path"]))
        finally:
            self.admission.inflight -= 1

    def _check_wait(self, scope: Scope) -> None:
        """Raises Overloaded for a request that waited too long for its turn, since its head or its body was here."""
        arrived = scope.get(ARRIVED)
        if arrived is not None and _sheddable(scope):
            self.admission.check_wait(arrived)

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """The request's body. Raises as `Bodies.read`, and Overloaded.

        A body that came apart from its head has waited for a turn of its own: bodies that are completed together wait
        for each other.
        """
        body = await self._bodies.read(scope, receive)
        self._check_wait(scope)
        return body

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        parts = scope["path"].strip("/").split("/")
        match parts:
            case ["v2", "models", model, "infer"]:
                _method(scope, "POST")
                self.gateway.clients.check(header(scope, b"authorization"))
                await self._infer(model, scope, receive, send)
            case ["v2", "models", model, "versions", version, "infer"]:
                _method(scope, "POST")
                self.gateway.clients.check(header(scope, b"authorization"))
                body = await self._body(scope, receive)
                loaded = await self.pinned.get(model, version)
                request = oip_http.infer_request(scope["headers"], body, self.gateway.limits)
                prediction = await infer_pinned(self.gateway, loaded, request)
                await _reply(send, 200, *oip_http.infer_response(request, prediction))
            case ["v1", "models", model, "labels" | "kpis" as kind]:
                _method(scope, "POST")
                self.gateway.clients.check(header(scope, b"authorization"))
                self.gateway.table.plan(model)
                body = await self._json(scope, receive)
                take = feedback.take_labels if kind == "labels" else feedback.take_kpis
                await _reply(send, 202, to_json({"accepted": await take(self.gateway, model, body)}))
            case ["v1", "models", model, "rollback"]:
                _method(scope, "POST")
                self.gateway.operators.check(header(scope, b"authorization"))
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
        answer = await infer(self.gateway, plan, request, sent(headers))
        try:
            await _reply(send, *self.replies.of_answer(request, answer))
        finally:
            self.replies.answered(model, answer, (perf_counter_ns() - started) // 1000)

    async def _describe(self, parts: list[str], scope: Scope, send: Send) -> None:
        """The paths that only tell: metadata, health, routes, metrics."""
        gateway = self.gateway
        match parts:
            case ["metrics"]:
                _method(scope, "GET")
                await _reply(send, 200, gateway.metrics.render(), CONTENT_TYPE)
                return
            case [""]:
                _method(scope, "GET")
                await _reply(send, 200, openapi.PAGE, b"text/html; charset=utf-8", openapi.PAGE_HEADERS)
                return
            case ["v2"]:
                described: Any = server_metadata()
            case ["docs.json"]:
                described = openapi.document()
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
                described = self._routes(for_operator=gateway.operators.allows(header(scope, b"authorization")))
            case _:
                raise Unknown("path", got=scope["path"], expected="a path of the gateway", hint="GET /v2 describes it.")
        _method(scope, "GET")
        await _reply(send, 200, to_json(described))

    def _routes(self, *, for_operator: bool) -> dict[str, Any]:
        """What `/v1/routes` tells. Who knows the salt can choose a unit for an arm: it is shown to operators alone."""
        table = self.gateway.table
        return {
            "gateway": self.gateway.settings.gateway_name,
            "database": table.source.state,
            "shadow_waiting": self.gateway.shadow.taken,
            "routes": [
                {
                    "model": model,
                    "version": plan.route.version,
                    "route": plan.route if for_operator else msgspec.structs.replace(plan.route, salt=""),
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
        body = oip_http.unfolded(scope["headers"], await self._body(scope, receive), self.gateway.limits)
        refuse_deeper(body, self.gateway.limits.max_json_depth)
        return body


def _sheddable(scope: Scope) -> bool:
    """Health, metrics and rollback are never shed: an overloaded gateway has to be seen and obeyed."""
    return scope["method"] == "POST" and not scope["path"].endswith("/rollback")


def _check(condition: bool, what: str, got: str) -> None:
    if not condition:
        raise Unavailable(what, got=got, expected="to be ready")


def _method(scope: Scope, method: str) -> None:
    if scope["method"] != method and not (method == "GET" and scope["method"] == "HEAD"):
        raise WrongMethod(got=scope["method"], allowed="GET, HEAD" if method == "GET" else method)


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
