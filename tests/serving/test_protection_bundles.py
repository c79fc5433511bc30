"""A release that holds a pickle is never loaded: the route before it stands, and the gateway says why."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from tests.serving.conftest import Installation, Start

pytestmark = pytest.mark.anyio


class Trap:
    """Unpickling it would leave a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


async def test_a_release_with_a_pickle_is_not_loaded(home: Installation, start: Start, tmp_path: Path) -> None:
    home.publish()
    trapped = home.rebuilt({"encoder.json": pickle.dumps(Trap(tmp_path / "trap"))})
    async with start() as running:
        home.publish(champion=trapped)
        await running.until(lambda: bool(running.gateway.table.load_errors))
        assert (await running.infer()).json()["parameters"]["release"] == home.champion
        pinned = await running.client.post("/v2/models/m/versions/2.0.0/infer", json={"inputs": []})
        routes = (await running.client.get("/v1/routes")).json()
    assert pinned.status_code == 503
    for told in (pinned.json()["error"], str(routes["load_errors"])):
        assert "encoder.json; got a pickle" in told
        assert "export the model as ONNX" in told
    assert not (tmp_path / "trap").exists()
