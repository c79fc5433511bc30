"""`bentoml build` makes a bento of the gateway that is served as the checkout is. (`bentoml containerize` runs the
bento's own Dockerfile, which needs Docker: here its install command is tried, and what it starts is started.)
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import httpx

from pipelines.contracts.events import Assignment
from pipelines.settings import PROJECT
from tests.serving.conftest import Installation
from tests.serving.processes import bentoml_serve


def test_a_built_bento_serves_with_its_own_code_and_the_locked_packages(home: Installation, tmp_path: Path) -> None:
    store = tmp_path / "bentoml"
    build = subprocess.run(
        [PROJECT / "scripts" / "build-bento", "--version", "test"],
        env=os.environ | {"BENTOML_HOME": str(store), "SLIPWAY_HOME": str(home.home)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert build.returncode == 0, build.stdout + build.stderr
    assert build.stdout.strip().endswith("slipway_gateway:test")
    bento = store / "bentos" / "slipway_gateway" / "test"
    left_out = {path.name for path in (bento / "src" / "pipelines").iterdir()}
    assert left_out == {"__init__.py", "settings.py", "contracts"}, "orchestration is no part of it"

    # The Dockerfile's own install command, against the environment that the same lock has made: nothing to change.
    dockerfile = (bento / "env" / "docker" / "Dockerfile").read_text()
    assert "pip install -r $BENTO_PATH/env/python/requirements.txt" in dockerfile
    requirements = bento / "env" / "python" / "requirements.txt"
    uv = shutil.which("uv", path=f"{PROJECT / '.tools' / 'uv' / 'bin'}{os.pathsep}{os.environ['PATH']}")
    assert uv is not None
    install = [uv, "pip", "install", "--dry-run", "--offline", "--python", sys.executable, "-r", str(requirements)]
    tried = subprocess.run(install, capture_output=True, text=True, check=False)
    assert tried.returncode == 0, tried.stderr
    assert "Would make no changes" in tried.stderr

    home.publish()
    compiled = tmp_path / "compiled"
    environment = {"BENTOML_HOME": str(store), "PYTHONPYCACHEPREFIX": str(compiled), "PYTHONDONTWRITEBYTECODE": ""}
    with bentoml_serve(home.home, "slipway_gateway:test", cwd=tmp_path, **environment) as gateway:
        body = {"inputs": [{"name": "x", "datatype": "FP64", "shape": [1], "data": [1.0]}]}
        answer = httpx.post(f"{gateway.url}/v2/models/m/infer", json=body)
        assert answer.json()["parameters"]["release"] == home.champion
        assert httpx.get(f"{gateway.url}/readyz").status_code == 200
        gateway.stop()
    assert len(home.events(Assignment)) == 1
    # Python compiles what it imports: the bento's files, and none of the checkout.
    assert list((compiled / bento.relative_to("/") / "src" / "serving").glob("app.*.pyc"))
    assert not list((compiled / PROJECT.relative_to("/") / "serving").glob("*.pyc"))
