"""From the tensors of a request to the columns that releases use, and to what the inference log keeps."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from math import isfinite
from typing import Any, NamedTuple

import msgspec
import numpy as np

from pipelines.contracts.release import Columns, InputField
from serving.oip.datatypes import DATATYPES, FLOATS, Scalar, column, compatible, missing_column
from serving.oip.errors import Malformed, TooLarge
from serving.oip.request import InferRequest, Tensor

_FLOAT = frozenset({float})
_LARGEST = float(np.finfo(np.float32).max)


class Bound(msgspec.Struct):
    """A request's inputs: `columns` by name for the releases, `logged` as they were sent, and the number of rows.

    `block` holds the columns of `names`, one a row of a float64 array: the inputs sent as floats, none of them
    null. `uncertain` are the other columns that may hold a null.
    """

    rows: int
    columns: Columns
    logged: dict[str, list[Scalar]]
    names: tuple[str, ...]
    block: np.ndarray
    uncertain: list[str]


class _Input(NamedTuple):
    """One input as requests may send it."""

    field: InputField
    accepted: frozenset[str]
    floats: frozenset[str]
    """Of the accepted datatypes, those whose values may be taken as they are."""
    nullable: bool


class Binder:
    """Turns requests into columns, for one set of inputs.

    `fields` are the inputs of every release that may score a request; only those in `required` (the champion's) must be
    there. Those in `features` go into a model as they are: models compute in float32, and take no number past it.
    """

    def __init__(
        self, fields: Mapping[str, InputField], required: frozenset[str], features: frozenset[str] = frozenset()
    ) -> None:
        self._fields = fields
        self._required = required
        self._features = features
        self._inputs = {name: _input(field, nullable=name not in required) for name, field in fields.items()}

    def bind(self, request: InferRequest, max_rows: int) -> Bound:
        """The request's inputs as columns.

        Raises Malformed naming the input, what was got and what was expected, and TooLarge past `max_rows`.
        """
        tensors = request.inputs
        rows = self._rows(tensors, max_rows)
        stacked = self._stacked(tensors, rows)
        return self._one_by_one(tensors, rows) if stacked is None else stacked

    def _one_by_one(self, tensors: list[Tensor], rows: int) -> Bound:
        logged: dict[str, list[Scalar]] = {}
        others: Columns = {}
        names: list[str] = []
        plain: list[list[float] | np.ndarray] = []
        uncertain: list[str] = []
        inputs, one_row = self._inputs, rows == 1
        is_checked = one_row
        for tensor in tensors:
            name, datatype, data = tensor.name, tensor.datatype, tensor.data
            known = inputs.get(name)
            if known is None or datatype not in known.accepted:
                raise _refusal(tensor, self._fields)
            if name in logged:
                raise Malformed(f"input {name}", got="it twice", expected="it once")
            if len(data) != rows:
                raise Malformed(f"input {name}: rows", got=len(data), expected=f"{rows}, as input {tensors[0].name}")
            if datatype in known.floats:
                value = data[0]
                # One row is the common case, and a call costs. NaN lies in no range.
                if (type(value) is float and -_LARGEST <= value <= _LARGEST) if one_row else _finite_floats(data):
                    names.append(name)
                    plain.append(data)
                    logged[name] = data  # type: ignore[assignment]  # just looked at
                    continue
                if isinstance(data, np.ndarray) and isfinite(sum(values := data.tolist())):
                    names.append(name)
                    plain.append(data)
                    logged[name] = values
                    is_checked = False
                    continue
            others[name], logged[name] = column(name, datatype, known.field.datatype, data, nullable=known.nullable)
            if known.nullable:
                uncertain.append(name)
        if len(logged) < len(self._fields):
            absent = self._absent(logged, rows)
            others |= absent
            uncertain += absent
        block = np.array(plain, dtype=np.float64).reshape(len(plain), rows)
        columns: Columns = dict(zip(names, block, strict=True))
        if others:
            columns |= others
        if others or not is_checked:
            self._refuse_past_float32(block, names, others)
        return Bound(rows, columns, logged, tuple(names), block, uncertain)

    def _stacked(self, tensors: list[Tensor], rows: int) -> Bound | None:
        """A request that sends every input as float bytes of one datatype: all columns are made at once.

        None for any other, and for one in which something is wrong: which input it is shows one by one.
        """
        dtype = getattr(tensors[0].data, "dtype", None)
        if dtype is None or dtype.kind != "f" or len(tensors) != len(self._fields):
            return None
        inputs = self._inputs
        for tensor in tensors:
            known, data = inputs.get(tensor.name), tensor.data
            if known is None or tensor.datatype not in known.floats:
                return None
            if type(data) is not np.ndarray or data.dtype is not dtype or len(data) != rows:
                return None
        names = tuple(tensor.name for tensor in tensors)
        block = np.concatenate([tensor.data for tensor in tensors]).reshape(len(tensors), rows).astype(np.float64)
        # Neither NaN nor infinity is in this range.
        if len(set(names)) != len(names) or not (np.abs(block) <= _LARGEST).all():
            return None
        values: Any = block.tolist()
        columns: Columns = dict(zip(names, block, strict=True))
        return Bound(rows, columns, dict(zip(names, values, strict=True)), names, block, [])

    def _refuse_past_float32(self, block: np.ndarray, names: list[str], others: Columns) -> None:
        """Raises Malformed for a feature that would be infinite in the model's matrix."""
        sent: Columns = {}
        if block.size and not (block.min() >= -_LARGEST and block.max() <= _LARGEST):
            sent = dict(zip(names, block, strict=True))
        for name, values in (sent | others).items():
            if name in self._features and values.dtype == np.float64:
                too_large = np.abs(values) > _LARGEST
                if too_large.any():
                    row = int(too_large.argmax())
                    expected = f"at most {_LARGEST:.6g} in size: the model computes in float32"
                    raise Malformed(f"input {name}, row {row}", got=values[row], expected=expected)

    def _rows(self, tensors: list[Tensor], max_rows: int) -> int:
        if not tensors:
            raise Malformed("inputs", got="none", expected=f"at least one of {sorted(self._fields)}")
        rows = tensors[0].shape[0]
        if rows < 1:
            raise Malformed(f"input {tensors[0].name}: rows", got=rows, expected="1 or more")
        if rows > max_rows:
            raise TooLarge("rows in one request", got=rows, expected=f"at most {max_rows}")
        return rows

    def _absent(self, sent: Collection[str], rows: int) -> Columns:
        """Columns of the inputs that were not sent. Raises Malformed when one of them is required."""
        if missing := sorted(self._required.difference(sent)):
            raise Malformed("inputs", got=f"no {', '.join(missing)}", expected=f"all of {sorted(self._required)}")
        return {name: missing_column(field.datatype, rows) for name, field in self._fields.items() if name not in sent}


def _input(field: InputField, *, nullable: bool) -> _Input:
    accepted = frozenset(sent for sent in DATATYPES if compatible(sent, field.datatype))
    return _Input(field, accepted, accepted & FLOATS if field.datatype in FLOATS else frozenset(), nullable)


def _finite_floats(data: list[Any] | np.ndarray) -> bool:
    """Whether these are Python floats alone, all finite: a sum of floats is finite only when each of them is."""
    return type(data) is list and set(map(type, data)) == _FLOAT and isfinite(sum(data))


def _refusal(tensor: Tensor, fields: Mapping[str, InputField]) -> Malformed:
    """Why a tensor of this name or datatype is not taken."""
    name = tensor.name
    field = fields.get(name)
    if field is None:
        near = difflib.get_close_matches(name, fields, n=1)
        hint = f"Did you mean {near[0]}?" if near else ""
        return Malformed("input name", got=name, expected=f"one of {sorted(fields)}", hint=hint)
    if tensor.datatype not in DATATYPES:
        return Malformed(f"input {name}: datatype", got=tensor.datatype, expected=f"one of {list(DATATYPES)}")
    return Malformed(f"input {name}: datatype", got=tensor.datatype, expected=field.datatype)


def complete(inputs: list[InputField], bound: Bound) -> str:
    """The first required input of a release that has no value in some row, or an empty text."""
    if bound.uncertain:
        for field in inputs:
            if field.required and field.name in bound.uncertain and _has_null(bound.columns[field.name]):
                return field.name
    return ""


def _has_null(values: np.ndarray) -> bool:
    if values.dtype == object:
        return any(value is None for value in values)
    return values.dtype == np.float64 and bool(np.isnan(values).any())
