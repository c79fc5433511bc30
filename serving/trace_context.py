"""W3C Trace Context: the `traceparent` that ties a request's events to the caller's trace."""

from __future__ import annotations

import re
from collections.abc import Iterable

# version - trace id - parent id - flags; a later version may append more, which is not kept.
_TRACEPARENT = re.compile(r"((?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2})(?:-.*)?")


def traceparent(given: str | None) -> str | None:
    """What was sent as `traceparent`, when it is one. Anything else is not kept: free text has no place in the log."""
    match = _TRACEPARENT.fullmatch(given) if given is not None else None
    return match[1] if match else None


def sent(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """What HTTP headers (names in lower case) say as `traceparent`."""
    for name, value in headers:
        if name == b"traceparent":
            return value[:128].decode("latin-1")
    return None
