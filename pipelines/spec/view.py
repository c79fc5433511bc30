"""The spec of a feature view: named, typed features of one entity from one Ibis expression over datasets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from pipelines.contracts.canonical import digest, file_digest
from pipelines.spec.dataset import Check
from pipelines.spec.durations import EventDuration
from pipelines.spec.fields import FeatureType, KeyType, Name, Schedule, Strict, TransformRef
from pipelines.spec.problems import Problem

RESERVED = frozenset({"event_timestamp", "created_timestamp", "day", "known_at", "available_at"})


class Entity(Strict):
    """The key the features belong to."""

    name: Name
    keys: Annotated[dict[Name, KeyType], Field(min_length=1)]


class Feature(Strict):
    """One feature. `min` and `max` are closed bounds that a published value may not leave.

    `tolerance`: how far a value read online may be from the recomputed one, in the feature's unit.
    """

    type: FeatureType
    unit: str | None = None
    description: str = ""
    nullable: bool = True
    min: float | int | None = None
    max: float | int | None = None
    tolerance: Annotated[float, Field(ge=0)] = 0.0


class Parity(Strict):
    """How far what was read online may be from the lake, before a rollout is held. Shares are of the rows compared.

    `tolerance_rel`: of a number, beside the feature's own `tolerance`. `lag`: how long a row may be due and not
    readable yet; `publish_every` when not given.
    """

    tolerance_rel: Annotated[float, Field(ge=0)] = 1e-6
    wrong_share: Annotated[float, Field(ge=0, le=1)] = 0.001
    late_share: Annotated[float, Field(ge=0, le=1)] = 0.05
    lag: EventDuration | None = None


class PartitionDrift(Strict):
    """How far a new day may be from the days before it, at the same hours of the day.

    `psi`: population stability index over the quantiles of those days; `mean_shift`: of the day's mean, in standard
    deviations of their means. Days with fewer than `min_rows` rows are not judged. `action`: `block` publishes nothing.
    """

    psi: Annotated[float, Field(gt=0)] | None = None
    mean_shift: Annotated[float, Field(gt=0)] | None = None
    partitions: Annotated[int, Field(ge=2)] = 30
    min_rows: Annotated[int, Field(ge=1)] = 50
    action: Literal["report", "block"] = "report"
    features: list[Name] = Field(default_factory=list)
    """Those that are held against it; all numbers when none is named."""


class Stream(Strict):
    """How messages become rows of one of the view's datasets, whose `source` is `stream`, and so of the view.

    `watermark`: how much later than it says of itself a row may arrive, and how much earlier. `dead_letters`: the topic
    of what cannot be used; `<topic>.dead` when it is not given. `independent_keys`: a key's rows arise from the rows of
    that key alone, and bear the `available_at` of one of them; then only the keys of new rows are computed again.
    """

    topic: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,240}$")]
    dataset: Name
    watermark: EventDuration
    dead_letters: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,249}$")] | None = None
    independent_keys: bool = False

    @property
    def dead_topic(self) -> str:
        """The topic of dead letters."""
        return self.dead_letters or f"{self.topic}.dead"


class ViewSpec(Strict):
    """`include/features/<view>.yaml`."""

    name: Name
    owner: str
    description: str
    entity: Entity
    datasets: Annotated[list[Name], Field(min_length=1)]
    static: list[Name] = Field(default_factory=list)
    """Those of the datasets that the look-back does not cut: registers, read whole."""
    transform: TransformRef
    features: Annotated[dict[Name, Feature], Field(min_length=1)]
    look_back: EventDuration
    publish_every: EventDuration
    ttl: EventDuration | None = None
    freshness: EventDuration
    """How old what can be read online may be; past it, rollouts of releases that read the view do not go on."""
    alert: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,62}$")] = "SlipwayViewStale"
    """Name of the alert that is raised then."""
    parity: Parity = Parity()
    drift: PartitionDrift | None = None
    checks: list[Check] = Field(default_factory=list)
    schedule: Schedule | None = None
    engine: Literal["duckdb", "spark"] | None = None
    """What computes it; None: what the installation's settings say. The values are the same, so no new version."""
    stream: Stream | None = None

    def version(self, include: Path) -> str:
        """Four hex digits that change with whatever changes values: transform source, features, entity, windows."""
        source = include / "transforms" / self.transform.partition(":")[0]
        return digest(
            {
                "transform": [self.transform, file_digest(source)],
                "features": {name: feature.type for name, feature in self.features.items()},
                "entity": self.entity.model_dump(mode="json"),
                "datasets": [self.datasets, self.static],
                "look_back": str(self.look_back),
                "publish_every": str(self.publish_every),
            }
        )[:4]

    def feast_name(self, include: Path) -> str:
        """The versioned name: `<name>__<version>`."""
        return f"{self.name}__{self.version(include)}"


def problems(spec: ViewSpec) -> Iterator[Problem]:
    """What is inconsistent inside one view spec."""
    for name in RESERVED & (set(spec.features) | set(spec.entity.keys)):
        where = "features" if name in spec.features else "entity"
        yield Problem((where,), f"column '{name}' is added by the framework; name it differently")
    for name in set(spec.features) & set(spec.entity.keys):
        yield Problem(("features", name), f"feature '{name}' is also an entity key")
    for index, name in enumerate(spec.static):
        if name not in spec.datasets:
            yield Problem.unknown(("static", index), "dataset of this view", name, spec.datasets)
    if spec.stream is not None:
        if spec.stream.dataset not in spec.datasets:
            yield Problem.unknown(("stream", "dataset"), "dataset of this view", spec.stream.dataset, spec.datasets)
        if spec.stream.dead_topic == spec.stream.topic:
            yield Problem(("stream", "dead_letters"), "dead letters would come back: it is the stream's own topic")
    if spec.publish_every.us <= 0:
        yield Problem(("publish_every",), "publish_every is zero; a view is published at steps of some length")
    elif 86_400_000_000 % spec.publish_every.us:
        yield Problem(("publish_every",), f"publish_every '{spec.publish_every}' does not divide a day")
    yield from _drift_problems(spec)
    for name, feature in spec.features.items():
        if feature.min is not None and feature.max is not None and feature.min > feature.max:
            yield Problem(("features", name, "min"), f"min {feature.min} is above max {feature.max}")


def _drift_problems(spec: ViewSpec) -> Iterator[Problem]:
    if spec.drift is None:
        return
    if spec.drift.psi is None and spec.drift.mean_shift is None:
        yield Problem(("drift",), "drift has no bound; give psi or mean_shift")
    for index, name in enumerate(spec.drift.features):
        if name not in spec.features:
            yield Problem.unknown(("drift", "features", index), "feature of this view", name, spec.features)
