"""The release bundle: a folder named by the SHA-256 of its manifest, which names every file by SHA-256.

    <digest>/release.json          the manifest (canonical JSON; its SHA-256 is the release's digest)
             model.onnx            one float32 input [rows, features] named `features`, one float32 score output
             request_features.py   optional: def build(inputs, features) -> dict[str, numpy array]   (numpy only)
             postprocess.py        optional: def apply(raw, inputs, params) -> dict[str, numpy array] (numpy only)
             reference.json        reference profile for drift
             metrics.json          offline metrics
             sample_request.json   an OIP request that must be answered

Loading verifies every digest before a byte is used, and refuses a bundle that holds a pickle, whatever its name: a
pickle runs code that nobody can read, and nothing here would load it, so there is no opt-in. The two source files
become modules named by their digest, so champion and challenger run side by side, and training runs the very same file.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from math import isfinite
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from pipelines.contracts.canonical import canonical_json, file_digest
from pipelines.contracts.errors import ContractError, NotFoundError
from pipelines.contracts.source_functions import load_function

SCHEMA = "slipway-release/1"
SOURCES = ("request_features.py", "postprocess.py")
_Source = tuple[Path, str]  # a file and its SHA-256
_PICKLE_SUFFIXES = frozenset({".pkl", ".pickle", ".joblib", ".dill", ".cloudpickle", ".pt", ".pth", ".npy", ".npz"})
# PROTO of protocols 2 to 5; earlier ones have no mark and go by their name.
_PICKLE_MARKS = tuple(bytes((0x80, protocol)) for protocol in range(2, 6))
Columns = dict[str, np.ndarray]

_LARGEST = sys.float_info.max


class InputField(msgspec.Struct, frozen=True, kw_only=True):
    """One request input by name. `datatype` is an OIP v2 datatype (BYTES for text); `required=False` gives null.

    `pii`: an entity key that is personal. The gateway puts its keyed hash (contracts/pii.py) in its place before
    anything else sees it; requests in the lake hold the hash already. Unset in manifests without it, whose bytes and
    digests so stay what they were.
    """

    name: str
    datatype: str
    required: bool = True
    pii: bool | msgspec.UnsetType = msgspec.UNSET


class ViewPin(msgspec.Struct, frozen=True, kw_only=True):
    """One feature view version the release reads online. `entity` maps join keys to request input names."""

    view: str
    entity: dict[str, str]
    join_key_types: dict[str, str]
    features: list[str]
    ttl_us: int | None = None


class ModelFeature(msgspec.Struct, frozen=True, kw_only=True):
    """One column of the model's input matrix, in order.

    `source`: `input` (a numeric request input), `request` (made by request_features.py) or `view` (`view` names it).
    `default` stands where the value is missing; None gives NaN.
    """

    name: str
    source: Literal["input", "request", "view"]
    view: str | None = None
    default: float | None = None


class OutputContract(msgspec.Struct, frozen=True, kw_only=True):
    """What a valid answer is: the score's closed range, and the names and OIP datatypes of all outputs."""

    score: str = "score"
    low: float | None = None
    high: float | None = None
    fields: dict[str, str] = msgspec.field(default_factory=lambda: {"score": "FP64"})


class Batching(msgspec.Struct, frozen=True, kw_only=True):
    """How requests are gathered for a heavy model: up to `max_size` rows, for up to `max_wait_ms` (wall)."""

    max_size: int
    max_wait_ms: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The release's manifest. Everything that can change an answer is in it or named by digest in `files`."""

    schema: str = SCHEMA
    model: str
    semver: str
    task: Literal["binary", "regression", "constant"]
    inputs: list[InputField]
    views: list[ViewPin] = []
    features: list[ModelFeature]
    on_features_unavailable: Literal["defaults", "refuse"] = "defaults"
    """When the online store cannot be read in time: answer by the features' defaults, or not at all (503)."""
    on_failure: Literal["error", "batch_score"] = "error"
    """Where no release gives an answer: the error, or the last batch score of that request."""
    output: OutputContract = OutputContract()
    postprocess_params: dict[str, Any] = {}
    files: dict[str, str]
    training: dict[str, Any] = {}
    created_us: int = 0
    dropped_inputs: list[str] | msgspec.UnsetType = msgspec.UNSET
    """Inputs that clients may send and that are dropped unread: PII that comes along."""
    pii_key: str | msgspec.UnsetType = msgspec.UNSET
    """`KeyedHash.key_id` of the key under which `pii` inputs were hashed in training."""
    batching: Batching | msgspec.UnsetType = msgspec.UNSET
    """Requests are gathered and scored together; unset, none waits for another."""


_decoder = msgspec.json.Decoder(Manifest)


def manifest_bytes(manifest: Manifest) -> bytes:
    """Canonical JSON of the manifest."""
    return canonical_json(msgspec.to_builtins(manifest))


def write(folder: Path, manifest: Manifest) -> str:
    """Write `release.json` into a staged folder and return the release's digest. The caller renames it into place."""
    data = manifest_bytes(manifest)
    (folder / "release.json").write_bytes(data)
    return file_digest(folder / "release.json")


