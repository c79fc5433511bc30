"""The routes in force: followed in the background, swapped in whole, never blocking a request.

A route takes effect when every release it names is loaded, verified and warm; until then the one before it stands.
"""

from __future__ import annotations

import difflib
import logging
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import msgspec

from pipelines.contracts.clocks import wall_us
from pipelines.contracts.events import Arm
from pipelines.contracts.pii import KeyedHash
from pipelines.contracts.release import InputField
from pipelines.contracts.routes import Route
from serving.arms import Pace
from serving.inputs import Binder
from serving.models import LoadedModel, why_not_loaded
from serving.oip.errors import Unavailable, Unknown
from serving.online_features.plan import ReadPlan
from serving.overrides import OverrideStore
from serving.privacy import Privacy, binder_of, together
from serving.route_source import RouteSource
from serving.routing import Effective, effective, on_trial

_log = logging.getLogger("slipway.routes")

_RETRY_LOAD_S = 5.0


class Plan(msgspec.Struct, frozen=True):
    """All a request needs to know of its model, in one immutable value."""

    route: Route
    effective: Effective
    champion: LoadedModel
    challenger: LoadedModel | None
    fields: dict[str, InputField]
    binder: Binder
    pace: Pace
    reads: ReadPlan
    """What is read online for a request that both arms score; the champion's own plan is `champion.reads`."""
    privacy: Privacy
    since_us: int
    """When this worker took up the route (wall)."""
    on_trial: Arm | None
    """The arm whose failures are the circuit breaker's (`serving/routing.py`)."""


