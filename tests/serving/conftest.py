"""An in-process gateway with its real parts (log, routes in SQLite, ONNX releases), and the events it wrote."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.patience import patient

__all__ = ["patient"]

if importlib.util.find_spec("bentoml") is None:
    # The other environment: these tests run with serving/.venv.
    collect_ignore_glob = ["test_*.py"]
else:
    import httpx
    import msgspec
    from hypothesis import settings as hypothesis_settings

    from pipelines.contracts import events, release, segments
    from pipelines.contracts.canonical import file_digest
    from pipelines.contracts.routes import Route
    from pipelines.settings import PROJECT, Settings
    from serving.app import GatewayApp
    from serving.gateway import Gateway
    from serving.limits import Limits
    from tests.builders import constant_release, publish_route
    from tests.postgres import PostgresServer, running_postgres

    # A busy machine is no fault of the code. (Hypothesis' own profile for CI says so, and draws the same every time.)
    if os.environ.get("CI") != "true":
        hypothesis_settings.register_profile("no deadline", deadline=None)
        hypothesis_settings.load_profile("no deadline")

TOKEN = "sesame"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Installation:
    """A home with two releases of model `m` (champion 0.3, challenger 0.7) and a control database."""

    def __init__(self, home: Path, control_url: str = "") -> None:
        self.home = home
        self.control_url = control_url
        self.version = 0
        self.champion = self.release(0.3)
        self.challenger = self.release(0.7, semver="1.1.0")

    def release(self, score: float, **options: Any) -> str:
        return constant_release(self.home / "releases", options.pop("model", "m"), score, **options)

    def rebuilt(self, files: dict[str, bytes]) -> str:
        """The champion's bundle with these files, added or in the place of its own, and a manifest that names them."""
        staged = self.home / "releases" / ".staged"
        shutil.copytree(self.home / "releases" / self.champion, staged)
        for name, content in files.items():
            (staged / name).write_bytes(content)
        manifest = msgspec.json.decode((staged / "release.json").read_bytes(), type=release.Manifest)
        named = manifest.files | {name: file_digest(staged / name) for name in files}
        digest = release.write(staged, msgspec.structs.replace(manifest, files=named, semver="2.0.0"))
        staged.rename(self.home / "releases" / digest)
        return digest

    def settings(self, **values: Any) -> Settings:
        fixed = {"token": TOKEN, "route_poll_ms": 20, "control_url": self.control_url}
        return Settings(home=self.home, **(fixed | values))

    def publish(self, mode: str = "single", **fields: Any) -> Route:
        """Publish the next route of `m`."""
        self.version += 1
        fields.setdefault("champion", self.champion)
        if mode != "single":
            fields.setdefault("challenger", self.challenger)
            fields.setdefault("rollout_id", "r1")
            fields.setdefault("salt", "salt")
            fields.setdefault("shadow", True)
        route = Route(model=fields.pop("model", "m"), version=self.version, mode=mode, **fields)
        publish_route(self.control_url or self.home / "control.db", route)
        return route

    def events(self, kind: type | None = None) -> list[Any]:
        """Everything in the inference log, in order, of one kind or all."""
        found = []
        for path in sorted((self.home / "bus").rglob("*.seg")):
            found += [events.decode(one.payload) for one in segments.read_frames(path.read_bytes())]
        return [event for event in found if kind is None or isinstance(event, kind)]


class Running:
    """A started gateway and a client that talks to its application in process."""

    def __init__(self, app: GatewayApp, client: httpx.AsyncClient) -> None:
        self.app = app
        self.gateway = app.gateway
        self.client = client

    async def infer(self, request_id: str | None = None, x: Any = 1.0, **more: Any) -> httpx.Response:
        data = x if isinstance(x, list) else [x]
        body: dict[str, Any] = {
            "inputs": [{"name": "x", "datatype": "FP64", "shape": [len(data)], "data": data}],
            **more,
        }
        if request_id is not None:
            body["id"] = request_id
        return await self.client.post("/v2/models/m/infer", json=body)

    async def in_force(self, version: int) -> None:
        """Wait until the route of `m` with this version is followed."""
        await self.until(lambda: self.gateway.table.plans["m"].route.version == version)

    async def until(self, condition: Callable[[], bool], timeout_s: float = 30.0) -> float:
        """Wait for the condition; how many seconds it took."""
        import anyio

        began = anyio.current_time()
        with anyio.fail_after(timeout_s):
            while not condition():  # noqa: ASYNC110 - the conditions are state of other threads
                await anyio.sleep(0.005)
        return anyio.current_time() - began

    async def shadows_done(self) -> None:
        await self.until(lambda: self.gateway.shadow.taken == 0)


Start = Callable[..., AbstractAsyncContextManager[Running]]


@pytest.fixture
def home(tmp_path: Path) -> Installation:
    return Installation(tmp_path / "home")


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    with running_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def control_template(postgres: PostgresServer) -> str:
    """The name of a database with orchestration's own schema, made by orchestration's own code."""
    url = postgres.new_database()
    make_control_db(url)
    return url.rpartition("/")[2]


@pytest.fixture
def home_on_postgres(tmp_path: Path, postgres: PostgresServer, control_template: str) -> Installation:
    return Installation(tmp_path / "home", postgres.new_database(control_template))


def make_control_db(url: str) -> None:
    """Make the schema; the gateway's environment has neither SQLAlchemy nor a reason to."""
    make = "import sys; from pipelines.adapters.control_db import ControlDb; ControlDb(sys.argv[1]).engine.dispose()"
    python = PROJECT / ".venv" / "bin" / "python"
    done = subprocess.run([python, "-c", make, url], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def start(home: Installation) -> Start:
    @asynccontextmanager
    async def starting(
        limits: dict[str, Any] | None = None, at: Installation = home, **settings: Any
    ) -> AsyncIterator[Running]:
        gateway = Gateway(at.settings(**settings), Limits(fsync_ms=5, **(limits or {})))
        await gateway.start()
        app = GatewayApp(gateway)
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            try:
                yield Running(app, client)
            finally:
                await gateway.stop()

    return starting
