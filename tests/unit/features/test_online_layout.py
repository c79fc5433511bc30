"""Whole columns become what Feast keeps of each value."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.features.online_layout import messages_of, text_of, texts_of, value_encoder

EDGES = [0.0, -0.0, 1e-3, 9.999e-4, 1e-4, 9.9e-5, 1e15, 1e16, 123456789012345680.0, 5e-324, 1.7e308, 0.1 + 0.2]
FLOATS = st.one_of(st.floats(), st.sampled_from([*EDGES, *(-edge for edge in EDGES)]), st.none())


@pytest.mark.parametrize("kind", [pa.float64(), pa.float32()])
@given(values=st.lists(FLOATS, max_size=20))
def test_the_text_beside_a_number_is_pythons(kind: pa.DataType, values: list[float | None]) -> None:
    column = pa.chunked_array([pa.array(values, pa.float64()).cast(kind, safe=False)])
    assert texts_of(column) == [text_of(value) for value in column.to_pylist()]


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("float64", [1.5, -0.0, 1e300]),
        ("float64", [1.5, None]),
        ("float32", [0.25, -1.0]),
        ("int64", [0, -1, 2**62, None]),
        ("bool", [True, False, None]),
        ("string", ["", "Zürich", "x" * 300, None, ""]),
        ("float64", []),
        ("string", []),
    ],
)
def test_a_column_of_messages_is_its_values_messages_each_in_its_frame(kind: str, values: list[Any]) -> None:
    type_ = {"float64": pa.float64(), "float32": pa.float32(), "int64": pa.int64()}.get(kind)
    column = pa.chunked_array([pa.array(values, type_ or {"bool": pa.bool_(), "string": pa.string()}[kind])])
    encode = value_encoder(kind)
    bare = [encode(value) for value in values]
    assert messages_of(kind, column) == bare
    framed = messages_of(kind, column, lambda length: (b"<%d:" % length, b">"))
    assert framed == [b"<%d:%b>" % (len(message), message) for message in bare]
