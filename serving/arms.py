"""Where arms are scored: in the event loop while one release is alone, in a thread each while two are compared.

A thread of its own makes a hanging challenger harmless: it can be waited for no longer than the route allows. The
champion gets one too as soon as there is a challenger, so that neither has an advantage in the latencies that evidence
compares. Single mode pays nothing.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from pipelines.contracts.events import ARMS, Arm
from serving.models import LoadedModel
from serving.scoring import Outcome, Scorer


class ArmThreads:
    """One scoring thread an arm."""

    def __init__(self) -> None:
        self._pools = {arm: self._pool(arm) for arm in ARMS}

    async def score(self, arm: Arm, scorer: Scorer, model: LoadedModel, timeout_s: float | None = None) -> Outcome:
        """The outcome, or an `error` outcome once `timeout_s` (wall) has passed; the late result is dropped."""
        future = asyncio.get_running_loop().run_in_executor(self._pools[arm], scorer.score, model)
        done, _ = await asyncio.wait((future,), timeout=timeout_s)
        if future.cancelled():
            return Outcome("error", 0, error="switched off while it waited for its turn")
        if done:
            return future.result()
        future.cancel()
        assert timeout_s is not None
        return Outcome("error", int(timeout_s * 1e6), error=f"timeout after {timeout_s * 1000:.0f} ms")

    def replace(self, arm: Arm) -> None:
        """A fresh thread for an arm whose old one may never return."""
        old, self._pools[arm] = self._pools[arm], self._pool(arm)
        old.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        """Wait for no one."""
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)

    @staticmethod
    def _pool(arm: Arm) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1, thread_name_prefix=f"score-{arm}")
