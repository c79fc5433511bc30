"""ONNX Runtime: the library that scores, offline as online."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pipelines.contracts.errors import ContractError
from pipelines.training.metrics import Vector
from pipelines.training.trainer import Matrix

CHUNK = 65_536


class OnnxModel:
    """A session over a model of our contract. Raises ContractError when it has other inputs or outputs."""

    def __init__(self, source: Path | bytes, threads: int = 1) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        payload: Any = str(source) if isinstance(source, Path) else source
        self._session = ort.InferenceSession(payload, options, providers=["CPUExecutionProvider"])
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if [item.name for item in inputs] != ["features"] or len(outputs) != 1:
            got = f"inputs {[item.name for item in inputs]}, outputs {[item.name for item in outputs]}"
            raise ContractError("ONNX model", got=got, expected="one input `features` and one output")

    def predict(self, x: Matrix) -> Vector:
        """Raw scores [rows] of a matrix [rows, features], in chunks that bound memory."""
        parts = [
            np.ravel(self._session.run(None, {"features": x[start : start + CHUNK]})[0])
            for start in range(0, x.shape[0], CHUNK)
        ]
        return np.concatenate(parts).astype(np.float64) if parts else np.empty(0)
