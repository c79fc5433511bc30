"""The circuit breaker's count: how many of the challenger's last calls failed."""

from __future__ import annotations

from collections import deque

from pipelines.contracts.routes import Breaker


class CallWindow:
    """The last `window` calls of one rollout's challenger; pure counting, no clock."""

    def __init__(self, bound: Breaker) -> None:
        self.bound = bound
        self._calls: deque[bool] = deque()
        self.failures = 0

    def record(self, *, failed: bool) -> bool:
        """Count one call. True when the bound is reached: at least `failures` of the last `window` calls failed."""
        self._calls.append(failed)
        self.failures += failed
        if len(self._calls) > self.bound.window:
            self.failures -= self._calls.popleft()
        return self.failures >= self.bound.failures

    def reason(self) -> str:
        """The comparison that tripped, in words."""
        return (
            f"{self.failures} of the last {len(self._calls)} challenger calls failed"
            f" (bound: {self.bound.failures} of {self.bound.window})"
        )
