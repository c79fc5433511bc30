"""Where Feast's own stores part from Feast's documentation, and ours does not: the list of docs/how-to/feast-store.md.

When one of these fails, Feast has repaired something, and the list is to be shortened.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

OURS = "pipelines.adapters.feast_asof.AsofOfflineStore"
DAY = timedelta(days=1)
_numbers = itertools.count()


def _hour(hour: float) -> pd.Timestamp:
    return pd.Timestamp("2024-01-01", tz="UTC") + pd.Timedelta(hours=hour)


def _asked(*rows: tuple[str | None, float | None]) -> pd.DataFrame:
    stamps = [pd.NaT if at is None else _hour(at) for _, at in rows]
    return pd.DataFrame({"n": range(len(rows)), "k": [key for key, _ in rows], "event_timestamp": stamps})


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Ask a store of a kind for `v:x`: rows (number, value), or the name of the error."""
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
    from feast.types import Float64, String

    folder: Path = tmp_path_factory.mktemp("feast")
    rows = {"k": ["a", "a", "b"], "event_timestamp": [_hour(0), _hour(5), _hour(1)], "x": [1.0, 3.0, 9.0]}
    pd.DataFrame(rows).to_parquet(folder / "rows.parquet")
    key = Entity(name="k", join_keys=["k"], value_type=ValueType.STRING)

    def answer(kind: str, asked: Any, ttl: timedelta = DAY, **more: Any) -> Any:
        view = FeatureView(
            name="v",
            entities=[key],
            schema=[Field(name="k", dtype=String), Field(name="x", dtype=Float64)],
            source=FileSource(name="rows", path=str(folder / "rows.parquet"), timestamp_field="event_timestamp"),
            ttl=ttl,
        )
        number = next(_numbers)
        config = RepoConfig(
            project="differ",
            registry=str(folder / f"{number}.db"),
            provider="local",
            online_store={"type": "sqlite", "path": str(folder / "online.db")},
            offline_store={"type": kind},
            entity_key_serialization_version=3,
            repo_path=folder,
        )
        store = FeatureStore(config=config)
        store.apply([key, view])
        try:
            frame = store.get_historical_features(asked, ["v:x"], **more).to_df()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
            return type(error).__name__
        names = frame["n"] if "n" in frame else frame["k"]
        return [(name, None if pd.isna(x) else x) for name, x in zip(names, frame["x"], strict=True)]

    return answer


TWICE = _asked(("a", 6), ("a", 6))
EXPIRED = _asked(("a", 500), ("b", 2))
NO_TIME = _asked(("a", 6), ("b", None))
OF_ONE_KEY = _asked(("b", 8), ("a", 6), ("b", 2))
SQL = "SELECT 0 AS n, 'a' AS k, TIMESTAMP '2024-01-01 08:00' AS event_timestamp"
SPAN = {"start_date": _hour(0).to_pydatetime(), "end_date": _hour(8).to_pydatetime()}


@pytest.mark.parametrize(
    ("kind", "asked", "more", "theirs", "documented"),
    [
        # file store: entity rows with equal keys and time become one
        ("file", TWICE, {}, [(1, 3.0)], [(0, 3.0), (1, 3.0)]),
        # file store: an entity row whose features have expired, or lie in its future, is lost
        ("file", EXPIRED, {}, [(1, 9.0)], [(0, None), (1, 9.0)]),
        ("file", _asked(("a", -5), ("b", 2)), {}, [(1, 9.0)], [(0, None), (1, 9.0)]),
        # file store: an entity row without a time is lost
        ("file", NO_TIME, {}, [(0, 3.0)], [(0, 3.0), (1, None)]),
        # file store: rows do not come back in their order
        ("file", OF_ONE_KEY, {}, [(0, 9.0), (2, 9.0), (1, 3.0)], [(0, 9.0), (1, 3.0), (2, 9.0)]),
        # file store: without an entity frame it answers for the end of the span alone
        ("file", None, SPAN, [("b", 9.0), ("a", 3.0)], [("a", 1.0), ("a", 3.0), ("b", 9.0)]),
        # both: an entity frame may be SQL, says the interface
        ("file", SQL, {}, "ValueError", [(0, 3.0)]),
        ("duckdb", SQL, {}, "AttributeError", [(0, 3.0)]),
        # DuckDB store: rows without features go to the end
        ("duckdb", EXPIRED, {}, [(1, 9.0), (0, None)], [(0, None), (1, 9.0)]),
        # DuckDB store: no time to live of days and hours
        ("duckdb", TWICE, {"ttl": timedelta(days=1, hours=6)}, "ValueError", [(0, 3.0), (1, 3.0)]),
        # DuckDB store: no question without an entity frame
        ("duckdb", None, SPAN, "TypeError", [("a", 1.0), ("a", 3.0), ("b", 9.0)]),
    ],
)
def test_feasts_store_does_this_and_ours_what_is_documented(
    ask: Callable[..., Any], kind: str, asked: Any, more: dict[str, Any], theirs: Any, documented: Any
) -> None:
    assert ask(OURS, asked, **more) == documented
    got = ask(kind, asked, **more)
    # Where it keeps all rows and loses their order, which order it gives is chance.
    assert got != documented
    if isinstance(got, str) or len(got) != len(documented):
        assert sorted(got, key=str) == sorted(theirs, key=str)
