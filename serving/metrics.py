"""What the gateway counts, for Prometheus.

What every request counts are plain integers of the worker; a scrape brings them to the client library, and so does a
timer, so that workers see each other's. What is rare is counted by the library itself. Gauges are set by whoever knows
them, in a `watch`ed call before each telling.
"""

from __future__ import annotations

import os
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Literal, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess
from prometheus_client.core import GaugeMetricFamily, Metric

from pipelines.contracts.events import Arm

_Mode = Literal["livemax", "livemin", "livesum"]

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

_BUCKETS_US = (250, 500, 1000, 2000, 3000, 5000, 10_000, 20_000, 50_000, 100_000, 250_000, 500_000, 10**6, 2_500_000)
_BUCKETS = tuple(bound / 1e6 for bound in _BUCKETS_US)
_ROW_BUCKETS = tuple(float(1 << power) for power in range(11))
_MINUTE, _HOUR, _DAY = 60, 3600, 86_400
_AGE_BUCKETS = (_MINUTE, 5 * _MINUTE, 15 * _MINUTE, _HOUR, 3 * _HOUR, 6 * _HOUR, 12 * _HOUR, _DAY, 2 * _DAY, 7 * _DAY)


class Count:
    """A counter of the request's path: a plain integer, told to Prometheus' counter by `tell`."""

    __slots__ = ("_series", "_told", "n")

    def __init__(self, series: Counter) -> None:
        self._series = series
        self.n = self._told = 0

    def tell(self) -> None:
        if self.n != self._told:
            self._series.inc(self.n - self._told)
            self._told = self.n


class Times:
    """A histogram of the request's path over microseconds; `tell` adds them to Prometheus' histogram of seconds."""

    __slots__ = ("_bounds", "_counts", "_series", "_sum")

    def __init__(self, series: Histogram, bounds_us: tuple[int, ...] = _BUCKETS_US) -> None:
        self._series = series
        self._bounds = bounds_us
        self._counts = [0] * (len(bounds_us) + 1)
        self._sum = 0

    def observe(self, microseconds: int) -> None:
        self._counts[bisect_left(self._bounds, microseconds)] += 1
        self._sum += microseconds

    def tell(self) -> None:
        if not any(self._counts):
            return
        # The client library has no call for many observations at once; these are what its `observe` adds to.
        for bucket, count in zip(self._series._buckets, self._counts, strict=True):  # noqa: SLF001 - see above
            if count:
                bucket.inc(count)
        self._series._sum.inc(self._sum / 1e6)  # noqa: SLF001 - see above
        self._counts = [0] * len(self._counts)
        self._sum = 0


class ArmMetrics(NamedTuple):
    """The series of one (model, arm, release)."""

    outcomes: dict[str, Count]
    latency: Times
    features_time: Times
    model_time: Times
    degraded: Count
    predictions: Count


class ViewMetrics(NamedTuple):
    """The series of one feature view."""

    found: Count
    absent: Count
    age: Times


class LogTimes(NamedTuple):
    """How long the inference log takes: a write to the kernel (one event in 16), and an fsync."""

    write: Times
    fsync: Histogram


