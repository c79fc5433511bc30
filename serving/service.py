"""The BentoML service: `python -m bentoml serve serving.service:Gateway`.

BentoML supervises the workers and answers /livez, /readyz and its own pages. The gateway's paths are dispatched ahead
of BentoML's middleware, whose per-request timers and access log would cost most of the throughput.
"""

from __future__ import annotations

import errno
import gc
import logging
import os
import socket
from pathlib import Path
from typing import Any

import bentoml

from pipelines.contracts.errors import SlipwayError
from pipelines.settings import Settings
from serving.crashes import note_crashes
from serving.orphans import end_with_supervisor, note_supervisor

_settings = Settings()
_CHECK_WORKERS_S = 0.5
_YOUNG_OBJECTS = 20_000
"""So many objects more than at the last round of the garbage collector make the next one (Python: 700)."""


@bentoml.service(
    name="slipway_gateway",
    workers=_settings.gateway_workers or "cpu_count",
    # BentoML keeps a timer of this length per request of its own pages; a short one keeps the heap small.
    traffic={"timeout": 1},
    logging={"access": {"enabled": False}},
    metrics={"enabled": False},
)
class Gateway:
    """The gateway: Open Inference Protocol v2, labels and KPIs, rollback. `/docs.json` describes it."""

    # Nothing is served by BentoML's own API layer: see `_ahead_of_bentoml`.


def _ahead_of_bentoml(inner: Any) -> Any:
    """The worker's application: the gateway first, BentoML behind it."""
    from bentoml._internal.context import server_context

    end_with_supervisor()
    _share_metrics()
    from serving.app import GatewayApp
    from serving.connections import install
    from serving.gateway import Gateway as WorkerGateway
    from serving.lifespan import with_lifespan
    from serving.limits import Limits

    logging.getLogger("slipway").setLevel(logging.INFO)
    worker = max(0, (server_context.worker_index or 1) - 1)
    limits = Limits()
    app = GatewayApp(WorkerGateway(_settings, limits, worker))
    install(limits, app)
    return with_lifespan(app, inner, on_started=_freeze_heap)


def _share_metrics() -> None:
    """Workers of one supervisor share a directory of their own: BentoML's default one is shared by installations."""
    folder = _settings.root / "gateway" / _settings.gateway_name / "metrics"
    folder.mkdir(parents=True, exist_ok=True)
    mine = folder / str(os.getppid())
    for old in folder.iterdir():
        if old != mine and not Path(f"/proc/{old.name}").exists():
            for file in old.iterdir():
                file.unlink(missing_ok=True)
            old.rmdir()
    mine.mkdir(exist_ok=True)
    # Counts of a worker that died stay; what it said of its own state ends with it.
    for gauge in mine.glob("gauge_live*_*.db"):
        if not Path(f"/proc/{gauge.stem.rpartition('_')[2]}").exists():
            gauge.unlink(missing_ok=True)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(mine)


def _freeze_heap() -> None:
    """What start-up made lives for ever: the collector need not look at it again, nor often at what requests make."""
    gc.collect()
    gc.freeze()
    # Requests that are under way and pairs that wait are some thousand objects more or less, and no garbage.
    gc.set_threshold(_YOUNG_OBJECTS)


# `to_asgi` is read-only on the instance, so the wrapper sits on the service's class (BentoML 1.4).
_Service: Any = type(Gateway)
_bentoml_to_asgi = _Service.to_asgi


def _to_asgi(self: Any, is_main: bool = True) -> Any:
    app = _bentoml_to_asgi(self, is_main=is_main)
    return _ahead_of_bentoml(app) if self is Gateway else app


_Service.to_asgi = _to_asgi


def _refuse_a_taken_grpc_port() -> None:
    """The workers share the port, and would share it with another gateway, too: each would get some of the calls."""
    host, port = _settings.listen, _settings.gateway_grpc_port
    if not port:
        return
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        # What a gateway that has just ended left behind is no reason to refuse.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            got = "a port in use" if error.errno == errno.EADDRINUSE else str(error)
            raise SlipwayError(
                f"gRPC at {host}:{port}", got=got, expected="a free one", hint="Set SLIPWAY_GATEWAY_GRPC_PORT."
            ) from None


def _replace_dead_workers_soon() -> None:
    """BentoML's supervisor looks for dead workers every 10 s; a gateway's absence should be shorter than that."""
    from bentoml._internal.utils import circus

    arbiter: Any = circus.Arbiter
    bentoml_init = arbiter.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        _refuse_a_taken_grpc_port()
        kwargs["check_delay"] = _CHECK_WORKERS_S
        bentoml_init(self, *args, **kwargs)

    arbiter.__init__ = init


def _note_crashes() -> None:
    from circus.watcher import Watcher  # type: ignore[import-untyped] # circus has no types

    note_crashes(Watcher, _settings.root / "gateway" / _settings.gateway_name / "crashes")


note_supervisor()
_replace_dead_workers_soon()
_note_crashes()
