"""Files that are whole or not there, and that outlive the machine once they are written."""

from __future__ import annotations

import os
import threading
from pathlib import Path


def write(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Put `data` in the place of the file at `path`: readers see the old content or the new, never a part.

    Without `sync` it outlives the process alone. Raises OSError; then the file is as it was.
    """
    # A name for each writer: two that write the same file do not meet in its draft.
    draft = path.with_suffix(f".{os.getpid()}.{threading.get_ident()}.tmp")
    with draft.open("wb") as handle:
        handle.write(data)
        if sync:
            handle.flush()
            os.fsync(handle.fileno())
    draft.replace(path)
    if sync:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder outlive the machine, as they are now. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
