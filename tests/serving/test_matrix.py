"""What is computed in a short form is what the release's own definition gives, to the byte."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.contracts.errors import ContractError
from pipelines.contracts.release import InputField, ModelFeature, Release
from serving.inputs import Binder
from serving.models import LoadedModel
from serving.oip.errors import Malformed
from serving.oip.request import InferRequest, Tensor
from tests.builders import constant_release

DEFAULTS = {"a": None, "b": -1.5, "c": 0.25}
NAMES = ["x", "y", "z"]
LARGEST = float(np.finfo(np.float32).max)
numbers = st.floats(-LARGEST, LARGEST) | st.integers(-(2**70), 2**70)


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
    bound = model.binder.bind(InferRequest(inputs=tensors), 10)
    assert model.matrix(bound, {}).tobytes() == model.release.matrix(bound.columns, {}, rows).tobytes()
    assert set(bound.columns) == set(NAMES)
    for tensor in tensors:
        assert [None if v is None else float(v) for v in tensor.data] == [
            None if math.isnan(v) else v for v in bound.columns[tensor.name].tolist()
        ]


@settings(max_examples=200, deadline=None)
@given(data=st.data(), rows=st.integers(1, 4), width=st.sampled_from([16, 32, 64]), names=st.permutations(NAMES))
def test_inputs_that_come_as_bytes_of_one_kind_are_bound_as_they_are_one_by_one(
    model: LoadedModel, data: st.DataObject, rows: int, width: int, names: list[str]
) -> None:
    values = st.lists(st.floats(width=width), min_size=rows, max_size=rows)
    some = data.draw(st.sampled_from([names, [*names[:2], names[0]], names[:2], [*names, "w"]]))
    tensors = [
        Tensor(
            name=name, datatype=f"FP{width}", shape=[rows], data=np.array(data.draw(values), dtype=f"<f{width // 8}")
        )
        for name in some
    ]
    found = []
    for ways in (Binder._stacked, lambda *_: None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Binder, "_stacked", ways)
            try:
                bound = model.binder.bind(InferRequest(inputs=tensors), 10)
            except Malformed as refusal:
                found.append(str(refusal))
            else:
                matrix = model.matrix(bound, {}).tobytes()
                columns = {name: column.tobytes() for name, column in bound.columns.items()}
                found.append(repr((bound.rows, columns, bound.logged, matrix)))
    assert found[0] == found[1]


@pytest.mark.parametrize("value", [1e39, -1e308, 10**40])
@pytest.mark.parametrize("row", [0, 3])
@pytest.mark.parametrize("form", ["list", "with a null", "bytes"])
def test_a_number_that_would_be_infinite_in_the_matrix_is_refused_by_its_input(
    model: LoadedModel, value: float, row: int, form: str
) -> None:
    x: Any = [0.5] * row + [value]
    if form == "with a null":
        x.append(None)
    if form == "bytes":
        x = np.array(x, dtype=np.float64)
    tensors = [
        Tensor(name="x", datatype="FP64", shape=[len(x)], data=x),
        Tensor(name="y", datatype="FP64", shape=[len(x)], data=[1.0] * len(x)),
    ]
    with pytest.raises(Malformed, match=rf"^input x, row {row}; got .*; expected at most 3.40282e\+38"):
        model.binder.bind(InferRequest(inputs=tensors), 10)


def test_a_feature_past_float32_is_an_error_with_its_name(model: LoadedModel) -> None:
    columns = {name: np.array([1.0, 1e39 if name == "z" else np.nan]) for name in NAMES}
    with pytest.raises(ContractError, match=r"feature z; got 1e\+39; expected a number in the range of float32"):
        model.release.matrix(columns, {}, 2)


def test_a_default_stands_where_a_value_is_missing_and_nowhere_else(tmp_path: Path) -> None:
    features = [ModelFeature(name=name, source="input", default=default) for name, default in DEFAULTS.items()]
    digest = constant_release(tmp_path, "m", 0.5, inputs=fields_of(DEFAULTS), features=features)
    given_values = np.array([2.5, np.nan])
    made = Release(tmp_path / digest, digest).matrix({"a": given_values, "b": given_values}, {}, 2)
    expected = np.array([[2.5, 2.5, 0.25], [np.nan, -1.5, 0.25]], dtype=np.float32)
    np.testing.assert_array_equal(made, expected)


def test_a_default_past_float32_is_refused_when_the_release_is_loaded(tmp_path: Path) -> None:
    features = [ModelFeature(name="a", source="input", default=-1e39)]
    digest = constant_release(tmp_path, "m", 0.5, inputs=fields_of(["a"]), features=features)
    with pytest.raises(ContractError, match=r"feature a; got 1e\+39; expected a number in the range of float32"):
        Release(tmp_path / digest, digest)


def fields_of(names: Iterable[str]) -> list[InputField]:
    return [InputField(name=name, datatype="FP64", required=False) for name in names]


@given(scores=st.lists(st.floats(width=64) | st.sampled_from([0.0, 1.0, -0.0]), min_size=1, max_size=40))
def test_a_score_is_valid_when_it_is_finite_and_in_range(model: LoadedModel, scores: list[float]) -> None:
    expected = all(math.isfinite(score) and 0.0 <= score <= 1.0 for score in scores)
    assert model.release.valid(scores) is expected
    assert model.release.valid(np.array(scores)) is expected
