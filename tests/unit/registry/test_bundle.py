"""A bundle appears whole or not at all, and once."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from pipelines.contracts.errors import ContractError
from pipelines.contracts.release import InputField, Manifest, ModelFeature, refuse_pickle, verify
from pipelines.registry.bundle import install, json_file, staged

MANIFEST = Manifest(
    model="m",
    semver="1.0.0",
    task="binary",
    inputs=[InputField(name="a", datatype="FP64")],
    features=[ModelFeature(name="a", source="input")],
    files={},
)
FILES = {"model.onnx": b"model", "metrics.json": json_file({"b": 1, "a": [1.5, None]})}


def test_an_installed_bundle_verifies_under_its_digest(tmp_path: Path) -> None:
    with staged(tmp_path, MANIFEST, FILES) as bundle:
        digest = install(tmp_path, bundle)
    assert set(verify(tmp_path / digest, digest).files) == set(FILES)
    assert [path.name for path in tmp_path.iterdir()] == [digest]


def test_the_same_content_is_the_same_bundle(tmp_path: Path) -> None:
    made = []
    for _ in range(2):
        with staged(tmp_path, MANIFEST, FILES) as bundle:
            made.append(install(tmp_path, bundle))
    assert made[0] == made[1]
    assert [path.name for path in tmp_path.iterdir()] == [made[0]]


def test_what_is_not_installed_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="proof"), staged(tmp_path, MANIFEST, FILES):
        raise RuntimeError("the proof failed")
    assert list(tmp_path.iterdir()) == []


def test_a_changed_bundle_is_not_taken_for_the_same(tmp_path: Path) -> None:
    with staged(tmp_path, MANIFEST, FILES) as bundle:
        digest = install(tmp_path, bundle)
    (tmp_path / digest / "model.onnx").write_bytes(b"other")
    with pytest.raises(ContractError, match=r"model\.onnx"), staged(tmp_path, MANIFEST, FILES) as again:
        install(tmp_path, again)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("scaler.pkl", pickle.dumps({"mean": 1.0})),
        ("scaler.joblib", b"text"),
        ("vocabulary.dat", pickle.dumps(["a"], protocol=2)),
        ("weights.npz", b"PK"),
        ("deep/Model.PICKLE", b"(lp0\n."),
    ],
)
def test_a_bundle_with_a_pickle_is_refused_whatever_its_name(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ContractError, match="pickle"):
        refuse_pickle(tmp_path / name)


def test_a_digest_does_not_excuse_a_pickle(tmp_path: Path) -> None:
    with (
        staged(tmp_path, MANIFEST, {**FILES, "encoder.bin": pickle.dumps({})}) as bundle,
        pytest.raises(ContractError, match=r"encoder\.bin.*pickle"),
    ):
        verify(bundle.folder, bundle.digest)
