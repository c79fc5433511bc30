"""Two releases for the serving benchmarks: 200-tree LightGBM binary models over 10 float features, as the project's own
trainer fits them, its exporter turns them into ONNX, and its registry bundles them.

    .venv/bin/python -m benchmarks.gateway_release HOME           prints {"champion": digest, "challenger": digest}
    .venv/bin/python -m benchmarks.gateway_release HOME heavy     prints {"alone": digest, "gathered": digest}

The heavy ones are one model of 800 trees with 511 leaves, without and with `serving.batching`.

Deterministic: the same digests every time. Runs in the orchestration environment.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import msgspec
import numpy as np

from pipelines.adapters.lightgbm_trainer import LightGbmTrainer
from pipelines.contracts.release import Batching, InputField, Manifest, ModelFeature, OutputContract
from pipelines.registry import bundle
from pipelines.training.recipe import PLAIN_POSTPROCESS
from pipelines.training.trainer import Rows

MODEL = "bench"
FEATURES = [f"f{k}" for k in range(10)]
TREES, LEAVES, ROWS = 200, 31, 20_000


def fitted_onnx(seed: int, **params: int) -> bytes:
    """Train one model and export it."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(ROWS, len(FEATURES))).astype(np.float32)
    y = (x[:, 0] + x[:, 1] * x[:, 2] + np.sin(3 * x[:, 3]) + rng.normal(size=ROWS) > 0).astype(np.float64)
    rows = Rows(x, y)
    return LightGbmTrainer().fit("binary", rows, params, seed=seed, watch=None).to_onnx()


def release(releases: Path, onnx: bytes, semver: str, batching: Batching | msgspec.UnsetType = msgspec.UNSET) -> str:
    """Bundle a model; returns the digest of its release."""
    sample = {"inputs": [{"name": n, "datatype": "FP32", "shape": [1], "data": [0.25]} for n in FEATURES]}
    files = {
        "model.onnx": onnx,
        "postprocess.py": PLAIN_POSTPROCESS.read_bytes(),
        "sample_request.json": bundle.json_file(sample),
    }
    manifest = Manifest(
        model=MODEL,
        semver=semver,
        task="binary",
        inputs=[InputField(name=name, datatype="FP32") for name in FEATURES],
        features=[ModelFeature(name=name, source="input") for name in FEATURES],
        output=OutputContract(low=0.0, high=1.0),
        postprocess_params={"score": "score", "low": 0.0, "high": 1.0},
        files={},
        batching=batching,
    )
    with bundle.staged(releases, manifest, files) as staged:
        return bundle.install(releases, staged)


if __name__ == "__main__":
    folder = Path(sys.argv[1]) / "releases"
    if sys.argv[2:] == ["heavy"]:
        heavy = fitted_onnx(1, num_leaves=511, num_iterations=800, min_child_samples=5)
        gathered = release(folder, heavy, "2.1.0", Batching(max_size=16, max_wait_ms=5))
        made = {"alone": release(folder, heavy, "2.0.0"), "gathered": gathered}
    else:
        champion, challenger = (fitted_onnx(seed, num_leaves=LEAVES, num_iterations=TREES) for seed in (1, 2))
        made = {"champion": release(folder, champion, "1.0.0"), "challenger": release(folder, challenger, "1.1.0")}
    print(json.dumps(made))
