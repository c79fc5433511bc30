"""The words all DAG files share: which specs to build DAGs of, params, schedules, assets and runbooks.

A DAG file is parsed again for every task. A task needs its own DAG alone, so only that DAG's spec is opened then.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from airflow.sdk import Asset, AssetAll, AssetAny, AssetOrTimeSchedule, CronTriggerTimetable, Param, get_parsing_context

from pipelines.settings import Settings
from pipelines.spec.loading import names

PROJECT = Path(__file__).resolve().parent.parent
RUNBOOKS = PROJECT / "docs" / "runbooks"
FIRST_DAY = datetime(2024, 1, 1, tzinfo=UTC)
"""A start date is asked for and means nothing: missed intervals are never caught up, `as_of` says what is worked on."""

RFC3339 = r"^$|^\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}(:\d{2}(\.\d{1,6})?)?(Z|[+-]\d{2}:\d{2})?$"


def include_dir() -> Path:
    """Where the specs lie."""
    return Path(os.environ.get("SLIPWAY_INCLUDE_DIR") or PROJECT / "include")


def spec_names(folder: str) -> Iterator[str]:
    """Names of the specs in a folder of `include`; while a task's own DAG is parsed, that DAG's alone.

    DAG ids are `<kind>.<spec>` and `<kind>.<spec>.<part>`.
    """
    wanted = (get_parsing_context().dag_id or "").split(".")[1:2]
    for name in names(include_dir(), folder):
        if not wanted or name == wanted[0]:
            yield name


def as_of_param() -> Param:
    """The param every DAG has first."""
    return Param(
        "",
        type="string",
        pattern=RFC3339,
        title="As of",
        description="Event time the run works at, RFC 3339. Empty: that of the asset event behind it, else event now.",
    )


def text_param(title: str, description: str) -> Param:
    """A param that may be left empty."""
    return Param("", type="string", title=title, description=description)


def dataset_asset(name: str) -> Asset:
    """Told when a dataset has been published."""
    return Asset(name=f"lake://{name}", uri=f"lake://{name}")


def view_asset(name: str) -> Asset:
    """Told when a feature view can be read online at a newer event time."""
    return Asset(name=f"features://{name}", uri=f"features://{name}")


def release_asset(model: str) -> Asset:
    """Told when a release has been registered."""
    return Asset(name=f"release://{model}", uri=f"release://{model}")


def drift_asset(model: str) -> Asset:
    """Told when monitoring asks for a retraining."""
    return Asset(name=f"drift://{model}", uri=f"drift://{model}")


def scores_asset(model: str) -> Asset:
    """Told when batch scores have been written."""
    return Asset(name=f"lake://scores/{model}", uri=f"lake://scores/{model}")


def schedule(cron: str | None, assets: Sequence[Asset] = (), *, every: bool = True) -> Any:
    """By time, by assets, by either or by neither (then by hand and REST alone).

    every: whether all of the assets have to be told of, or one is enough. Under a replayed event clock the wall's
    time of day means nothing: what has a cron schedule then waits for its assets and its driver.
    """
    by_time = None if os.environ.get("SLIPWAY_CLOCK") == "replay" else cron
    by_asset = (AssetAll if every else AssetAny)(*assets) if assets else None
    if by_time and by_asset:
        return AssetOrTimeSchedule(timetable=CronTriggerTimetable(by_time, timezone="UTC"), assets=by_asset)
    if by_time:
        return CronTriggerTimetable(by_time, timezone="UTC")
    return by_asset


def maintenance_cron() -> str | None:
    """When the lake's tables are taken care of; None: by hand alone."""
    return Settings().lake_maintenance or None


def runbook(kind: str, **words: str) -> str:
    """The runbook of a kind of DAG, `docs/runbooks/<kind>.md`, with the names of this one filled in."""
    text = (RUNBOOKS / f"{kind}.md").read_text()
    for word, value in words.items():
        text = text.replace(f"{{{word}}}", value)
    return text


def common(kind: str, owner: str, **words: str) -> dict[str, Any]:
    """Arguments that every DAG has: no catching up, one run at a time, tags, runbook."""
    return {
        "start_date": FIRST_DAY,
        "catchup": False,
        "max_active_runs": 1,
        "tags": ["slipway", kind, *words.values()],
        "doc_md": runbook(kind, **words),
        "default_args": {"owner": owner},
    }