class Metrics:
    """All series of one worker, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        arm = ("model", "arm", "release")
        self._responses = self._counter("responses", "Outcomes by arm and status", (*arm, "status"))
        self._latency = self._histogram("scoring_seconds", "Features, model and post-processing of one arm", arm)
        self._model_time = self._histogram("model_seconds", "ONNX Runtime alone", arm)
        self._features_time = self._histogram("features_seconds", "Reading online features, for one arm", arm)
        self._degraded = self._counter("degraded", "Outcomes made with missing or stale features", arm)
        self._predictions = self._counter("predictions", "Rows answered", arm)
        self._feature_rows = self._counter(
            "feature_rows", "Rows of answered requests by what the online store had for them", ("view", "found")
        )
        self._feature_age = self._histogram(
            "feature_age_seconds", "Event time from the oldest feature row used to its request", ("view",), _AGE_BUCKETS
        )
        self._requests = self._histogram("request_seconds", "Infer requests, body read to answer sent", ("model",))
        self._hot: list[Count | Times] = []
        self.batch_rows = self._histogram(
            "batch_rows", "Rows scored together, of releases that are batched", ("model", "release"), _ROW_BUCKETS
        )
        self.refused = self._counter("refused", "Requests answered with an error", ("status",))
        self._shed = self._counter(
            "shadow_shed", "Requests that no second arm scored: no place or time, or the challenger off", ("model",)
        )
        self.unlogged = self._counter("unlogged", "Answers whose events could not be written", ("model",))
        self.retries = self._counter("retries", "Requests that repeated a client's id", ("model",))
        self.fallbacks = self._counter(
            "fallbacks", "Requests the champion answered for a failed challenger", ("model",)
        )
        self.batch_answers = self._counter(
            "batch_answers", "Requests answered by a batch score, the release having failed", ("model",)
        )
        self.overrides = self._counter(
            "overrides", "Times the gateway reduced exposure on its own (breaker) or by hand", ("model", "by")
        )
        self.feedback = self._counter("feedback", "Labels and KPI values made durable", ("model", "kind"))
        self.ended = self._counter("connections_ended", "Connections the gateway ended", ("reason",))
        self._cpu = self._counter("cpu_seconds", "Processor time of the workers and their shadow processes", ())
        self._cpu_told = 0.0
        fsync = self._histogram("log_fsync_seconds", "An fsync of the inference log", ())
        write = self._histogram("log_write_seconds", "Handing an event to the kernel (one in 16 is measured)", ())
        self.log_times = LogTimes(Times(write), fsync)
        self._hot.append(self.log_times.write)
        self.route_version = self._gauge("route_version", "Version of the route in force", ("model",))
        self.route_version_slowest = self._gauge(
            "route_version_slowest_worker", "The same, in the worker that is furthest behind", ("model",), "livemin"
        )
        self.route_since = self._gauge(
            "route_in_force_timestamp_seconds", "When the route in force was taken up", ("model",)
        )
        self.override_in_force = self._gauge("override_in_force", "1 while an override outranks the route", ("model",))
        self.control_age = self._gauge("control_database_age_seconds", "Since the routes were last read", ())
        self.shadow_waiting = self._gauge("shadow_waiting", "Requests whose second arm waits", (), "livesum")
        self.connections = self._gauge("connections", "Open connections", (), "livesum")
        self.log_slow = self._gauge("log_slow", "1 while the disk of the inference log does not keep up", ())
        self.core_price = self._gauge("core_price_per_hour", "SLIPWAY_CORE_PRICE_PER_HOUR", ())
        self.view_readable_through = self._gauge(
            "view_readable_through_timestamp_seconds", "Event time up to which a view can be read online", ("view",)
        )
        self.view_age = self._gauge("view_age_seconds", "Event now minus that", ("view",))
        self.log_events = self._gauge("log_events", "Events written in this worker epoch", ())
        self._watched: list[Callable[[], None]] = []
        for status in ("400", "404", "413", "429", "500", "503"):
            self.refused.labels(status)

    @lru_cache(maxsize=256)  # noqa: B019 - one Metrics a process
    def arm(self, model: str, arm: Arm | str, release: str) -> ArmMetrics:
        """The series of one arm."""
        labels = (model, arm, release[:12])
        made = ArmMetrics(
            {status: Count(self._responses.labels(*labels, status)) for status in ("ok", "error", "invalid")},
            Times(self._latency.labels(*labels)),
            Times(self._features_time.labels(*labels)),
            Times(self._model_time.labels(*labels)),
            Count(self._degraded.labels(*labels)),
            Count(self._predictions.labels(*labels)),
        )
        self._hot += [*made.outcomes.values(), *made[1:]]
        return made

    @lru_cache(maxsize=256)  # noqa: B019 - one Metrics a process
    def view(self, view: str) -> ViewMetrics:
        """The series of one feature view, by its versioned name."""
        age_us = tuple(bound * 1_000_000 for bound in _AGE_BUCKETS)
        made = ViewMetrics(
            Count(self._feature_rows.labels(view, "yes")),
            Count(self._feature_rows.labels(view, "no")),
            Times(self._feature_age.labels(view), age_us),
        )
        self._hot += made
        return made

    @lru_cache(maxsize=256)  # noqa: B019 - one Metrics a process
    def request_times(self, model: str) -> Times:
        """The histogram of whole requests of a model."""
        made = Times(self._requests.labels(model))
        self._hot.append(made)
        return made

    @lru_cache(maxsize=256)  # noqa: B019 - one Metrics a process
    def shed(self, model: str) -> Count:
        """The count of a model's requests without their second arm: under load, most of them."""
        made = Count(self._shed.labels(model))
        self._hot.append(made)
        return made

    @lru_cache(maxsize=256)  # noqa: B019 - one Metrics a process
    def begin(self, model: str) -> None:
        """Show the model's rare counts from 0 on: of a series that begins at 1, Prometheus sees no increase."""
        for series in (self._shed, self.unlogged, self.retries, self.fallbacks):
            series.labels(model)
        for by in ("breaker", "hand"):
            self.overrides.labels(model, by)
        for kind in ("label", "kpi"):
            self.feedback.labels(model, kind)

    def tell(self) -> None:
        """Bring what the request's path has counted to where scrapes find it."""
        for one in self._hot:
            one.tell()
        for set_gauges in self._watched:
            set_gauges()

    def processor_time(self, of_others_s: float) -> None:
        """Take in what this process has used so far, those it has waited for, and `of_others_s` of those that run."""
        ended = os.times()
        used = time.process_time() + ended.children_user + ended.children_system + of_others_s
        # A process that has ended is among neither until it has been waited for.
        self._cpu.inc(max(0.0, used - self._cpu_told))
        self._cpu_told = max(used, self._cpu_told)

    def watch(self, set_gauges: Callable[[], None]) -> None:
        """Have `set_gauges` called before each telling."""
        self._watched.append(set_gauges)

    def render(self) -> bytes:
        """The exposition text, over all workers where they share a directory."""
        self.tell()
        shown = self.registry
        if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
            shown = CollectorRegistry()
            multiprocess.MultiProcessCollector(shown)  # type: ignore[no-untyped-call] # the library has no types here
        return generate_latest(shown) + generate_latest(_Cost(shown))

    def _counter(self, name: str, text: str, labels: tuple[str, ...]) -> Counter:
        return Counter(f"slipway_{name}", text, labels, registry=self.registry)

    def _histogram(
        self, name: str, text: str, labels: tuple[str, ...], buckets: tuple[float, ...] = _BUCKETS
    ) -> Histogram:
        return Histogram(f"slipway_{name}", text, labels, registry=self.registry, buckets=buckets)

    def _gauge(self, name: str, text: str, labels: tuple[str, ...], mode: _Mode = "livemax") -> Gauge:
        return Gauge(f"slipway_{name}", text, labels, registry=self.registry, multiprocess_mode=mode)


class _Cost(CollectorRegistry):
    """What 1,000 predictions have cost since the gateway's start: processor time at the price of a core.

    Over a window it is a recording rule (include/dashboards/rules.yaml); it counts used time, not idle cores.
    """

    def __init__(self, shown: CollectorRegistry) -> None:
        super().__init__()
        self._shown = shown

    def collect(self) -> Iterator[Metric]:
        totals = dict.fromkeys(("slipway_cpu_seconds_total", "slipway_predictions_total"), 0.0)
        price = 0.0
        for family in self._shown.collect():
            for sample in family.samples:
                if sample.name in totals:
                    totals[sample.name] += sample.value
                elif sample.name == "slipway_core_price_per_hour":
                    price = sample.value
        seconds, predictions = totals.values()
        if predictions:
            cost = GaugeMetricFamily("slipway_cost_per_1000_predictions", "Since the start, in the unit of the price")
            cost.add_metric([], seconds / 3600 * price / predictions * 1000)
            yield cost
