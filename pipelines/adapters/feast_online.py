"""The online store of an installation, as materialisation writes it: Feast's own layouts on SQLite or Redis."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Protocol, Self

from pipelines.adapters.feast_redis import FeastRedis
from pipelines.adapters.feast_sqlite import FeastSqlite
from pipelines.features.publishing import OnlineRows
from pipelines.settings import Settings


class OnlineWriter(Protocol):
    """Writes rows that become readable. Only a newer row of a key replaces the one that is there."""

    def create(self, view: str) -> None:
        """Make what the view needs, if it is not there."""

    def through_us(self, view: str) -> int | None:
        """The event time up to which the view is materialised; None for never."""

    def write(
        self, view: str, features: Sequence[str], rows: OnlineRows, through_us: int, *, correct: bool = False
    ) -> None:
        """Write rows, values in the order of `features`, and how far the view now is. Repeating changes nothing.

        correct: a row also replaces the one of its own time: it is the view's one writer, and knows more now.
        """

    def views(self) -> list[str]:
        """Every view that has been materialised."""

    def drop(self, view: str, features: Sequence[str]) -> None:
        """Remove a view's rows, and how far it was."""

    def entities(self) -> Iterator[bytes]:
        """The key of every entity that has rows, serialised; an entity of several views may come several times."""

    def forget(self, entities: Sequence[bytes]) -> None:
        """Remove every row of these entities, of all views, to the last byte."""

    def close(self) -> None:
        """Close the connection."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


def open_online(settings: Settings) -> OnlineWriter:
    """The store that `SLIPWAY_ONLINE_STORE` names."""
    if settings.online_store == "redis":
        return FeastRedis(settings.redis_url.get_secret_value())
    return FeastSqlite(settings.feast_dir / "online_store.db")


def readable_through(settings: Settings, view: str) -> int | None:
    """The event time up to which a view can be read online; None for never. Makes no store that is not there."""
    if settings.online_store == "sqlite" and not (settings.feast_dir / "online_store.db").exists():
        return None
    with open_online(settings) as online:
        return online.through_us(view)
