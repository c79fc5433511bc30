"""Releases in memory: verified, with their ONNX session, warm."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from pipelines.contracts.errors import ContractError, SlipwayError
from pipelines.contracts.pii import KeyedHash
from pipelines.contracts.release import InputField, Release
from serving.inputs import Bound
from serving.oip import request as oip_request
from serving.online_features.plan import ReadPlan
from serving.privacy import binder_of, privacy_of
from serving.row_by_row import MOST_ROWS, scores_row_by_row

Features = dict[tuple[str, str], np.ndarray]
"""Columns read online, by view and feature."""

_log = logging.getLogger("slipway.models")

_ONNX_FLOAT = "tensor(float)"
_LIGHT_S = 0.01
_TRIES = 3
# Clients send their inputs in one order, or a few.
_KEPT_ORDERS = 64


class LoadedModel:
    """One release ready to score. Made off the request's path; making it verifies, loads and warms it.

    Raises ContractError (bundle or sample request) or an ONNX Runtime error; NotFoundError without a bundle.
    """

    def __init__(self, folder: Path, digest: str, keyed: KeyedHash | None = None) -> None:
        started = time.monotonic()
        self.digest = digest
        self.release = Release(folder, digest)
        self.manifest = self.release.manifest
        self.fields: dict[str, InputField] = {field.name: field for field in self.manifest.inputs}
        self.privacy = privacy_of(self.manifest, keyed)
        self.required = frozenset(field.name for field in self.manifest.inputs if field.required)
        features = self.manifest.features
        self.plain_features = frozenset(one.name for one in features if one.source == "input")
        self.binder = binder_of(self.fields, self.required, self.plain_features, self.privacy, keyed)
        self.reads = ReadPlan({digest: self.manifest.views})
        plain = all(one.source == "input" and one.default is None for one in features)
        self._columns = tuple(one.name for one in features) if plain and not self.release.makes_features else None
        self._orders: dict[tuple[str, ...], list[int]] = {}
        self._session = _session(self.release.onnx_path)
        self._outputs = [self._session.get_outputs()[0].name]
        if self.manifest.output.score not in self.manifest.output.fields:
            raise ContractError(
                "release output",
                got=sorted(self.manifest.output.fields),
                expected=f"a field {self.manifest.output.score}",
            )
        sample = self._warm_up()
        asked = self.manifest.batching or None
        self.most_rows = asked.max_size if asked is not None else MOST_ROWS
        self.row_by_row = self._worth_it(sample) and scores_row_by_row(self.predict, sample, self.most_rows)
        """Whether `most_rows` may be scored together: each gets the same bits whatever the others are."""
        self.batching = asked if self.row_by_row else None
        if asked is not None and not self.row_by_row:
            _log.warning("release %s is not batched: a batch would change its scores", digest[:12])
        self.load_seconds = time.monotonic() - started

    def _worth_it(self, sample: np.ndarray) -> bool:
        """Whether requests are ever scored together: light ones of a turn are, and those that the spec has gathered."""
        if self.manifest.batching:
            return True
        began = time.perf_counter()
        for _ in range(_TRIES):
            self.predict(sample[:1])
        return time.perf_counter() - began < _TRIES * _LIGHT_S

    def matrix(self, bound: Bound, features: Features) -> np.ndarray:
        """`Release.matrix` of a request: the same numbers, taken at once where the model's columns are plain inputs."""
        if self._columns is None:
            return self.release.matrix(bound.columns, features, bound.rows)
        block = bound.block
        if bound.names != self._columns:
            order = self._order_of(bound.names)
            if not order:
                return self.release.matrix(bound.columns, features, bound.rows)
            block = block[order]
        made: np.ndarray = block.T.astype(np.float32, order="C")
        return made

    def matrix_of(self, requests: Sequence[tuple[Bound, Features]]) -> np.ndarray:
        """The matrices of several requests, one below the other."""
        names = requests[0][0].names
        if self._columns is not None and all(bound.names == names for bound, _ in requests):
            order = self._order_of(names)
            if order:
                block = np.concatenate([bound.block for bound, _ in requests], axis=1)
                if names != self._columns:
                    block = block[order]
                made: np.ndarray = block.T.astype(np.float32, order="C")
                return made
        return np.concatenate([self.matrix(bound, features) for bound, features in requests])

    def _order_of(self, names: tuple[str, ...]) -> list[int]:
        """Where in a block of these columns the model's lie; empty when some are not in it."""
        order = self._orders.get(names)
        if order is None:
            there = {name: index for index, name in enumerate(names)}
            order = [there[name] for name in self._columns or () if name in there]
            if len(order) != len(self._columns or ()):
                order = []
            if len(self._orders) < _KEPT_ORDERS:
                self._orders[names] = order
        return order

    def predict(self, matrix: np.ndarray) -> np.ndarray:
        """The model's raw scores [rows] of a float32 matrix [rows, features]."""
        raw: Any = self._session.run(self._outputs, {"features": matrix})[0]
        flat: np.ndarray = raw.astype(np.float64).reshape(-1)
        if len(flat) != len(matrix):
            raise ContractError("model output", got=np.shape(raw), expected=f"one score for each of {len(matrix)} rows")
        return flat

    def _warm_up(self) -> np.ndarray:
        """Answer the sample request; its matrix, or a row of zeros when there is none."""
        path = self.release.folder / "sample_request.json"
        if not path.exists():
            return np.zeros((1, len(self.manifest.features)), dtype=np.float32)
        request = oip_request.decode(path.read_bytes())
        bound = self.binder.bind(request, max_rows=10_000)
        # Nothing is read online: a release must be able to answer by its defaults.
        reads = self.reads.without_store(self.reads.keys(bound.columns, bound.rows), "warm-up")
        features = {(read.logged.view, name): column for read in reads.views for name, column in read.columns.items()}
        matrix = self.matrix(bound, features)
        for _ in range(3):
            raw = self.predict(matrix)
            made = self.release.outputs(raw, bound.columns)
        if missing := sorted(set(self.manifest.output.fields) - set(made)):
            raise ContractError("post-processing of the sample request", got=sorted(made), expected=f"also {missing}")
        return matrix


def why_not_loaded(error: BaseException, folder: Path) -> str:
    """Why the release in `folder` could not be loaded, in words for anyone who asks: the log has the error itself.

    No path of this host is in them, and nothing that a library or the release's own code said.
    """
    if not isinstance(error, SlipwayError):
        return f"the model; got {type(error).__name__}; expected ONNX Runtime to take it. The gateway's log says more."
    got = error.got if error.__cause__ is None else type(error.__cause__).__name__
    told = str(SlipwayError(error.what, got=got, expected=error.expected, hint=error.hint))
    return told.replace(f"{folder}/", "").replace(str(folder), "its folder")


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
