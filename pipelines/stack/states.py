"""What is said about a part: its state, and the progress of bringing it up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

State = Literal["running", "starting", "stopped", "crashed"]


class PartStatus(msgspec.Struct, frozen=True):
    """One part of the stack.

    `running`: the process lives and answers. `starting`: it lives and does not answer yet. `crashed`: it was started,
    was not stopped, and is gone. `stopped`: none of these.
    """

    part: str
    state: State
    pid: int | None = None
    url: str | None = None
    version: str | None = None
    log: str | None = None


Progress = Callable[[str, str], None]
"""Called with (part, what happens to it now): `preparing`, `starting`, `running`, `stopping`, `stopped`."""
