"""How deep a JSON text nests, found before it is parsed."""

from __future__ import annotations

import numpy as np

from serving.oip.errors import Malformed

_OPENING, _CLOSING, _QUOTE = b"[{", b"]}", b'"'
_OTHERS = bytes(set(range(256)) - set(_OPENING + _CLOSING + _QUOTE))
# As signed bytes: one level down, one level up, none.
_STEPS = bytes.maketrans(_OPENING + _CLOSING + _QUOTE, b"\x01\x01\xff\xff\x00")


def deeper_than(text: bytes, limit: int) -> bool:
    """Whether lists and objects of the text nest deeper than `limit` levels.

    A text with no more opening brackets than that cannot, and nearly all requests are such: two passes of memchr.
    """
    if text.count(b"[") + text.count(b"{") <= limit:
        return False
    if b"\\" in text:
        text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    marks = text.translate(None, _OTHERS)
    steps = np.frombuffer(marks.translate(_STEPS), dtype=np.int8)
    # Odd numbers of quotes before it: a bracket in a string. The count may wrap, its parity stays.
    outside = 1 - (np.cumsum(np.frombuffer(marks, dtype=np.uint8) == _QUOTE[0], dtype=np.uint8) & 1).astype(np.int8)
    return bool(np.cumsum(steps * outside, dtype=np.int32).max(initial=0) > limit)


def refuse_deeper(text: bytes, limit: int) -> None:
    """Raises Malformed for a text that nests deeper than `limit` levels."""
    if deeper_than(text, limit):
        raise Malformed("body", got="JSON that nests deeper", expected=f"at most {limit} levels of lists and objects")
