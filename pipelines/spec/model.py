"""The spec of a model: what a request is, what its label is, its features, and how it is made and guarded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from pipelines.spec import dataset, rollout, view
from pipelines.spec.dataset import DatasetSpec
from pipelines.spec.durations import EventDuration
from pipelines.spec.fields import Name, Schedule, Strict, TransformFile, TransformRef
from pipelines.spec.problems import Location, Problem
from pipelines.spec.rollout import Rollout, Traffic
from pipelines.spec.view import ViewSpec

Datatype = Literal["BYTES", "FP64", "FP32", "INT64", "INT32", "BOOL"]


class Requests(Strict):
    """Past requests as they would have been sent: `request_id`, `event_timestamp` and the inputs by name."""

    datasets: Annotated[list[Name], Field(min_length=1)]
    transform: TransformRef


class Labels(Strict):
    """Truths: `request_id`, `label`, `label_timestamp` (when known); `unlabelled`: the fate of requests without."""

    datasets: Annotated[list[Name], Field(min_length=1)]
    transform: TransformRef
    unlabelled: Literal["drop", "censor"] = "drop"
    maturity: EventDuration


class InputSpec(Strict):
    """One request input, as an Open Inference Protocol tensor."""

    datatype: Datatype
    required: bool = True
    description: str = ""


class ViewUse(Strict):
    """One feature view read for a request. `entity` maps the view's join keys to request inputs."""

    view: Name
    entity: Annotated[dict[Name, Name], Field(min_length=1)]
    features: Annotated[list[Name], Field(min_length=1)]
    defaults: dict[Name, float | int] = Field(default_factory=dict)


class RequestFeatures(Strict):
    """`def build(inputs, features) -> dict[str, array]`, numpy only, and the names it makes."""

    file: TransformFile
    names: Annotated[list[Name], Field(min_length=1)]
    defaults: dict[Name, float | int] = Field(default_factory=dict)


class Postprocess(Strict):
    """`def apply(raw, inputs, params) -> dict[str, array]`, numpy only."""

    file: TransformFile
    params: dict[str, Any] = Field(default_factory=dict)


def _score_only() -> dict[str, Datatype]:
    return {"score": "FP64"}


class Output(Strict):
    """What a valid answer is."""

    score: Name = "score"
    low: float | None = None
    high: float | None = None
    fields: dict[Name, Datatype] = Field(default_factory=_score_only)


class Split(Strict):
    """Lengths of the last parts of the window, and the gap that label delay asks for before each."""

    validation: EventDuration
    test: EventDuration
    gap: EventDuration


class Training(Strict):
    """How a release is made."""

    trainer: Name
    window: EventDuration | Literal["all"] = "all"
    split: Split
    trials: Annotated[int, Field(ge=0)] = 10
    seed: int = 7
    params: dict[str, Any] = Field(default_factory=dict)
    calibration: Literal["none", "platt", "isotonic"] = "none"


class OfflineGate(Strict):
    """One condition a release must meet before it may start a rollout."""

    metric: Name
    min: float | None = None
    max: float | None = None
    against: Literal["champion"] | None = None
    max_worse_rel: float | None = None
    max_worse_abs: float | None = None


class Batching(Strict):
    """Requests are gathered until they have `max_size` rows, or the first has waited `max_wait_ms` (wall)."""

    max_size: Annotated[int, Field(ge=2, le=1024)]
    max_wait_ms: Annotated[int, Field(ge=0, le=1000)]


class Serving(Strict):
    """How the gateway serves the model. `payload_sampling`: the share of requests whose inputs and features are logged;
    assignments, answers and labels always are. Frozen into a rollout when it starts. `batching`: for heavy models,
    whose calls cost less together than alone; part of the release."""

    payload_sampling: Annotated[float, Field(ge=0, le=1)] = 1.0
    batching: Batching | None = None


class Drift(Strict):
    """Bars a monitored distribution must cross to count as drifted."""

    psi: float = 0.2
    p_value: float = 0.001
    min_rows: Annotated[int, Field(ge=1)] = 500


class Performance(Strict):
    """How much worse the matured metric may be than at training."""

    metric: Name
    max_worse_rel: float


class Retrain(Strict):
    """When drift may start a retraining, and how often."""

    cooldown: EventDuration
    limit: Annotated[int, Field(ge=0)]
    per: EventDuration


class Monitor(Strict):
    """What is watched, against which rows, and what follows."""

    schedule: Schedule | None = None
    reference: EventDuration
    current: EventDuration
    report_only: list[Name] = Field(default_factory=list)
    drift: Drift = Drift()
    performance: Performance | None = None
    retrain: Retrain | None = None


class Score(Strict):
    """Batch scoring of coming requests into the lake."""

    schedule: Schedule | None = None


class Define(Strict):
    """Datasets and views that a model brings along in its own file; any other model may use them too."""

    datasets: list[DatasetSpec] = Field(default_factory=list)
    features: list[ViewSpec] = Field(default_factory=list)


def _named(value: object) -> object:
    return {"model": value} if isinstance(value, str) else value


class Feeding(Strict):
    """A model whose scores this one is given; its name alone is short for one without `input`.

    `input`: the input that is its score, sent under the request id of the request that it answered. Then a challenger
    of it leaves shadow only when it has been tried on so many `requests` of this model, and has done it no harm.
    """

    model: Name
    input: Name | None = None
    requests: Annotated[int, Field(ge=1)] = 500


