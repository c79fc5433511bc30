"""What the gateway counts, for Prometheus. Children are looked up once per (model, arm, release), not per request."""

from __future__ import annotations

import os
from functools import lru_cache
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess

from pipelines.contracts.events import Arm

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

_BUCKETS = (0.00025, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class ArmMetrics(NamedTuple):
    """The children of one (model, arm, release)."""

    ok: Counter
    error: Counter
    invalid: Counter
    latency: Histogram
    model_time: Histogram
    degraded: Counter


class Metrics:
    """All series of one worker, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        arm = ("model", "arm", "release")
        self._responses = self._counter("responses", "Outcomes by arm and status", (*arm, "status"))
        self._latency = self._histogram("scoring_seconds", "Features, model and post-processing of one arm", arm)
        self._model_time = self._histogram("model_seconds", "ONNX Runtime alone", arm)
        self._degraded = self._counter("degraded", "Outcomes made with missing or stale features", arm)
        self.requests = self._histogram("request_seconds", "Infer requests, body read to answer sent", ("model",))
        self.refused = self._counter("refused", "Requests answered with an error", ("status",))
        self.shed = self._counter("shadow_shed", "Requests that no second arm scored, the queue being full", ("model",))
        self.unlogged = self._counter("unlogged", "Answers whose events could not be written", ("model",))
        self.retries = self._counter("retries", "Requests that repeated a client's id", ("model",))
        self.fallbacks = self._counter(
            "fallbacks", "Requests the champion answered for a failed challenger", ("model",)
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
        return ArmMetrics(
            self._responses.labels(*labels, "ok"),
            self._responses.labels(*labels, "error"),
            self._responses.labels(*labels, "invalid"),
            self._latency.labels(*labels),
            self._model_time.labels(*labels),
            self._degraded.labels(*labels),
        )

    def render(self) -> bytes:
        """The exposition text, over all workers where they share a directory."""
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