class RouteTable:
    """`plans` by model, for the request path; everything else happens in its own thread."""

    def __init__(
        self,
        source: RouteSource,
        overrides: OverrideStore,
        releases: Path,
        poll_ms: int,
        keyed: KeyedHash | None = None,
    ) -> None:
        self.plans: dict[str, Plan] = {}
        self.wanted: dict[str, Route] = {}
        self.load_errors: dict[str, str] = {}
        """Why releases are not loaded, by digest, in words for anyone."""
        self.source = source
        self._overrides = overrides
        self._releases = releases
        self._keyed = keyed
        self._poll_s = poll_ms / 1000
        self._models: dict[str, LoadedModel] = {}
        self._loading: dict[str, Future[LoadedModel]] = {}
        self._failed_at: dict[str, float] = {}
        self._lock = threading.RLock()
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="release-loader")
        self._thread = threading.Thread(target=self._follow, name="route-poll", daemon=True)

    def start(self, load_timeout_s: float) -> None:
        """Take up the last good and the current routes, wait until their releases are loaded (bounded), then follow."""
        self.wanted = self.source.last_good()
        self.source.start(self._wake.set)
        deadline = time.monotonic() + load_timeout_s
        self._tick()
        while self._loading and time.monotonic() < deadline:
            time.sleep(0.005)  # releases load in threads that tell nobody
            self._tick()
        self._thread.start()

    def stop(self) -> None:
        """End the thread and the loader; `plans` stay usable."""
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()
        self.source.stop()
        self._loader.shutdown(wait=False, cancel_futures=True)

    def refresh(self, model: str) -> None:
        """Recompute the plan of a model whose overrides changed; any thread."""
        with self._lock:
            plan = self.plans.get(model)
            if plan is not None:
                self._swap(plan.route)

    def plan(self, model: str) -> Plan:
        """The plan of a model. Raises Unknown with near names, Unavailable while its releases are not loaded."""
        plan = self.plans.get(model)
        if plan is not None:
            return plan
        if model in self.wanted:
            got = "a route whose releases are not loaded"
            raise Unavailable(f"model {model}", got=got, expected="to be ready soon")
        known = sorted(self.plans)
        near = difflib.get_close_matches(model, known, n=3)
        hint = f"Did you mean {' or '.join(near)}?" if near else ""
        raise Unknown("model", got=model[:80], expected=f"one of {known}", hint=hint)

    @property
    def pending(self) -> dict[str, Route]:
        """Routes that are known but not in force yet."""
        return {
            model: route
            for model, route in dict(self.wanted).items()
            if (plan := self.plans.get(model)) is None or plan.route.version != route.version
        }

    def _follow(self) -> None:
        while not self._stop.is_set():
            self._wake.wait(0.02 if self._loading else self._poll_s)
            self._wake.clear()
            try:
                self._tick()
            except Exception:  # noqa: BLE001 - without this thread no route is ever obeyed again
                _log.exception("route poll failed")

    def _tick(self) -> None:
        changed = self._overrides.poll()
        found = self.source.poll()
        if found is not None:
            self.wanted = {**self.wanted, **found}
        self._collect_loaded()
        swapped = False
        with self._lock:
            for model, route in self.wanted.items():
                plan = self.plans.get(model)
                if plan is not None and plan.route == route:
                    if model in changed:
                        self._swap(route)
                elif self._all_loaded(route):
                    self._overrides.clear_named(route)
                    self._swap(route)
                    swapped = True
                    _log.info("route %s v%d in force: %s", model, route.version, self.plans[model].effective)
        if swapped:
            self._forget_unused()
            try:
                self.source.keep({model: plan.route for model, plan in self.plans.items()})
            except OSError as error:
                _log.error("last good routes not written: %s", error)

    def _swap(self, route: Route) -> None:
        plan = effective(route, self._overrides.of(route.model))
        champion = self._models[plan.champion]
        challenger = self._models[plan.challenger] if plan.challenger else None
        # An application that sends a challenger's new input goes on doing so after a rollback: once known, it is taken.
        before = self.plans.get(route.model)
        fields = dict(before.fields) if before is not None else {}
        fields.update(challenger.fields if challenger else {})
        fields.update(champion.fields)
        arms = [champion, challenger] if challenger else [champion]
        # So do personal inputs that no release in force declares any more: they stay personal.
        privacies = [arm.privacy for arm in arms] + ([before.privacy] if before is not None else [])
        privacy = together(privacies, {name for arm in arms for name in arm.fields})
        features = frozenset[str]().union(*(arm.plain_features for arm in arms))
        binder = binder_of(fields, champion.required, features, privacy, self._keyed)
        reads = ReadPlan({arm.digest: arm.manifest.views for arm in arms})
        again = before is not None and before.route.version == route.version
        since_us = before.since_us if before is not None and again else wall_us()
        trial = on_trial(route, plan)
        made = Plan(route, plan, champion, challenger, fields, binder, Pace(), reads, privacy, since_us, trial)
        self.plans = {**self.plans, route.model: made}

    def _all_loaded(self, route: Route) -> bool:
        needed = [digest for digest in (route.champion, route.challenger, route.fallback) if digest]
        missing = [digest for digest in needed if digest not in self._models]
        for digest in missing:
            failed = self._failed_at.get(digest)
            if digest not in self._loading and (failed is None or time.monotonic() - failed > _RETRY_LOAD_S):
                self._loading[digest] = self._loader.submit(LoadedModel, self._releases / digest, digest, self._keyed)
        return not missing

    def _collect_loaded(self) -> None:
        for digest, future in list(self._loading.items()):
            if not future.done():
                continue
            del self._loading[digest]
            error = future.exception()
            if error is None:
                self._models[digest] = future.result()
                self.load_errors.pop(digest, None)
                self._failed_at.pop(digest, None)
            else:
                self._failed_at[digest] = time.monotonic()
                self.load_errors[digest] = why_not_loaded(error, self._releases / digest)
                _log.error("release %s not loaded: %s", digest[:12], error)

    def _forget_unused(self) -> None:
        routes = [*self.wanted.values(), *(plan.route for plan in self.plans.values())]
        used = {digest for route in routes for digest in (route.champion, route.challenger, route.fallback)}
        self._models = {digest: model for digest, model in self._models.items() if digest in used}
        self.load_errors = {digest: error for digest, error in self.load_errors.items() if digest in used}
