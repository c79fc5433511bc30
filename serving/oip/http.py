"""The HTTP form of infer requests and answers: headers, compression, and where the JSON ends."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

from serving.json_depth import refuse_deeper
from serving.limits import Limits
from serving.oip.errors import Malformed, TooLarge, UnsupportedEncoding
from serving.oip.request import InferRequest, decode
from serving.oip.response import Prediction, infer_answer

Header = tuple[bytes, bytes]

JSON = b"application/json"
_BINARY = b"application/octet-stream"
_LENGTH = b"inference-header-content-length"
_MAX_DIGITS = 18
# zlib's window bits: `deflate` in HTTP is the zlib format (RFC 9110).
_WINDOWS = {b"gzip": 31, b"x-gzip": 31, b"deflate": 15}


def infer_request(headers: Iterable[Header], body: bytes, limits: Limits) -> InferRequest:
    """The request of a POST; header names in lower case. Raises Malformed, TooLarge or UnsupportedEncoding.

    A compressed body may unfold to at most `max_body_bytes`.
    """
    header_length: int | None = None
    for name, value in headers:
        if name == _LENGTH:
            header_length = _number(value)
        elif name == b"content-encoding":
            body = _unfolded(body, value.strip().lower(), limits.max_body_bytes)
    refuse_deeper(body if header_length is None else body[:header_length], limits.max_json_depth)
    return decode(body, header_length)


def unfolded(headers: Iterable[Header], body: bytes, limits: Limits) -> bytes:
    """A body that came compressed, or as it is. Raises as `infer_request`."""
    for name, value in headers:
        if name == b"content-encoding":
            body = _unfolded(body, value.strip().lower(), limits.max_body_bytes)
    return body


def infer_response(request: InferRequest, prediction: Prediction) -> tuple[bytes, bytes, tuple[Header, ...]]:
    """Body, content type and further headers of an answer. It is never compressed: numbers hardly shrink."""
    body, header_length = infer_answer(request, prediction)
    if header_length is None:
        return body, JSON, ()
    return body, _BINARY, ((_LENGTH, str(header_length).encode()),)


def _number(value: bytes) -> int:
    text = value.strip()
    if not text.isdigit() or len(text) > _MAX_DIGITS:
        raise Malformed(
            "Inference-Header-Content-Length", got=value[:80].decode("latin-1"), expected="a length in bytes"
        )
    return int(text)


def _unfolded(body: bytes, encoding: bytes, max_bytes: int) -> bytes:
    if encoding in (b"", b"identity"):
        return body
    window = _WINDOWS.get(encoding)
    if window is None:
        got = encoding[:80].decode("latin-1")
        raise UnsupportedEncoding("Content-Encoding", got=got, expected="gzip, deflate or none")
    inflater = zlib.decompressobj(window)
    try:
        unfolded = inflater.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise Malformed("body", got=str(error), expected=f"one {encoding.decode()} stream") from None
    if len(unfolded) > max_bytes:
        raise TooLarge("body, unfolded", got=f"more than {max_bytes} bytes", expected=f"at most {max_bytes}")
    if not inflater.eof or inflater.unused_data:
        got = "a part of a stream" if not inflater.eof else "bytes behind its end"
        raise Malformed("body", got=got, expected=f"one {encoding.decode()} stream")
    return unfolded
