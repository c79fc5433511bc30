"""How old what can be read online is: measured here, where it is read, for every view of a release that may score."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from pipelines.contracts.clocks import Clock
from pipelines.contracts.errors import SlipwayError
from serving.metrics import Metrics
from serving.online_features.store import OnlineStore

EVERY_S = 5.0


class ViewFreshness:
    """Asks the store now and then up to which event time its views are readable; a scrape shows their age.

    views: the names of the views to ask for, each time anew. A store that does not answer leaves the last word
    standing, and the age grows.
    """

    def __init__(self, store: OnlineStore, clock: Clock, metrics: Metrics, views: Callable[[], Iterable[str]]) -> None:
        self._store, self._clock, self._metrics, self._views = store, clock, metrics, views
        self._through: dict[str, int] = {}
        self._task: asyncio.Task[None] | None = None
        metrics.watch(self._set_gauges)

    def start(self) -> None:
        """Begin to ask, in the running loop."""
        self._task = asyncio.get_running_loop().create_task(self._keep_asking())

    async def stop(self) -> None:
        """Ask no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _keep_asking(self) -> None:
        while True:
            if wanted := sorted(set(self._views())):
                self._through |= await self._store.readable_through(wanted)
            await asyncio.sleep(EVERY_S)  # the pace of a gauge, and no wait for anything

    def _set_gauges(self) -> None:
        if not self._through:
            return
        try:
            now_us = self._clock.event_now_us()
        except SlipwayError:  # a replay that has not begun
            return
        for view, through_us in self._through.items():
            self._metrics.view_readable_through.labels(view).set(through_us / 1e6)
            self._metrics.view_age.labels(view).set((now_us - through_us) / 1e6)
