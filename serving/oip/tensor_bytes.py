"""Tensors as bytes: the binary tensor data of HTTP and the raw contents of gRPC, which are the same.

Numbers lie one after the other, little endian; a BOOL is one byte, 0 or 1; an element of BYTES is its length (4 bytes,
unsigned, little endian) and then that many bytes, here always UTF-8 text.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

from serving.oip.datatypes import DATATYPES, NUMERIC, Scalar
from serving.oip.errors import Malformed

_length = struct.Struct("<I").unpack_from

# By numpy's letter for the kind of a dtype.
_PYTHON_TYPES: dict[str, set[type]] = {"b": {bool}, "i": {int}, "u": {int}, "f": {float, int, type(None)}}


def from_bytes(name: str, datatype: str, rows: int, data: bytes | memoryview) -> np.ndarray | list[str]:
    """The `rows` values of input `name`: an array over `data` itself, or a list of text. Raises Malformed."""
    dtype = NUMERIC.get(datatype)
    if dtype is None:
        if datatype != "BYTES":
            raise Malformed(f"input {name}: datatype", got=datatype, expected=f"one of {list(DATATYPES)}")
        return _texts(name, rows, data)
    if len(data) != rows * dtype.itemsize:
        raise Malformed(
            f"input {name}: binary data",
            got=f"{len(data)} bytes",
            expected=f"{rows * dtype.itemsize} for {rows} values of {datatype}",
        )
    if datatype == "BOOL":
        whole = np.frombuffer(data, dtype=np.uint8)
        if rows and whole.max() > 1:
            row = int(whole.argmax())
            raise Malformed(f"input {name}, row {row}", got=f"byte {whole[row]}", expected="BOOL, 0 or 1")
        return whole.view(np.bool_)
    return np.frombuffer(data, dtype=dtype)


def _texts(name: str, rows: int, data: bytes | memoryview) -> list[str]:
    found: list[str] = []
    raw = bytes(data)  # slices of bytes are cheaper than those of a view
    end, at = len(raw), 0
    while at < end:
        first = at + 4
        at = first + (_length(raw, at)[0] if first <= end else 0)
        if at > end:
            got, expected = f"{max(0, end - first)} bytes", f"{at - first} by its length, behind a length of 4 bytes"
            raise Malformed(f"input {name}, row {len(found)}", got=got, expected=expected)
        try:
            found.append(raw[first:at].decode())
        except UnicodeDecodeError as error:
            raise Malformed(f"input {name}, row {len(found)}", got=str(error), expected="UTF-8 text") from None
    if len(found) != rows:
        raise Malformed(f"input {name}: binary data", got=f"{len(found)} elements", expected=f"{rows} by its shape")
    return found


def to_bytes(datatype: str, values: Sequence[Scalar]) -> bytes | None:
    """The values of an output as bytes; a null number is NaN. None when the datatype has no bytes for some value."""
    kinds = set(map(type, values))
    dtype = NUMERIC.get(datatype)
    if dtype is None:
        if not kinds <= {str}:
            return None
        encoded = [str(value).encode() for value in values]
        return b"".join([part for text in encoded for part in (len(text).to_bytes(4, "little"), text)])
    if not kinds <= _PYTHON_TYPES[dtype.kind]:
        return None
    try:
        with np.errstate(over="ignore"):  # what is too large for a float of that size is infinite in it
            return np.array(values, dtype=dtype).tobytes()
    except OverflowError:
        return None