class ModelSpec(Strict):
    """`include/models/<model>.yaml`.

    `on_features_unavailable`: what the gateway does when the online store is down or late: it answers by the
    `defaults` and says so, or refuses with 503. A row that is missing or expired is no such case.
    `on_failure`: what it answers where no release gives an answer: the error, or the last batch score of that request.
    """

    name: Name
    owner: str
    description: str
    task: Literal["binary", "regression"]
    requests: Requests
    labels: Labels
    inputs: Annotated[dict[Name, InputSpec], Field(min_length=1)]
    dropped_inputs: list[Name] = Field(default_factory=list)
    """Inputs that clients send along and that the gateway drops unread: PII, mostly."""
    views: list[ViewUse] = Field(default_factory=list)
    on_features_unavailable: Literal["defaults", "refuse"] = "defaults"
    on_failure: Literal["error", "batch_score"] = "error"
    request_features: RequestFeatures | None = None
    input_features: list[Name] = Field(default_factory=list)
    postprocess: Postprocess | None = None
    output: Output = Output()
    slices: list[Name] = Field(default_factory=list)
    fed_by: list[Annotated[Feeding, BeforeValidator(_named)]] = Field(default_factory=list)
    """Models whose scores this one is given: while one of them is rolled out, this one's rollout waits, and back."""
    training: Training
    offline_gates: list[OfflineGate] = Field(default_factory=list)
    traffic: Traffic | None = None
    rollout: Rollout
    serving: Serving = Serving()
    monitor: Monitor | None = None
    score: Score | None = None
    schedule: Schedule | None = None
    define: Define = Define()

    def datasets(self) -> list[str]:
        """Every dataset that requests and labels are made of, sorted."""
        return sorted({*self.requests.datasets, *self.labels.datasets})

    def feature_names(self) -> list[str]:
        """The model's columns in order: inputs, request features, then view features as the views are listed."""
        made = self.request_features.names if self.request_features else []
        return [*self.input_features, *made, *(name for use in self.views for name in use.features)]


def problems(spec: ModelSpec) -> Iterator[Problem]:
    """What is inconsistent inside one model spec."""
    yield from _input_problems(spec)
    for index, name in enumerate(spec.dropped_inputs):
        if name in spec.inputs:
            yield Problem(("dropped_inputs", index), f"'{name}' is an input; it cannot be dropped")
    yield from _feature_problems(spec)
    yield from within(("rollout",), rollout.problems(spec.rollout))
    if spec.traffic is not None:
        yield from within(("traffic",), rollout.traffic_problems(spec.traffic, spec.rollout))
    yield from _define_problems(spec)
    if spec.output.score not in spec.output.fields:
        yield Problem.unknown(("output", "score"), "output field", spec.output.score, spec.output.fields)
    if spec.output.low is not None and spec.output.high is not None and spec.output.low >= spec.output.high:
        yield Problem(("output", "low"), f"low {spec.output.low} is not below high {spec.output.high}")
    if spec.on_failure == "batch_score" and spec.score is None:
        yield Problem(("on_failure",), "batch_score needs batch scores: add `score: {schedule: ...}`")
    if spec.monitor is not None:
        for index, name in enumerate(spec.monitor.report_only):
            if name not in spec.feature_names():
                yield Problem.unknown(("monitor", "report_only", index), "model feature", name, spec.feature_names())
    for index, gate in enumerate(spec.offline_gates):
        relative = gate.max_worse_rel is not None or gate.max_worse_abs is not None
        if (gate.against is not None) != relative or not (relative or gate.min is not None or gate.max is not None):
            yield Problem(
                ("offline_gates", index),
                f"gate on '{gate.metric}': give min or max, or `against: champion` with max_worse_rel or max_worse_abs",
            )


def _define_problems(spec: ModelSpec) -> Iterator[Problem]:
    for index, brought in enumerate(spec.define.datasets):
        yield from within(("define", "datasets", index), dataset.problems(brought))
    for index, view_spec in enumerate(spec.define.features):
        yield from within(("define", "features", index), view.problems(view_spec))


def within(location: Location, found: Iterable[Problem]) -> Iterator[Problem]:
    """Problems of a part, located in the whole."""
    for problem in found:
        yield Problem((*location, *problem.location), problem.message)


def _input_problems(spec: ModelSpec) -> Iterator[Problem]:
    inputs = list(spec.inputs)
    for index, name in enumerate(spec.input_features):
        if name not in spec.inputs:
            yield Problem.unknown(("input_features", index), "input", name, inputs)
        elif spec.inputs[name].datatype == "BYTES":
            yield Problem(("input_features", index), f"input '{name}' is text; make a number of it in request_features")
    for index, name in enumerate(spec.slices):
        if name not in spec.inputs:
            yield Problem.unknown(("slices", index), "input", name, inputs)
    for index, use in enumerate(spec.views):
        for key, name in use.entity.items():
            if name not in spec.inputs:
                yield Problem.unknown(("views", index, "entity", key), "input", name, inputs)
        for name in use.defaults:
            if name not in use.features:
                yield Problem.unknown(("views", index, "defaults", name), "feature of this use", name, use.features)


def _feature_problems(spec: ModelSpec) -> Iterator[Problem]:
    names = spec.feature_names()
    if not names:
        yield Problem((), "the model has no features: name input_features, request_features or views")
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield Problem((), f"model feature '{name}' is made twice")
