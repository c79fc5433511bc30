"""How many infer requests a worker takes on at once, and how long one may wait for its turn."""

from __future__ import annotations

from time import monotonic

from serving.limits import Limits
from serving.oip.errors import Overloaded


class Admission:
    """`inflight`: requests being served in this worker, whatever their path."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.inflight = 0

    def check_number(self, *, more: int = 0) -> None:
        """Raises Overloaded when `more` requests would be past the limit of those in flight.

        One that waits for its turn is not in flight yet: how long it may is bounded, too.
        """
        if self.inflight + more > self._limits.max_inflight:
            raise Overloaded("gateway", got="too many requests in flight", hint="Send it again later.")

    def check_wait(self, arrived: float) -> None:
        """Raises Overloaded for a request that waited too long for its turn since `arrived` (`time.monotonic`).

        The wait bounds latency whatever a request costs: under overload the rest are refused cheaply, at once.
        """
        if (monotonic() - arrived) * 1000 > self._limits.max_queue_ms:
            raise Overloaded("gateway", got="more requests than it can serve", hint="Send it again later.")
