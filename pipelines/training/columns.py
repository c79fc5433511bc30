"""Arrow columns as the numpy columns that request features, models and post-processing see, the same as online.

Text is an object array with None where missing; numbers are float64 with NaN where missing (integers stay integers
where none is missing).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.contracts.errors import DataError
from pipelines.contracts.release import Columns, InputField, ViewPin

FeatureColumns = dict[tuple[str, str], np.ndarray]


def column_name(view: str, feature: str) -> str:
    """How a view's feature is called in a training set; the view without its version."""
    return f"{view.partition('__')[0]}.{feature}"


def column(array: pa.ChunkedArray, datatype: str) -> np.ndarray:
    """One Arrow column by its OIP datatype."""
    if datatype == "BYTES":
        return np.array(array.cast(pa.string()).to_pylist(), dtype=object)
    if array.null_count:
        array = array.cast(pa.float64())
    return np.asarray(array.to_numpy(zero_copy_only=False))


def inputs_of(table: pa.Table, fields: Sequence[InputField]) -> Columns:
    """The request inputs of a table. Raises DataError naming a required input that is no column.

    An optional input that is no column is missing in each row.
    """
    found: Columns = {}
    for field in fields:
        if field.name in table.column_names:
            found[field.name] = column(table.column(field.name), field.datatype)
        elif field.required:
            raise DataError(f"input {field.name}", got=table.column_names, expected="a column of the requests")
        else:
            empty = None if field.datatype == "BYTES" else np.nan
            found[field.name] = np.full(table.num_rows, empty, dtype=object if empty is None else np.float64)
    return found


def features_of(table: pa.Table, pins: Sequence[ViewPin]) -> FeatureColumns:
    """View features of a table whose columns are called by `column_name`, keyed by (view version, feature)."""
    return {
        (pin.view, feature): column(table.column(column_name(pin.view, feature)), "FP64")
        for pin in pins
        for feature in pin.features
    }


def microseconds(array: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """A column of UTC timestamps as integer microseconds; nulls give the smallest integer."""
    micros = array.cast(pa.timestamp("us", tz="UTC")).cast(pa.int64())
    filled = micros.fill_null(np.iinfo(np.int64).min)
    return np.asarray(filled.to_numpy(zero_copy_only=False), dtype=np.int64)


def slices_of(inputs: Mapping[str, np.ndarray], names: Sequence[str]) -> dict[str, npt.NDArray[np.object_]]:
    """The inputs that slice metrics, as objects."""
    return {name: np.asarray(inputs[name], dtype=object) for name in names if name in inputs}
