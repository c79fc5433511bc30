"""Late, corrected and deleted facts make anew what they touch, and nothing else; any order of steps ends in the same
rows as one full computation; a process killed in the middle leaves nothing half done.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies

from pipelines.adapters.feast_online import open_online
from pipelines.contracts.clocks import to_us
from pipelines.contracts.errors import DataError, SpecError
from pipelines.settings import PROJECT
from pipelines.wiring import corrections, datasets, features, view_checks
from tests.unit.features.shop_project import HOUR, START, Shop, every_hour


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    """Ten days of facts, published."""
    made = Shop(tmp_path)
    made.tell(every_hour(0, 240), 240)
    made.run(240)
    return made


def test_a_day_of_growth_touches_nothing_that_is_published(shop: Shop) -> None:
    created = shop.lake.read(features.table_of(shop.version), ["created_timestamp"]).num_rows
    shop.tell(every_hour(240, 264), 264)
    assert shop.run(264).days == 0
    assert shop.run(264).days == 0
    assert len(shop.published()) > created
    assert shop.published() == shop.recomputed()


def test_a_late_fact_makes_anew_the_days_its_windows_reach_and_only_changed_rows_are_new(shop: Shop) -> None:
    shop.tell([(50, 9.0)], 241)
    made = shop.run(241)
    assert made.days == 4  # known on day 2, and windows of two days and two steps
    assert shop.published() == shop.recomputed()
    rows = shop.lake.read(features.table_of(shop.version)).to_pylist()
    new = [row for row in rows if to_us(row["created_timestamp"]) > shop.at(241)]
    assert len(new) == made.changed
    assert {row["shop"] for row in new} == {"s0"}
    assert all(timedelta() <= row["event_timestamp"] - (START + 50 * HOUR) <= 50 * HOUR for row in new)


def test_corrected_and_deleted_facts_are_noticed_too(shop: Shop) -> None:
    shop.correct(3, 7.0)
    assert shop.run(240).changed > 0
    assert shop.published() == shop.recomputed()
    shop.lake.replace(
        datasets.table_of("sales"), shop.lake.read(datasets.table_of("sales"), where="day <> '2024-01-05'"), ["day"]
    )
    assert shop.run(240).changed > 0
    assert shop.published() == shop.recomputed()


def test_merged_files_of_a_dataset_are_no_change(shop: Shop) -> None:
    shop.tell([(10, 1.0)], 241)
    shop.run(241)
    version = shop.lake.version(features.table_of(shop.version))
    shop.lake.open(datasets.table_of("sales")).optimize.compact()
    assert shop.run(241).days == 0
    assert shop.lake.version(features.table_of(shop.version)) == (version or 0) + 1  # its mark alone


def test_a_correction_reaches_the_online_store(shop: Shop) -> None:
    features.materialise(shop.settings, "shop", shop.at(240))
    shop.correct(9, 50.0)
    shop.run(240)
    assert features.materialise(shop.settings, "shop", shop.at(240)).values > 0
    newest = max(row for row in shop.published() if row[1] == "s1")
    with open_online(shop.settings) as online:
        stored = online._connection.execute(f'SELECT value_text FROM "slipway_{shop.version}"').fetchall()
    assert str(newest[2]) in {text for (text,) in stored}


def test_a_publisher_that_prepares_ahead_takes_up_corrections_as_the_dag_does(shop: Shop) -> None:
    with features.Publisher(shop.settings, ahead_us=0) as publisher:
        publisher.tick(shop.at(240))
        shop.correct(3, 7.0)
        shop.tell(every_hour(240, 264), 264)
        publisher.tick(shop.at(250))
    assert shop.published() == shop.recomputed()
    assert shop.run(250).days == 0  # its DAG finds nothing left to make anew


def test_a_correction_that_fails_the_views_checks_changes_nothing(shop: Shop) -> None:
    before = shop.published()
    shop.tell([(60, 1_000_000.0)], 241)
    with pytest.raises(DataError, match="buyers is below 0 or above 100"):
        shop.run(241)
    assert shop.published() == before


def test_a_backfill_in_parts_repairs_what_was_lost(shop: Shop) -> None:
    table = features.table_of(shop.version)
    shop.lake.replace(table, shop.lake.read(table, where="day < '2024-01-04' OR day > '2024-01-06'"), ["day"])
    assert shop.published() != shop.recomputed()
    chunks = corrections.plan_backfill(shop.settings, "shop", "2024-01-03", "2024-03-20")
    assert [(chunk.first, chunk.last) for chunk in chunks] == [
        ("2024-01-03", "2024-02-02"), ("2024-02-03", "2024-03-04"), ("2024-03-05", "2024-03-20"),
    ]  # fmt: skip
    done = [corrections.backfill(shop.settings, one.view, one.first, one.last, shop.at(240)) for one in chunks]
    assert [one.changed > 0 for one in done] == [True, False, False]
    assert shop.published() == shop.recomputed()
    assert corrections.plan_backfill(shop.settings, "shop") == []
    for first, last in (("January", ""), ("2024-02-01", "2024-01-01")):
        with pytest.raises(SpecError, match="backfill"):
            corrections.plan_backfill(shop.settings, "shop", first, last)


STEPS = strategies.lists(
    strategies.tuples(
        strategies.sampled_from(["grow", "late", "correct", "backfill"]),
        strategies.integers(0, 9),
        strategies.floats(0, 20, width=16),
    ),
    min_size=2,
    max_size=4,
)


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(steps=STEPS)
def test_any_order_of_growth_late_facts_corrections_and_backfills_equals_one_full_computation(
    steps: list[tuple[str, int, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Checks have their own tests, and take longer than all the rest.
    monkeypatch.setattr(view_checks, "check", lambda *_: 0)
    with tempfile.TemporaryDirectory() as home:
        shop, hours = Shop(Path(home)), 240
        shop.tell(every_hour(0, hours)[::5], hours)
        shop.run(hours)
        for kind, day, value in steps:
            match kind:
                case "grow":
                    hours += 24
                    shop.tell([(hours - 7, value)], hours)
                case "late":
                    hours += 1
                    shop.tell([(day * 24 + 3, value), (day * 24 + 4, value)], hours)
                case "correct":
                    shop.correct(day, value)
                case _:
                    first = (START + day * 24 * HOUR).date().isoformat()
                    corrections.backfill(shop.settings, "shop", first, "2024-01-10", shop.at(hours))
            shop.run(hours)
        assert shop.published() == shop.recomputed()


DYING = """
import os, signal, sys
import deltalake
from pathlib import Path
from pipelines.settings import Settings
from pipelines.wiring import corrections

write = deltalake.write_deltalake
def dying(*args, **options):
    if sys.argv[3] == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    write(*args, **options)
    os.kill(os.getpid(), signal.SIGKILL)
deltalake.write_deltalake = dying
settings = Settings(home=Path(sys.argv[1]), include_dir=Path(sys.argv[2]), clock="replay")
corrections.amend(settings, "shop", int(sys.argv[4]))
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_process_killed_around_its_commit_leaves_all_or_nothing_and_is_repeated(shop: Shop, when: str) -> None:
    before = shop.published()
    shop.tell([(50, 9.0), (51, 9.0)], 241)
    arguments = [str(shop.settings.home), str(shop.settings.include_dir), when, str(shop.at(241))]
    died = subprocess.run([sys.executable, "-c", DYING, *arguments], cwd=PROJECT, check=False, env=os.environ)
    assert died.returncode == -signal.SIGKILL
    assert (shop.published() == before) is (when == "before")
    again = shop.run(241)
    assert (again.changed > 0) is (when == "before")
    assert shop.published() == shop.recomputed()
