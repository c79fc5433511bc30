"""Small real things for tests: releases, routes, installations. Usable from both environments (stdlib, msgspec, numpy).

A constant release is a real bundle with a real ONNX model (it gives 0 for every row); its post-processing adds the
score, so one ONNX file serves every release. Faults are parameters of the same post-processing file.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import sqlite3
import tempfile
from pathlib import Path
from typing import Any

from pipelines.contracts import release, routes
from pipelines.contracts.canonical import file_digest

# Shape -> first dimension -> ConstantOfShape(0.0): `features` float32 [rows, any] to `score` float32 [rows]; opset 17.
ONNX = base64.b64decode(
    "CAg63wEKGAoIZmVhdHVyZXMSBXNoYXBlIgVTaGFwZQofCgVzaGFwZQoEemVybwoDb25lEgRyb3dzIgVTbGljZQo2CgRyb3dzEgVzY29yZSIPQ29u"
    "c3RhbnRPZlNoYXBlKhYKBXZhbHVlKgoIARABSgQAAAAAoAEEEghjb25zdGFudCoUCAEQB0IEemVyb0oIAAAAAAAAAAAqEwgBEAdCA29uZUoIAQAA"
    "AAAAAABaHAoIZmVhdHVyZXMSEAoOCAESCgoGEgRyb3dzCgBiFwoFc2NvcmUSDgoMCAESCAoGEgRyb3dzQgQKABAR"
)

_POSTPROCESS = '''\
"""Gives `params["score"]` for every row, or the fault that `params` asks for."""

import os
import time

import numpy as np


def _hit(inputs, share):
    """Whether a fault of this share strikes: a fixed pseudo-random function of the input `x`."""
    if share <= 0:
        return False
    x = np.asarray(inputs.get("x", np.zeros(1)), dtype=np.float64)
    x = np.nan_to_num(x[:1], nan=0.0)[0]
    return (np.sin(x * 12.9898 + 78.233) * 43758.5453) % 1.0 < share


def apply(raw, inputs, params):
    if params["sleep_s"] and _hit(inputs, params["sleep_share"]):
        time.sleep(params["sleep_s"])  # a slow release, on order
    if params["crash_share"] and _hit(inputs, params["crash_share"]):
        os.abort()
    if _hit(inputs, params["error_share"]):
        raise RuntimeError("this release was built to fail")
    score = raw + params["score"]
    if params["slope"]:
        score = score + params["slope"] * np.nan_to_num(np.asarray(inputs["x"], dtype=np.float64))
    if _hit(inputs, params["invalid_share"]):
        score = score * np.nan
    return {"score": score, "decision": score >= params["threshold"]}
'''


def constant_release(
    releases_dir: Path,
    model: str,
    score: float,
    *,
    semver: str = "1.0.0",
    error: bool = False,
    invalid: bool = False,
    error_share: float = 0.0,
    invalid_share: float = 0.0,
    crash_share: float = 0.0,
    sleep_s: float = 0.0,
    sleep_share: float = 1.0,
    slope: float = 0.0,
    threshold: float = 0.5,
    low: float | None = 0.0,
    high: float | None = 1.0,
    inputs: list[release.InputField] | None = None,
    views: list[release.ViewPin] | None = None,
    features: list[release.ModelFeature] | None = None,
    sample: bool = True,
    task: str = "constant",
    on_features_unavailable: str = "defaults",
    manifest_fields: dict[str, Any] | None = None,
) -> str:
    """Write the bundle of a release that answers `score + slope * x`; returns its digest. Same call, same digest.

    Inputs: optional `x` (FP64, null becomes 0) and optional `origin` (BYTES), unless `inputs` is given (keep an `x`).
    Outputs: `score` FP64 and `decision` BOOL (score >= threshold). `error` / `invalid` fail for every request,
    `error_share` / `invalid_share` / `sleep_share` / `crash_share` for that share of the values of `x` (a fixed
    function of `x`); a failure raises in post-processing, an invalid score is NaN, a crash ends the process.
    """
    params: dict[str, Any] = {
        "score": score,
        "slope": slope,
        "threshold": threshold,
        "error_share": 1.0 if error else error_share,
        "invalid_share": 1.0 if invalid else invalid_share,
        "crash_share": crash_share,
        "sleep_s": sleep_s,
        "sleep_share": sleep_share,
    }
    fields = [
        release.InputField(name="x", datatype="FP64", required=False),
        release.InputField(name="origin", datatype="BYTES", required=False),
    ]
    contents = {"model.onnx": ONNX, "postprocess.py": _POSTPROCESS.encode()}
    # A release that always fails could not answer its own sample request, and would never be loaded.
    if sample and not (error or invalid or crash_share or sleep_s or inputs or error_share or invalid_share):
        tensor = {"name": "x", "shape": [1], "datatype": "FP64", "data": [0.5]}
        contents["sample_request.json"] = json.dumps({"inputs": [tensor]}).encode()
    releases_dir.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=".staged-", dir=releases_dir))
    for name, data in contents.items():
        (staged / name).write_bytes(data)
    manifest = release.Manifest(
        model=model,
        semver=semver,
        task=task,
        inputs=inputs if inputs is not None else fields,
        views=views or [],
        features=features or [release.ModelFeature(name="x", source="input", default=0.0)],
        on_features_unavailable=on_features_unavailable,
        output=release.OutputContract(low=low, high=high, fields={"score": "FP64", "decision": "BOOL"}),
        postprocess_params=params,
        files={name: file_digest(staged / name) for name in contents},
        **(manifest_fields or {}),
    )
    digest = release.write(staged, manifest)
    try:
        os.rename(staged, releases_dir / digest)  # noqa: PTH104 - fails when the same release is already there
    except OSError:
        shutil.rmtree(staged)
    return digest


def publish_route(control_db: Path | str, route: routes.Route) -> None:
    """Append a route to the control database, as orchestration does.

    `control_db`: a SQLite file (made with its `route` table when absent), or the URL of a Postgres one that is there.
    """
    row = (route.model, route.version, routes.encode(route))
    if isinstance(control_db, str):
        import psycopg

        with psycopg.connect(control_db) as postgres:
            postgres.execute("INSERT INTO route VALUES (%s, %s, %s)", row)
        return
    control_db.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(control_db, timeout=10)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        with connection:
            connection.execute(
                "CREATE TABLE IF NOT EXISTS route"
                " (model TEXT NOT NULL, version INTEGER NOT NULL, document TEXT NOT NULL, PRIMARY KEY (model, version))"
            )
            connection.execute("INSERT INTO route VALUES (?, ?, ?)", row)
    finally:
        connection.close()
