"""Which datasets a task has read and written, by its job, arguments and result: for OpenLineage events.

Names follow OpenLineage: tables and folders of the installation are `file` and an absolute path, or the bucket and key.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from pipelines.adapters.delta_lake import open_lake
from pipelines.datasets.flights_sample import LAYOUT
from pipelines.settings import Settings
from pipelines.spec.dataset import FileSource, StreamSource
from pipelines.spec.loading import load_dataset, load_model, load_view
from pipelines.wiring import datasets, features, monitoring, point_in_time
from pipelines.wiring.scoring import load_release

INFERENCE = ("inference/assignment", "inference/response", "inference/label")
Given = Mapping[str, Any]


class Named(NamedTuple):
    """A dataset of OpenLineage."""

    namespace: str
    name: str


class Touched(NamedTuple):
    """What a task has read and written."""

    inputs: list[Named]
    outputs: list[Named]


def touched(settings: Settings, job: str, arguments: Given, result: Any) -> Touched:
    """What a job has touched; nothing for one that touches no data."""
    find = _JOBS.get(job.removeprefix("pipelines.wiring."))
    if find is None:
        return Touched([], [])
    read, written = find(settings, arguments, result if isinstance(result, dict) else {"": result})
    return Touched([named(settings, one) for one in read], [named(settings, one) for one in written])


def named(settings: Settings, where: str) -> Named:
    """A lake table (`features/plane__1a2b`), or a path of the installation (`/...`), as OpenLineage names it."""
    uri = where if where.startswith("/") or "://" in where else open_lake(settings).uri(where)
    parts = urlsplit(uri)
    if parts.scheme in ("", "file"):
        return Named("file", parts.path)
    return Named(f"{parts.scheme}://{parts.netloc}", parts.path.lstrip("/"))


_Tables = tuple[list[str], list[str]]


def _staged(settings: Settings, given: Given, _: Given) -> _Tables:
    source = load_dataset(settings.include_dir, given["name"]).source
    if isinstance(source, FileSource):
        path = source.path if "://" in source.path else str((settings.include_dir / source.path).resolve())
        return [path], []
    if isinstance(source, StreamSource):  # messages come by themselves: there is nothing to stage
        return [], []
    return [str(settings.root / "cache" / f"flights_sample-{LAYOUT}" / f"{source.table}.parquet")], []


def _ingested(_settings: Settings, given: Given, _result: Given) -> _Tables:
    return [], [datasets.table_of(given["ref"]["dataset"])]


def _quarantined(_settings: Settings, given: Given, result: Given) -> _Tables:
    return [], [f"quarantine/{given['ref']['dataset']}"] if result.get("") else []


def _sources(settings: Settings, view: str) -> list[str]:
    return [datasets.table_of(name) for name in load_view(settings.include_dir, view).datasets]


def _built(settings: Settings, given: Given, _: Given) -> _Tables:
    return _sources(settings, given["view"]), []


def _published(settings: Settings, _: Given, result: Given) -> _Tables:
    return _sources(settings, result["view"]), [features.table_of(result["version"])]


def _materialised(settings: Settings, _: Given, result: Given) -> _Tables:
    online = str(settings.feast_dir / "online_store.db" / result["version"])
    if settings.online_store == "redis":
        online = f"redis://{urlsplit(settings.redis_url.get_secret_value()).hostname}/{result['version']}"
    return [features.table_of(result["version"])], [online]


def _trained_on(settings: Settings, given: Given, result: Given) -> _Tables:
    spec = load_model(settings.include_dir, given["model"])
    views = [features.table_of(pin.view) for pin in point_in_time.pins(settings, given["model"])]
    read = [*(datasets.table_of(name) for name in spec.datasets()), *views]
    return read, [str(settings.training_sets / str(result[""]))]


def _fitted(settings: Settings, given: Given, _: Given) -> _Tables:
    return [str(settings.training_sets / str(given["training"]))], []


def _exported(settings: Settings, _: Given, result: Given) -> _Tables:
    return [], [str(settings.releases / str(result[""]))]


def _registered(settings: Settings, given: Given, _: Given) -> _Tables:
    release = load_release(settings, str(given["release"]))
    training = release.manifest.training.get("training_set")
    return [str(settings.training_sets / str(training))] if training else [], [str(release.folder)]


def _scored(settings: Settings, given: Given, result: Given) -> _Tables:
    spec = load_model(settings.include_dir, given["model"])
    read = [datasets.table_of(name) for name in spec.requests.datasets]
    if result.get("release"):
        release = load_release(settings, result["release"])
        read += [features.table_of(pin.view) for pin in release.manifest.views]
        read.append(str(release.folder))
    return read, [f"scores/{given['model']}"]


def _began(settings: Settings, _: Given, result: Given) -> _Tables:
    releases = [result["challenger"], *([result["champion"]] if result.get("champion") else [])]
    return [str(settings.releases / digest) for digest in releases], []


def _judged(_settings: Settings, _given: Given, _result: Given) -> _Tables:
    return [*INFERENCE], ["record/decisions"]


def _measured(_settings: Settings, given: Given, _: Given) -> _Tables:
    return [*INFERENCE], [monitoring.table_of(given["model"])]


_JOBS: dict[str, Callable[[Settings, Given, Given], _Tables]] = {
    "datasets:stage": _staged,
    "datasets:quarantine": _quarantined,
    "datasets:publish": _ingested,
    "features:build": _built,
    "features:publish": _published,
    "features:materialise": _materialised,
    "corrections:amend": _published,
    "corrections:backfill": _published,
    "training:make_training_set": _trained_on,
    "training:fit": _fitted,
    "training:export": _exported,
    "training:register": _registered,
    "batch_scores:score": _scored,
    "rollout_runs:begin": _began,
    "rollout_runs:backtest": _judged,
    "rollout_runs:advance": _judged,
    "monitoring:measure": _measured,
}