def verify(folder: Path, release: str) -> Manifest:
    """The manifest, when the manifest and every file it names have the promised digests, and no other file lies there.

    Raises NotFoundError when the folder is missing and ContractError naming the file that is wrong.
    """
    path = folder / "release.json"
    if not path.is_file():
        raise NotFoundError("release", got=release[:12], expected=f"a bundle in {folder}")
    if (got := file_digest(path)) != release:
        raise ContractError(
            f"{path}", got=got[:12], expected=release[:12], hint="The bundle was changed after its making."
        )
    try:
        manifest = _decoder.decode(path.read_bytes())
    except msgspec.MsgspecError as error:
        raise ContractError(f"{path}", got=str(error), expected=SCHEMA) from error
    if manifest.schema != SCHEMA:
        raise ContractError(f"{path}: schema", got=manifest.schema, expected=SCHEMA)
    there = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {"release.json"}
    if extra := sorted(there ^ set(manifest.files)):
        raise ContractError(
            f"{folder}: files", got=sorted(there), expected=sorted(manifest.files), hint=f"Differs: {extra}"
        )
    for name, promised in manifest.files.items():
        if (got := file_digest(folder / name)) != promised:
            raise ContractError(f"{folder / name}", got=got[:12], expected=promised[:12])
        refuse_pickle(folder / name)
    return manifest


def refuse_pickle(path: Path) -> None:
    """Raises ContractError for a file that is a pickle, or of a kind that holds pickles, by its name or first bytes."""
    with path.open("rb") as handle:
        marked = handle.read(2) in _PICKLE_MARKS
    if marked or path.suffix.lower() in _PICKLE_SUFFIXES:
        raise ContractError(
            f"{path}",
            got="a pickle, or a file that may hold one",
            expected="ONNX, JSON, Python source or text",
            hint="Pickles run code when they are read; export the model as ONNX.",
        )


class Release:
    """A verified bundle, ready to turn request inputs and feature values into the model's matrix and its outputs.

    The ONNX session is not here: the caller makes it (`contracts` depends on numpy and msgspec alone).
    """

    def __init__(self, folder: Path, digest: str) -> None:
        self.folder = folder
        self.digest = digest
        manifest = verify(folder, digest)
        files = manifest.files
        build, apply = ((folder / name, files[name]) if name in files else None for name in SOURCES)
        self._take(manifest, build, apply)

    def _take(self, manifest: Manifest, build: _Source | None, apply: _Source | None) -> None:
        """Take up what the methods below work with: a manifest, and the source files that the release has."""
        self.manifest = manifest
        self._defaults = _defaults(manifest.features)
        self._build: Callable[..., Columns] | None = None
        self._apply: Callable[..., Columns] | None = None
        if build is not None:
            self._build = load_function(*build, "build")
        if apply is not None:
            self._apply = load_function(*apply, "apply")

    @property
    def makes_features(self) -> bool:
        """Whether the release has code that makes request features."""
        return self._build is not None

    @property
    def onnx_path(self) -> Path:
        """The model's file."""
        return self.folder / "model.onnx"

    def matrix(self, inputs: Columns, features: dict[tuple[str, str], np.ndarray], rows: int) -> np.ndarray:
        """The model's input, float32 [rows, features].

        `inputs` by request input name; `features` by (view, feature name); both arrays of length `rows`, NaN or None
        where missing. Raises ContractError naming a column that cannot be made, or holds a number past float32's range.
        """
        made: Columns = {}
        if self._build is not None:
            flat = {name: values for (_, name), values in features.items()}
            made = self._build(inputs, flat)
        matrix = np.empty((rows, len(self.manifest.features)), dtype=np.float32)
        with np.errstate(over="raise"):  # once: it costs as much as a column of a few rows
            for index, feature in enumerate(self.manifest.features):
                column: np.ndarray | None
                if feature.source == "view":
                    column = features.get((feature.view or "", feature.name))
                else:
                    column = (made if feature.source == "request" else inputs).get(feature.name)
                if column is None:
                    matrix[:, index] = np.nan
                    continue
                try:
                    values = np.asarray(column, dtype=np.float64)
                except (TypeError, ValueError) as error:
                    raise ContractError(f"feature {feature.name}", got=str(error), expected="numbers") from error
                try:
                    matrix[:, index] = values
                except FloatingPointError:
                    raise _past_float32(feature, values) from None
        if self._defaults is not None:
            np.copyto(matrix, self._defaults, where=np.isnan(matrix))
        return matrix

    def outputs(self, raw: np.ndarray, inputs: Columns) -> Columns:
        """The answer's columns from the model's raw scores [rows]; without post-processing `{score: raw}`."""
        if self._apply is None:
            return {self.manifest.output.score: np.asarray(raw, dtype=np.float64)}
        return self._apply(np.asarray(raw, dtype=np.float64), inputs, self.manifest.postprocess_params)

    def valid(self, score: np.ndarray | list[float]) -> bool:
        """Whether every score is finite and inside the output contract's range."""
        contract = self.manifest.output
        low = -_LARGEST if contract.low is None else max(contract.low, -_LARGEST)
        high = _LARGEST if contract.high is None else min(contract.high, _LARGEST)
        # A list costs more as an array. NaN is neither smaller nor larger than anything, but it shows in the sum.
        if isinstance(score, list) and isfinite(sum(score)):
            return low <= min(score, default=low) and max(score, default=high) <= high
        values = np.asarray(score)
        # NaN is in no range: neither comparison holds, and it is carried through minimum and maximum.
        return bool(low <= values.min()) and bool(values.max() <= high)


def _defaults(features: list[ModelFeature]) -> np.ndarray | None:
    """What stands in where a column is missing, float32 [features], NaN for nothing; None when nothing ever does."""
    if all(feature.default is None for feature in features):
        return None
    made = np.full(len(features), np.nan, dtype=np.float32)
    with np.errstate(over="raise"):
        for index, feature in enumerate(features):
            if feature.default is not None:
                try:
                    made[index : index + 1] = np.array([feature.default], dtype=np.float64)
                except FloatingPointError:
                    raise _past_float32(feature, np.array([feature.default])) from None
    return made


def _past_float32(feature: ModelFeature, values: np.ndarray) -> ContractError:
    got = f"{np.nanmax(np.abs(values)):.6g}"
    return ContractError(f"feature {feature.name}", got=got, expected="a number in the range of float32")
