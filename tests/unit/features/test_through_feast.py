"""The project's views through Feast itself: the same values as by our own short ways."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from pipelines.contracts.clocks import parse_event_time
from pipelines.settings import Settings
from pipelines.wiring import features

AS_OF = parse_event_time("2013-01-18T18:00:00Z")


def test_history_and_online_reads_through_feast_equal_ours(sample_views: Settings, tmp_path: Path) -> None:
    from pipelines.adapters.feast_registry import open_store

    (tmp_path / "lake").symlink_to(sample_views.lake)
    settings = Settings(home=tmp_path, clock="replay")
    features.apply(settings)
    pins = features.pins(settings, "air_time")
    flights = [
        {"origin": "EWR", "dest": "LAX", "tailnum": "N14228"},
        {"origin": "JFK", "dest": "BQN", "tailnum": None},
        {"origin": "LGA", "dest": "ATL", "tailnum": "N39463"},
    ]
    entity = pa.table(
        {name: [flight[name] for flight in flights] for name in ("origin", "dest", "tailnum")}
        | {"event_timestamp": pa.array([AS_OF] * 3, pa.int64()).cast(pa.timestamp("us", "UTC"))}
    )
    ours = features.historical(settings, entity, pins)
    names = [name for pin in pins for name in pin.features]
    store = open_store(settings)
    references = [f"{pin.view}:{name}" for pin in pins for name in pin.features]
    theirs = store.get_historical_features(entity.to_pandas(), references).to_arrow()
    assert theirs.select(names).to_pylist() == ours.select(names).to_pylist()
    assert ours.column("seats").null_count == 1

    with features.Publisher(settings, [pin.view.rpartition("__")[0] for pin in pins]) as publisher:
        publisher.tick(AS_OF)
    asked = [flight for flight in flights if flight["tailnum"]]
    online = store.get_online_features(references, asked).to_dict()
    kept = [row for row in ours.select(names).to_pylist() if row["seats"] is not None]
    assert {name: online[name] for name in names} == {name: [row[name] for row in kept] for name in names}
