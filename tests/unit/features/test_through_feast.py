"""The project's views through Feast itself: the same values as by our own short ways."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipelines.adapters.feast_online import open_online
from pipelines.contracts.clocks import parse_event_time
from pipelines.settings import Settings
from pipelines.wiring import features, point_in_time
from serving.online_features.store import open_store
from tests.contract.feast_repositories import STORES, installation, read_online

AS_OF = parse_event_time("2013-01-18T18:00:00Z")


@pytest.mark.parametrize("store_kind", STORES)
def test_history_and_online_reads_through_feast_equal_ours(
    sample_views: Settings, tmp_path: Path, store_kind: str
) -> None:
    (tmp_path / "lake").symlink_to(sample_views.lake)
    with installation(store_kind, tmp_path) as settings:
        features.apply(settings)
        _history_and_online_reads_equal_ours(settings)


def _history_and_online_reads_equal_ours(settings: Settings) -> None:
    from pipelines.adapters import feast_registry

    pins = point_in_time.pins(settings, "air_time")
    flights = [
        {"origin": "EWR", "dest": "LAX", "tailnum": "N14228"},
        {"origin": "JFK", "dest": "BQN", "tailnum": None},
        {"origin": "LGA", "dest": "ATL", "tailnum": "N39463"},
    ]
    entity = pa.table(
        {name: [flight[name] for flight in flights] for name in ("origin", "dest", "tailnum")}
        | {"event_timestamp": pa.array([AS_OF] * 3, pa.int64()).cast(pa.timestamp("us", "UTC"))}
    )
    ours = point_in_time.historical(settings, entity, pins)
    names = [name for pin in pins for name in pin.features]
    store = feast_registry.open_store(settings)
    references = [f"{pin.view}:{name}" for pin in pins for name in pin.features]
    theirs = store.get_historical_features(entity.to_pandas(), references).to_arrow()
    assert theirs.select(names).to_pylist() == ours.select(names).to_pylist()
    assert ours.column("seats").null_count == 1

    with features.Publisher(settings, [pin.view.rpartition("__")[0] for pin in pins]) as publisher:
        publisher.tick(AS_OF)
    readable = asyncio.run(_readable_through(settings, [*(pin.view for pin in pins), "nobody__0000"]))
    assert readable == {pin.view: AS_OF for pin in pins}
    asked = [flight for flight in flights if flight["tailnum"]]
    online = store.get_online_features(references, asked).to_dict()
    kept = [row for row in ours.select(names).to_pylist() if row["seats"] is not None]
    assert {name: online[name] for name in names} == {name: [row[name] for row in kept] for name in names}

    # The gateway, which also knows what to do without a tail number.
    columns = {
        name: np.array([flight[name] for flight in flights], dtype=object) for name in ("origin", "dest", "tailnum")
    }
    reads = read_online(settings, pins, columns, 3, AS_OF)
    served = {
        name: values for view in reads.views for name, values in zip(view.logged.names, view.logged.values, strict=True)
    }
    assert served == {name: ours.column(name).to_pylist() for name in names}
    assert [view.degraded for view in reads.views] == [""] * len(pins)

    dropped, *kept_views = pins
    with open_online(settings) as online:
        assert set(online.views()) == {pin.view for pin in pins}
        online.drop(dropped.view, dropped.features)
        assert set(online.views()) == {pin.view for pin in kept_views}
    gone, *others = read_online(settings, pins, columns, 3, AS_OF).views
    assert gone.degraded.startswith(f"{dropped.view}: ")  # missing, or no such table
    assert [view.degraded for view in others] == [""] * len(others)


async def _readable_through(settings: Settings, views: list[str]) -> dict[str, int]:
    """As the gateway measures freshness."""
    store = open_store(settings, budget_ms=5000)
    await store.start()
    try:
        return await store.readable_through(views)
    finally:
        await store.stop()
