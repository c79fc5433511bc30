"""The gateway's second door: the protocol over gRPC, on the same core as HTTP.

Every worker listens on the one port (SO_REUSEPORT); the kernel gives each new connection to one of them.
"""

from __future__ import annotations

import asyncio
import logging
import math
from time import perf_counter_ns
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from serving import pairs
from serving.admission import Admission
from serving.call_queue import CallQueue
from serving.gateway import Gateway
from serving.infer import infer, infer_pinned
from serving.oip import grpc_codec
from serving.oip.errors import Malformed, Refusal, Unavailable
from serving.oip.grpc_messages import SERVICE, message_class
from serving.oip.response import Prediction, model_metadata, server_metadata
from serving.pinned import PinnedModels

_log = logging.getLogger("slipway.grpc")

METHODS = ("ServerLive", "ServerReady", "ServerMetadata", "ModelReady", "ModelMetadata", "ModelInfer")
STATUS: dict[int, grpc.StatusCode] = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.FAILED_PRECONDITION,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
}
"""What a refusal's HTTP status is in gRPC."""

_LET_IN_S = 1.0
"""How long a door that closes goes on taking up calls, to refuse them (wall)."""
_DETAIL_CHARS = 4000  # a status travels in HTTP/2 trailers, whose size clients bound at 8 KiB


class GrpcDoor:
    """Serves GRPCInferenceService for one worker's gateway."""

    def __init__(self, gateway: Gateway, pinned: PinnedModels, admission: Admission) -> None:
        self._gateway = gateway
        self._pinned = pinned
        self._admission = admission
        self._calls = CallQueue()
        self._server: grpc.aio.Server | None = None
        self._closes = False

    async def start(self, address: str) -> None:
        """Listen on `address` (host:port). Raises RuntimeError when that cannot be."""
        limits = self._gateway.limits
        server = grpc.aio.server(
            options=(
                ("grpc.so_reuseport", 1),
                ("grpc.max_allowed_incoming_connections", limits.max_connections),
                # Calls that gRPC has read and this process has not taken up yet.
                ("grpc.server.max_pending_requests", limits.max_inflight),
                ("grpc.server.max_pending_requests_hard_limit", limits.max_inflight),
                ("grpc.server_max_unrequested_time_in_server", max(1, math.ceil(limits.max_queue_ms / 1000))),
                ("grpc.max_receive_message_length", limits.max_body_bytes),
                ("grpc.max_metadata_size", limits.max_head_bytes),
                ("grpc.server_handshake_timeout_ms", int(limits.head_timeout_s * 1000)),
                ("grpc.max_send_message_length", -1),
            ),
        )
        handlers = {name: self._handler(name) for name in METHODS}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        server.add_insecure_port(address)
        await server.start()
        self._server = server

    async def stop(self, grace_s: float) -> None:
        """Take no more calls, and answer those begun within `grace_s` (wall).

        gRPC ends what it has read and nobody has taken up as CANCELLED, which no client may send again. So that is
        taken up first, to be refused as UNAVAILABLE.
        """
        if self._server is not None:
            self._closes = True
            await self._calls.let_in(_LET_IN_S)
            await self._server.stop(grace_s)

    def _handler(self, name: str) -> Any:
        """The method with refusals as statuses. Requests are parsed here, so that bad bytes are the client's error."""
        request_class, response_class = message_class(f"{name}Request"), message_class(f"{name}Response")

        async def call(body: bytes, context: Any) -> Any:
            try:
                try:
                    request = request_class.FromString(body)
                except DecodeError as error:
                    raise Malformed(name, got=str(error), expected=f"a {name}Request") from None
                if name == "ModelInfer":
                    authorization = _sent(context, "authorization")
                    self._gateway.clients.check(authorization.encode() if authorization is not None else None)
                    return await self._admitted(request, _sent(context, "traceparent"))
                return response_class(**await self._describe(name, request))
            except Refusal as refusal:
                self._gateway.metrics.refused.labels(str(refusal.status)).inc()
                if refusal.retryable:
                    # gRPC's own word for Retry-After.
                    wait_ms = str(self._gateway.limits.retry_after_s * 1000)
                    context.set_trailing_metadata((("grpc-retry-pushback-ms", wait_ms),))
                await context.abort(STATUS[refusal.status], str(refusal)[:_DETAIL_CHARS])
            except Exception:  # noqa: BLE001 - a fault of ours is answered and logged, as it is over HTTP
                _log.exception("unexpected error in %s", name)
                self._gateway.metrics.refused.labels("500").inc()
                await context.abort(grpc.StatusCode.INTERNAL, "internal error; the gateway's log has the details")

        return grpc.unary_unary_rpc_method_handler(call, None, response_class.SerializeToString)

    async def _describe(self, name: str, request: Any) -> dict[str, Any]:
        """The methods that only tell: the fields of their response."""
        match name:
            case "ServerLive":
                return {"live": True}
            case "ServerReady":
                return {"ready": self._gateway.started}
            case "ServerMetadata":
                return server_metadata()
            case "ModelReady":
                try:
                    await self._metadata(request)
                except Unavailable:
                    return {"ready": False}
                return {"ready": True}
            case _:
                return await self._metadata(request)

    async def _metadata(self, request: Any) -> dict[str, Any]:
        """What GET of the model or its version says. Raises Unknown and Unavailable."""
        if request.version:
            loaded = await self._pinned.get(request.name, request.version)
            return model_metadata(loaded.manifest, [loaded.manifest.semver])
        plan = self._gateway.table.plan(request.name)
        versions = await asyncio.to_thread(self._pinned.versions, request.name)
        return model_metadata(plan.champion.manifest, list(versions))

    async def _admitted(self, message: Any, traceparent: str | None) -> Any:
        """`_infer` under the limits that HTTP has. The other methods are never shed. Raises Overloaded, Unavailable."""
        if self._closes:
            self._calls.count()
            raise Unavailable("gateway", got="a worker that ends", expected="one that goes on", hint="Send it again.")
        self._admission.inflight += 1
        try:
            self._admission.check_number()
            self._admission.check_wait(await self._calls.turn())
            return await self._infer(message, traceparent)
        finally:
            self._admission.inflight -= 1

    async def _infer(self, message: Any, traceparent: str | None) -> Any:
        raw = bool(message.raw_input_contents)
        if message.model_version:
            loaded = await self._pinned.get(message.model_name, message.model_version)
            request = grpc_codec.infer_request(message)
            return grpc_codec.infer_response(request, await infer_pinned(self._gateway, loaded, request), raw=raw)
        started = perf_counter_ns()
        plan = self._gateway.table.plan(message.model_name)
        request = grpc_codec.infer_request(message)
        answer = await infer(self._gateway, plan, request, traceparent)
        try:
            if not isinstance(answer.result, Prediction):
                raise answer.result
            return grpc_codec.infer_response(request, answer.result, raw=raw)
        finally:
            if answer.pair is not None:
                pairs.put((answer.pair,))
            took_us = (perf_counter_ns() - started) // 1000
            self._gateway.metrics.request_times(message.model_name).observe(took_us)


def _sent(context: Any, wanted: str) -> str | None:
    for name, value in context.invocation_metadata() or ():
        if name == wanted:
            return str(value)
    return None
