"""The life of a worker's application: the gateway starts before anything is accepted, and stops after the last answer.

    uvicorn --factory serving.lifespan:create

runs it alone; in production `serving.service` puts it ahead of BentoML's own.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from pipelines.settings import Settings
from serving.app import GatewayApp
from serving.bodies import App, Receive, Scope, Send
from serving.gateway import Gateway

if TYPE_CHECKING:
    from serving.grpc_door import GrpcDoor

_GRPC_GRACE_S = 5.0
"""How long calls over gRPC that have begun may take when the gateway stops (wall)."""


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
