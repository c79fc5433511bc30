"""Releases in memory: verified, with their ONNX session, warm."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from pipelines.contracts.errors import ContractError
from pipelines.contracts.release import InputField, Release
from serving.inputs import bind
from serving.oip import request as oip_request
from serving.online_features.plan import ReadPlan

_ONNX_FLOAT = "tensor(float)"


class LoadedModel:
    """One release ready to score. Made off the request's path; making it verifies, loads and warms it.

    Raises ContractError (bundle or sample request) or an ONNX Runtime error; NotFoundError without a bundle.
    """

    def __init__(self, folder: Path, digest: str) -> None:
        started = time.monotonic()
        self.digest = digest
        self.release = Release(folder, digest)
        self.manifest = self.release.manifest
        self.fields: dict[str, InputField] = {field.name: field for field in self.manifest.inputs}
        self.required = frozenset(field.name for field in self.manifest.inputs if field.required)
        self.reads = ReadPlan({digest: self.manifest.views})
        self._session = _session(self.release.onnx_path)
        self._output = self._session.get_outputs()[0].name
        if self.manifest.output.score not in self.manifest.output.fields:
            raise ContractError(
                "release output",
                got=sorted(self.manifest.output.fields),
                expected=f"a field {self.manifest.output.score}",
            )
        self._warm_up()
        self.load_seconds = time.monotonic() - started

    def predict(self, matrix: np.ndarray) -> np.ndarray:
        """The model's raw scores [rows] of a float32 matrix [rows, features]."""
        raw: Any = self._session.run([self._output], {"features": matrix})[0]
        flat = np.asarray(raw, dtype=np.float64).reshape(-1)
        if len(flat) != len(matrix):
            raise ContractError("model output", got=np.shape(raw), expected=f"one score for each of {len(matrix)} rows")
        return flat

    def _warm_up(self) -> None:
        path = self.release.folder / "sample_request.json"
        if not path.exists():
            return
        request = oip_request.decode(path.read_bytes())
        bound = bind(request, self.fields, self.required, max_rows=10_000)
        # Nothing is read online: a release must be able to answer by its defaults.
        reads = self.reads.without_store(self.reads.keys(bound.columns, bound.rows), "warm-up")
        features = {(read.logged.view, name): column for read in reads.views for name, column in read.columns.items()}
        for _ in range(3):
            raw = self.predict(self.release.matrix(bound.columns, features, bound.rows))
            made = self.release.outputs(raw, bound.columns)
        if missing := sorted(set(self.manifest.output.fields) - set(made)):
            raise ContractError("post-processing of the sample request", got=sorted(made), expected=f"also {missing}")


def _session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    # One thread a session: workers are the unit of parallelism, and a pool's spinning threads would starve them.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    inputs = session.get_inputs()
    if len(inputs) != 1 or inputs[0].name != "features" or inputs[0].type != _ONNX_FLOAT:
        got = [(one.name, one.type) for one in inputs]
        raise ContractError(f"{path}: inputs", got=got, expected=f"one, `features`, {_ONNX_FLOAT}")
    return session
