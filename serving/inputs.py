"""From the tensors of a request to the columns that releases use, and to what the inference log keeps."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

import msgspec
import numpy as np

from pipelines.contracts.release import Columns, InputField
from serving.oip.datatypes import DATATYPES, Scalar, column, compatible, missing_column
from serving.oip.errors import Malformed, TooLarge
from serving.oip.request import InferRequest, Tensor


class Bound(msgspec.Struct):
    """A request's inputs: `columns` by name for the releases, `logged` as they were sent, and the number of rows."""

    rows: int
    columns: Columns
    logged: dict[str, list[Scalar]]


def bind(request: InferRequest, fields: Mapping[str, InputField], required: frozenset[str], max_rows: int) -> Bound:
    """The request's inputs as columns.

    `fields` are the inputs of every release that may score the request; only those in `required` (the champion's) must
    be there. Raises Malformed naming the input, what was got and what was expected, and TooLarge past `max_rows`.
    """
    tensors = request.inputs
    if not tensors:
        raise Malformed("inputs", got="none", expected=f"at least one of {sorted(fields)}")
    rows = tensors[0].shape[0]
    if rows < 1:
        raise Malformed(f"input {tensors[0].name}: rows", got=rows, expected="1 or more")
    if rows > max_rows:
        raise TooLarge("rows in one request", got=rows, expected=f"at most {max_rows}")
    columns: Columns = {}
    logged: dict[str, list[Scalar]] = {}
    for tensor in tensors:
        name = tensor.name
        field = _field(tensor, fields)
        if name in columns:
            raise Malformed(f"input {name}", got="it twice", expected="it once")
        if len(tensor.data) != rows:
            raise Malformed(f"input {name}: rows", got=len(tensor.data), expected=f"{rows}, as input {tensors[0].name}")
        columns[name], logged[name] = column(
            name, tensor.datatype, field.datatype, tensor.data, nullable=name not in required
        )
    if missing := sorted(required - columns.keys()):
        raise Malformed("inputs", got=f"no {', '.join(missing)}", expected=f"all of {sorted(required)}")
    for name, field in fields.items():
        if name not in columns:
            columns[name] = missing_column(field.datatype, rows)
    return Bound(rows, columns, logged)


def _field(tensor: Tensor, fields: Mapping[str, InputField]) -> InputField:
    """The input that the tensor stands for. Raises Malformed for an unknown name or a datatype that does not fit."""
    name = tensor.name
    field = fields.get(name)
    if field is None:
        near = difflib.get_close_matches(name, fields, n=1)
        hint = f"Did you mean {near[0]}?" if near else ""
        raise Malformed("input name", got=name, expected=f"one of {sorted(fields)}", hint=hint)
    if tensor.datatype not in DATATYPES:
        raise Malformed(f"input {name}: datatype", got=tensor.datatype, expected=f"one of {list(DATATYPES)}")
    if not compatible(tensor.datatype, field.datatype):
        raise Malformed(f"input {name}: datatype", got=tensor.datatype, expected=field.datatype)
    return field


def complete(inputs: list[InputField], columns: Columns) -> str:
    """The first required input of a release that has no value in some row, or an empty text."""
    for field in inputs:
        if field.required and _has_null(columns[field.name]):
            return field.name
    return ""


def _has_null(values: np.ndarray) -> bool:
    if values.dtype == object:
        return any(value is None for value in values)
    return values.dtype == np.float64 and bool(np.isnan(values).any())
