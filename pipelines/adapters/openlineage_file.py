"""OpenLineage events into a file that stays small: a transport for Airflow's provider, named by its class path.

The client's own file transport lets its file grow for ever. Here a full file becomes `<name>.1`, in place of the one
before it. Tasks are processes of their own: they take turns by a lock, so no event is cut or lost but by that.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Any

import attr
from openlineage.client.serde import Serde
from openlineage.client.transport.transport import Config, Transport

MAX_BYTES = 50_000_000
"""Of one file; there are two at most."""


@attr.define
class LineageFileConfig(Config):
    """`path` of the file, and the bytes at which it is full."""

    path: str
    max_bytes: int = MAX_BYTES

    @classmethod
    def from_dict(cls, params: dict[str, Any]) -> LineageFileConfig:
        """Of the transport's configuration. Raises KeyError without a path."""
        return cls(params["path"], int(params.get("max_bytes", MAX_BYTES)))


class LineageFile(Transport):
    """See the module."""

    kind = "slipway_file"
    config_class = LineageFileConfig

    def __init__(self, config: LineageFileConfig) -> None:
        self._path, self._max_bytes = Path(config.path), config.max_bytes

    def emit(self, event: Any) -> None:
        """Write an event as a line of JSON."""
        line = Serde.to_json(event).encode() + b"\n"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(self._path.with_name(f".{self._path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self._path.exists() and self._path.stat().st_size + len(line) > self._max_bytes:
                self._path.replace(self._path.with_name(f"{self._path.name}.1"))
            with self._path.open("ab", buffering=0) as file:
                file.write(line)
        finally:
            os.close(lock)
