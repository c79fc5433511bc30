"""What the gateway counts, for Prometheus.

What every request counts are plain integers of the worker; a scrape brings them to the client library, and so does a
timer, so that workers see each other's. What is rare is counted by the library itself.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from functools import lru_cache
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess

from pipelines.contracts.events import Arm

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

_BUCKETS_US = (250, 500, 1000, 2000, 3000, 5000, 10_000, 20_000, 50_000, 100_000, 250_000, 500_000, 10**6, 2_500_000)
_BUCKETS = tuple(bound / 1e6 for bound in _BUCKETS_US)


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

    __slots__ = ("_counts", "_series", "_sum")

    def __init__(self, series: Histogram) -> None:
        self._series = series
        self._counts = [0] * (len(_BUCKETS) + 1)
        self._sum = 0

    def observe(self, microseconds: int) -> None:
        self._counts[bisect_left(_BUCKETS_US, microseconds)] += 1
        self._sum += microseconds

    def tell(self) -> None:
        if not any(self._counts):
            return
        # The client library has no call for many observations at once; these are what its `observe` adds to.
        for bucket, count in zip(self._series._buckets, self._counts, strict=True):  # noqa: SLF001
            if count:
                bucket.inc(count)
        self._series._sum.inc(self._sum / 1e6)  # noqa: SLF001
        self._counts = [0] * len(self._counts)
        self._sum = 0


class ArmMetrics(NamedTuple):
    """The series of one (model, arm, release)."""

    outcomes: dict[str, Count]
    latency: Times
    model_time: Times
    degraded: Count


class Metrics:
    """All series of one worker, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        arm = ("model", "arm", "release")
        self._responses = self._counter("responses", "Outcomes by arm and status", (*arm, "status"))
        self._latency = self._histogram("scoring_seconds", "Features, model and post-processing of one arm", arm)
        self._model_time = self._histogram("model_seconds", "ONNX Runtime alone", arm)
        self._degraded = self._counter("degraded", "Outcomes made with missing or stale features", arm)
        self._requests = self._histogram("request_seconds", "Infer requests, body read to answer sent", ("model",))
        self._hot: list[Count | Times] = []
        self.refused = self._counter("refused", "Requests answered with an error", ("status",))
        self.shed = self._counter("shadow_shed", "Requests that no second arm scored, the queue being full", ("model",))
        self.unlogged = self._counter("unlogged", "Answers whose events could not be written", ("model",))
        self.retries = self._counter("retries", "Requests that repeated a client's id", ("model",))
        self.fallbacks = self._counter(
            "fallbacks", "Requests the champion answered for a failed challenger", ("model",)
        )
        self.batch_answers = self._counter(
            "batch_answers", "Requests answered by a batch score, the release having failed", ("model",)
        )
        self.overrides = self._counter(
            "overrides", "Times the gateway reduced exposure on its own or by hand", ("model",)
        )
        self.feedback = self._counter("feedback", "Labels and KPI values made durable", ("model", "kind"))
        self.route_version = self._gauge("route_version", "Version of the route in force", ("model",))
        self.log_events = self._gauge("log_events", "Events written in this worker epoch", ())

    @lru_cache(maxsize=256)  # noqa: B019 - one Metrics a process
    def arm(self, model: str, arm: Arm | str, release: str) -> ArmMetrics:
        """The series of one arm."""
        labels = (model, arm, release[:12])
        made = ArmMetrics(
            {status: Count(self._responses.labels(*labels, status)) for status in ("ok", "error", "invalid")},
            Times(self._latency.labels(*labels)),
            Times(self._model_time.labels(*labels)),
            Count(self._degraded.labels(*labels)),
        )
        self._hot += [*made.outcomes.values(), made.latency, made.model_time, made.degraded]
        return made

    @lru_cache(maxsize=256)  # noqa: B019 - one Metrics a process
    def request_times(self, model: str) -> Times:
        """The histogram of whole requests of a model."""
        made = Times(self._requests.labels(model))
        self._hot.append(made)
        return made

    def tell(self) -> None:
        """Bring what the request's path has counted to where scrapes find it."""
        for one in self._hot:
            one.tell()

    def render(self) -> bytes:
        """The exposition text, over all workers where they share a directory."""
        self.tell()
        if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
            together = CollectorRegistry()
            multiprocess.MultiProcessCollector(together)  # type: ignore[no-untyped-call]
            return generate_latest(together)
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, labels: tuple[str, ...]) -> Counter:
        return Counter(f"slipway_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, labels: tuple[str, ...]) -> Histogram:
        return Histogram(f"slipway_{name}", text, labels, registry=self.registry, buckets=_BUCKETS)

    def _gauge(self, name: str, text: str, labels: tuple[str, ...]) -> Gauge:
        return Gauge(f"slipway_{name}", text, labels, registry=self.registry, multiprocess_mode="livemax")
