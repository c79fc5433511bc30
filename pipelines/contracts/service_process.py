"""What every long-running process of ours begins with: where it logs, and how it is asked to end."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Callable


def begin_service() -> Callable[[], bool]:
    """Log to standard error from here on; what is returned says whether SIGTERM or SIGINT has come."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    stop = False

    def stopping(_number: int, _frame: object) -> None:
        nonlocal stop
        stop = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stopping)
    return lambda: stop
