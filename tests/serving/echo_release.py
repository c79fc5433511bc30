"""A release that gives its inputs back: one input and one output of every datatype of the protocol."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pipelines.contracts import release
from pipelines.contracts.canonical import file_digest
from tests.builders import ONNX

# Not DATATYPES of the code under test: a datatype missing there has to be missed here.
DATATYPES = (
    "BOOL", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "FP16", "FP32", "FP64", "BYTES",
)  # fmt: skip

# Rows of every datatype, with its extremes.
VALUES: dict[str, list[Any]] = {
    "BOOL": [True, False, True],
    **{f"INT{bits}": [-(1 << (bits - 1)), 0, (1 << (bits - 1)) - 1] for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": [0, 7, (1 << bits) - 1] for bits in (8, 16, 32, 64)},
    "FP16": [-0.5, 0.0, 65504.0],
    "FP32": [-0.1, 1e-30, 3e38],
    "FP64": [-0.1, 1e-300, 1.7e308],
    "BYTES": ["", "JFK", "日本"],
}

_POSTPROCESS = """\
def apply(raw, inputs, params):
    return {"score": raw} | {f"out_{name}": inputs[name] for name in params["names"]}
"""


def echo_release(releases_dir: Path, model: str) -> str:
    """Write the bundle; returns its digest. Input `int8` comes back as output `out_int8`, and so on for all."""
    names = {datatype.lower(): datatype for datatype in DATATYPES}
    staged = releases_dir / ".staged-echo"
    staged.mkdir(parents=True)
    (staged / "model.onnx").write_bytes(ONNX)
    (staged / "postprocess.py").write_text(_POSTPROCESS)
    manifest = release.Manifest(
        model=model,
        semver="1.2.3",
        task="constant",
        inputs=[release.InputField(name=name, datatype=datatype) for name, datatype in names.items()],
        features=[release.ModelFeature(name="int8", source="input")],
        output=release.OutputContract(
            fields={"score": "FP64"} | {f"out_{name}": datatype for name, datatype in names.items()}
        ),
        postprocess_params={"names": list(names)},
        files={path.name: file_digest(path) for path in staged.iterdir()},
    )
    digest = release.write(staged, manifest)
    os.rename(staged, releases_dir / digest)  # noqa: PTH104 - as the product does it
    return digest
