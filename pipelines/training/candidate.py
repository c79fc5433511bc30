"""A candidate: a fitted model on its way to a release, in a folder that later jobs read by reference.

    candidates/<id>/candidate.json     how it was made
                    model.onnx         fitted on all labelled rows with the parameters found
                    evaluation.npz     test rows: positions among the labelled rows, raw scores of the rehearsal
                    parity.npz         real rows: positions, and the scores the fitting library itself gives
                    metrics.json       after `evaluate`
                    release            after `export`: the release's digest
                    gates.json         after `offline_gates`

The id is a digest of everything that goes in, so a retried job finds its own work.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from pipelines.contracts.canonical import digest
from pipelines.contracts.errors import NotFoundError
from pipelines.training.gates import GateVerdict


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """Rows of one part of the split and the times of its first and last request (microseconds)."""

    rows: int
    from_us: int
    to_us: int


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """How a candidate was made. `trials` is [{number, value, params}]; `importance` by feature, summing to 1."""

    id: str
    model: str
    spec: dict[str, Any]
    spec_digest: str
    training_set: str
    as_of_us: int
    trainer: str
    params: dict[str, Any]
    objective: str
    trials: list[dict[str, Any]]
    calibration: dict[str, Any]
    importance: dict[str, float]
    split: dict[str, Parts]
    seconds: dict[str, float]
    code: dict[str, str]
    started_us: int


def identify(spec_digest: str, training_set: str, code: dict[str, str]) -> str:
    """The id of the candidate that these make."""
    return digest({"spec": spec_digest, "training_set": training_set, "code": code})[:24]


class Candidates:
    """The folder of candidates of an installation."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, candidate: str) -> Path:
        """Where the candidate lies. Raises NotFoundError."""
        path = self.root / candidate
        if not (path / "candidate.json").is_file():
            raise NotFoundError("candidate", got=candidate, expected=f"a folder in {self.root}")
        return path

    def exists(self, candidate: str) -> bool:
        """Whether the candidate was fitted to the end."""
        return (self.root / candidate / "candidate.json").is_file()

    def save(
        self, made: Candidate, onnx: bytes, evaluation: dict[str, np.ndarray], parity: dict[str, np.ndarray]
    ) -> str:
        """Write a fitted candidate, whole or not at all, and return its id."""
        staged = self.root / f".staged-{os.getpid()}"
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir(parents=True)
        (staged / "model.onnx").write_bytes(onnx)
        for name, arrays in (("evaluation.npz", evaluation), ("parity.npz", parity)):
            with (staged / name).open("wb") as handle:
                np.savez(handle, allow_pickle=False, **arrays)
        (staged / "candidate.json").write_bytes(msgspec.json.encode(made))
        shutil.rmtree(self.root / made.id, ignore_errors=True)
        staged.rename(self.root / made.id)
        return made.id

    def load(self, candidate: str) -> Candidate:
        """How the candidate was made."""
        return msgspec.json.decode((self.folder(candidate) / "candidate.json").read_bytes(), type=Candidate)

    def arrays(self, candidate: str, name: str) -> dict[str, np.ndarray]:
        """`evaluation` or `parity`."""
        with np.load(self.folder(candidate) / f"{name}.npz", allow_pickle=False) as stored:
            return {key: stored[key] for key in stored.files}

    def onnx(self, candidate: str) -> bytes:
        """The model's bytes."""
        return (self.folder(candidate) / "model.onnx").read_bytes()

    def put_metrics(self, candidate: str, metrics: dict[str, Any]) -> None:
        """What `evaluate` found."""
        _replace(self.folder(candidate) / "metrics.json", msgspec.json.encode(metrics))

    def metrics(self, candidate: str) -> dict[str, Any]:
        """What `evaluate` found. Raises NotFoundError before."""
        path = self.folder(candidate) / "metrics.json"
        if not path.is_file():
            raise NotFoundError(f"metrics of candidate {candidate}", hint="Run `evaluate` first.")
        found: dict[str, Any] = msgspec.json.decode(path.read_bytes())
        return found

    def put_release(self, candidate: str, release: str) -> None:
        """Remember the release that `export` made."""
        _replace(self.folder(candidate) / "release", release.encode())

    def release(self, candidate: str) -> str | None:
        """The release that `export` made, if it did."""
        path = self.folder(candidate) / "release"
        return path.read_text() if path.is_file() else None

    def put_gates(self, candidate: str, verdicts: list[GateVerdict]) -> None:
        """What `offline_gates` found."""
        _replace(self.folder(candidate) / "gates.json", msgspec.json.encode(verdicts))

    def gates(self, candidate: str) -> list[GateVerdict] | None:
        """What `offline_gates` found; None before."""
        path = self.folder(candidate) / "gates.json"
        return msgspec.json.decode(path.read_bytes(), type=list[GateVerdict]) if path.is_file() else None


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_bytes(data)
    temporary.replace(path)
