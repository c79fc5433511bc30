"""What is computed in a short form is what the release's own definition gives, to the byte."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.contracts.release import InputField, ModelFeature
from serving.models import LoadedModel
from serving.oip.request import InferRequest, Tensor
from tests.builders import constant_release

NAMES = ["x", "y", "z"]
numbers = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**70), 2**70)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    home: Path = tmp_path_factory.mktemp("releases")
    digest = constant_release(
        home,
        "m",
        0.5,
        inputs=[InputField(name=name, datatype="FP64", required=name == "y") for name in NAMES],
        features=[ModelFeature(name=name, source="input") for name in ("z", "x", "y")],
    )
    return LoadedModel(home / digest, digest)


@settings(max_examples=200, deadline=None)
@given(data=st.data(), rows=st.integers(1, 5), names=st.permutations(NAMES))
def test_the_matrix_of_a_request_is_the_releases_own(
    model: LoadedModel, data: st.DataObject, rows: int, names: list[str]
) -> None:
    tensors = []
    for name in names:
        if name != "y" and data.draw(st.booleans()):
            continue
        values = numbers if name == "y" else numbers | st.none()
        sent = data.draw(st.lists(values, min_size=rows, max_size=rows))
        tensors.append(Tensor(name=name, datatype="FP64", shape=[rows], data=sent))
    with np.errstate(over="ignore"):
        bound = model.binder.bind(InferRequest(inputs=tensors), 10)
        assert model.matrix(bound, {}).tobytes() == model.release.matrix(bound.columns, {}, rows).tobytes()
    assert set(bound.columns) == set(NAMES)
    for tensor in tensors:
        assert [None if v is None else float(v) for v in tensor.data] == [
            None if math.isnan(v) else v for v in bound.columns[tensor.name].tolist()
        ]


@given(scores=st.lists(st.floats(width=64) | st.sampled_from([0.0, 1.0, -0.0]), min_size=1, max_size=40))
def test_a_score_is_valid_when_it_is_finite_and_in_range(model: LoadedModel, scores: list[float]) -> None:
    expected = all(math.isfinite(score) and 0.0 <= score <= 1.0 for score in scores)
    assert model.release.valid(scores) is expected
    assert model.release.valid(np.array(scores)) is expected
