"""A worker does not outlive its supervisor: nobody would replace it, or know that it holds the listening socket."""

from __future__ import annotations

import ctypes
import os
import signal

_SUPERVISOR = "SLIPWAY_GATEWAY_SUPERVISOR"
_PR_SET_PDEATHSIG = 1


def note_supervisor() -> None:
    """In the supervisor: have the workers know whose they are."""
    os.environ.setdefault(_SUPERVISOR, str(os.getpid()))


def end_with_supervisor() -> None:
    """In a worker: take the supervisor's death, however sudden, for SIGTERM: answer what is in flight, close the log.

    Raises OSError where the kernel refuses.
    """
    end_with(int(os.environ.get(_SUPERVISOR, os.getppid())), signal.SIGTERM)


def end_with(parent: int, number: signal.Signals) -> None:
    """Have the kernel send this process the signal when its parent dies. Raises OSError where it refuses."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    # It may have died before the kernel was told.
    if os.getppid() != parent:
        signal.raise_signal(number)
