"""The online store of an installation, as the gateway reads it."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Protocol

from pipelines.settings import Settings
from serving.online_features.plan import ReadPlan, Reads, Wanted
from serving.online_features.redis_store import RedisStore
from serving.online_features.sqlite_store import SqliteStore


class OnlineStore(Protocol):
    """SQLite answers at once, Redis after a round trip. Neither raises for the store's condition."""

    is_local: bool
    """Whether `read` answers at once."""

    async def start(self) -> None:
        """Called in the running loop before the first read."""

    async def stop(self) -> None:
        """Nothing is read after it."""

    def read(self, plan: ReadPlan, requests: Sequence[Wanted]) -> list[Reads] | Awaitable[list[Reads]]:
        """Every view of the plan for every row of each request, by its input columns, at its event time.

        What several requests want is read together, and each has waited for the whole (`Reads.took_us`).
        """

    async def readable_through(self, views: Sequence[str]) -> dict[str, int]:
        """Event time in microseconds up to which each view is materialised; without those that never were.

        Empty when the store does not answer.
        """


def open_store(settings: Settings, budget_ms: float) -> OnlineStore:
    """The store that `SLIPWAY_ONLINE_STORE` names."""
    if settings.online_store == "redis":
        return RedisStore(settings.redis_url.get_secret_value(), budget_ms)
    return SqliteStore(settings.feast_dir / "online_store.db", budget_ms)
