"""What a shadow process is at, told without a system call: eight bytes of memory that it shares with its worker.

A process that hangs or ends says nothing more. The mark it leaves says which arm it was scoring, and so whose fault it
is; a mark that changes says that it goes on.
"""

from __future__ import annotations

import mmap
import os
import struct

_MARK = struct.Struct("<Q")


class Mark:
    """A count of the scorings begun, and whether the last one is of the arm beside the one that was asked for."""

    def __init__(self, descriptor: int) -> None:
        """Map the memory behind `descriptor`, which stays the caller's."""
        self._memory = mmap.mmap(descriptor, _MARK.size)

    @staticmethod
    def descriptor() -> int:
        """Memory for a new mark. Raises OSError."""
        descriptor = os.memfd_create("slipway-shadow")
        os.truncate(descriptor, _MARK.size)
        return descriptor

    def begin(self, *, beside: bool) -> None:
        """In the process: a scoring begins, or loading what it needs."""
        _MARK.pack_into(self._memory, 0, ((self.begun + 1) << 1) | beside)

    @property
    def begun(self) -> int:
        """How many have begun."""
        return self._value >> 1

    @property
    def is_beside(self) -> bool:
        """Whether the last one is of the arm beside; False before any."""
        return bool(self._value & 1)

    @property
    def _value(self) -> int:
        value: int = _MARK.unpack_from(self._memory, 0)[0]
        return value
