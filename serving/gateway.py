"""The gateway of one worker process: what it is made of, how it starts and stops, and how it reduces exposure."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from functools import partial

import msgspec

from pipelines.contracts.clocks import wall_us
from pipelines.contracts.errors import SlipwayError
from pipelines.contracts.events import EventId, Override
from pipelines.contracts.pii import KeyedHash
from pipelines.settings import Settings
from serving import crashes
from serving.access import Bearer, ClientAccess
from serving.arms import Arms
from serving.batching import Batches
from serving.circuit_breaker import CallWindow
from serving.inference_log import InferenceLog, LogWriteError
from serving.limits import Limits
from serving.metrics import Metrics
from serving.online_features.store import open_store
from serving.override_recovery import logged_overrides, may_be_found
from serving.overrides import OverrideStore
from serving.route_source import RouteSource, reader_of
from serving.route_table import Plan, RouteTable
from serving.routing import ArmMemory, HeldOverride
from serving.shadow import ShadowQueue
from serving.shadow_messages import Begin
from serving.spare_time import SpareTime
from serving.view_freshness import ViewFreshness

_log = logging.getLogger("slipway.gateway")

BREAKER = "circuit-breaker"
_PERSIST_AGAIN_S = 1.0
_IDS = 256
_TELL_METRICS_S = 1.0
_HOUSEKEEPING_S = 3600.0
_DAY_US = 86_400_000_000


class Gateway:
    """One worker's state. `worker` numbers the processes of one gateway from 0."""

    def __init__(self, settings: Settings, limits: Limits | None = None, worker: int = 0) -> None:
        self.settings = settings
        self.limits = limits = limits or Limits()
        self.metrics = Metrics()
        self.clock = settings.event_clock()
        key = settings.pii_key.get_secret_value()
        self.keyed = KeyedHash(key) if key else None
        self.operators = Bearer(settings.token, "SLIPWAY_TOKEN")
        self.clients = ClientAccess(settings.client_token, "SLIPWAY_CLIENT_TOKEN")
        home = settings.root / "gateway" / settings.gateway_name
        self.store = open_store(settings, limits.features_budget_ms)
        self.overrides = OverrideStore(home / "overrides")
        self.table = RouteTable(
            RouteSource(reader_of(settings.control, settings.route_poll_ms / 1000), home / "routes.json"),
            self.overrides,
            settings.releases,
            settings.route_poll_ms,
            self.keyed,
        )
        self._crashes = home / "crashes"
        self.log = InferenceLog(
            settings.bus,
            settings.gateway_name,
            worker,
            fsync_ms=limits.fsync_ms,
            segment_bytes=limits.segment_bytes,
            segment_age_s=limits.segment_age_s,
            slow_ms=limits.slow_disk_ms,
            times=self.metrics.log_times,
        )
        self.memory = ArmMemory(limits.remembered_ids)
        self.arms = Arms()
        self.batches = Batches(self.metrics)
        begin = Begin(str(settings.releases.absolute()), key)
        self.shadow = ShadowQueue(limits.shadow_queue, begin, SpareTime(limits.shadow_share))
        self.started = False
        self._telling: asyncio.TimerHandle | None = None
        self._housekeeping: asyncio.Task[None] | None = None
        self._ids = ""
        self._ids_at = 0
        self._windows: dict[str, tuple[str, CallWindow]] = {}
        self._persisting: dict[asyncio.Task[None], str] = {}
        self._unlogged = 0
        self.metrics.watch(self._set_gauges)
        self.freshness = ViewFreshness(self.store, self.clock, self.metrics, self._views)

    async def start(self) -> None:
        """Take up overrides that were cut short, load the routes' releases (bounded by `load_timeout_s`), be ready."""
        await asyncio.to_thread(self._recover_overrides)
        await asyncio.to_thread(self.table.start, self.limits.load_timeout_s)
        self._withdraw_after_crashes(await asyncio.to_thread(crashes.recent, self._crashes))
        await self.store.start()
        self.freshness.start()
        self.shadow.start()
        self._tell_metrics()
        self._housekeeping = asyncio.create_task(self._remove_settled_overrides())
        self.started = True

    def _set_gauges(self) -> None:
        metrics, now = self.metrics, time.monotonic()
        for model, plan in self.table.plans.items():
            metrics.begin(model)
            metrics.route_version.labels(model).set(plan.route.version)
            metrics.route_version_slowest.labels(model).set(plan.route.version)
            metrics.route_since.labels(model).set(plan.since_us / 1e6)
            metrics.override_in_force.labels(model).set(plan.effective.override is not None)
        metrics.processor_time(self.shadow.used_s)
        metrics.control_age.set(now - self.table.source.read_at)
        metrics.shadow_waiting.set(self.shadow.taken)
        metrics.log_slow.set(self.log.is_slow)
        metrics.log_events.set(self.log.n)
        metrics.core_price.set(self.settings.core_price_per_hour)

    def _views(self) -> list[str]:
        return [pinned.pin.view for plan in self.table.plans.values() for pinned in plan.reads.pinned]

    def _tell_metrics(self) -> None:
        """Let the other workers see this one's counts, now and every second."""
        self.metrics.tell()
        self._telling = asyncio.get_running_loop().call_later(_TELL_METRICS_S, self._tell_metrics)

    async def stop(self) -> None:
        """Finish what was promised (shadow scoring, overrides), close the log."""
        self.started = False
        await self.shadow.drain(timeout_s=5.0)
        if self._telling is not None:
            self._telling.cancel()
        if self._housekeeping is not None:
            self._housekeeping.cancel()
        self.metrics.tell()
        if self._persisting:
            await asyncio.wait(self._persisting, timeout=5.0)
        self.table.stop()
        await self.freshness.stop()
        await self.store.stop()
        self.arms.close()
        self.batches.close()
        await asyncio.to_thread(self.log.close)

    def answers_at_once(self, plan: Plan) -> bool:
        """Whether nothing on the way of a request waits but for its features: no batch, no arm's thread, no disk."""
        if plan.champion.batching is not None:
            return False
        if plan.effective.share_ppm and not self.arms.in_loop(plan.pace):
            return False
        return self.settings.durability == "process"

    def reads_elsewhere(self, plan: Plan) -> bool:
        """Whether a request has to wait for its features."""
        return not self.store.is_local and bool(plan.reads.pinned)

    def new_request_id(self) -> str:
        """128 random bits in hex; the kernel is asked for many at a time."""
        at = self._ids_at
        if at == len(self._ids):
            self._ids, at = os.urandom(16 * _IDS).hex(), 0
        self._ids_at = at + 32
        return self._ids[at : at + 32]

    def count_challenger_call(self, plan: Plan, *, failed: bool) -> None:
        """Count a call of the challenger, of one that bakes too; past the route's bound, withdraw it."""
        rollout = plan.route.rollout_id or plan.route.challenger or ""
        known = self._windows.get(plan.route.model)
        if known is None or known[0] != rollout or known[1].bound != plan.route.breaker:
            known = self._windows[plan.route.model] = (rollout, CallWindow(plan.route.breaker))
        if known[1].record(failed=failed) and self.standing_override(plan.route.model) is None:
            self.persist_later(self.override(plan, known[1].reason(), BREAKER))

    def _withdraw_after_crashes(self, deaths: int) -> None:
        """Every challenger in place, those that bake too: which of them it was, nobody has lived to tell."""
        if deaths < crashes.BOUND:
            return
        for plan in list(self.table.plans.values()):
            if plan.on_trial is not None:
                reason = f"{deaths} workers died of a fault within a minute (bound: {crashes.BOUND})"
                self.persist_later(self.override(plan, reason, BREAKER))

    def standing_override(self, model: str) -> str | None:
        """The id of the override in force for the model, if any."""
        plan = self.table.plans.get(model)
        return plan.effective.override if plan else None

    def override(self, plan: Plan, reason: str, actor: str) -> HeldOverride:
        """Reduce exposure in this worker now and write the event; `persist` then makes it durable.

        The challenger goes off; without one the champion gives way to the fallback. Where the log takes no event, that
        is so in this worker all the same, under a number of its own below 0, until `persist_later` has written it.
        """
        route = plan.route
        off = route.challenger is not None
        withdrawn = route.challenger or route.champion
        try:
            event_us = self.clock.event_now_us()
        except SlipwayError:
            event_us = wall_us()

        def event_of(event_id: EventId) -> Override:
            return Override(
                id=event_id,
                model=route.model,
                rollout_id=route.rollout_id,
                route_version=route.version,
                reason=reason,
                actor=actor,
                event_us=event_us,
                wall_us=wall_us(),
                action="challenger_off" if off else "champion_to_fallback",
                withdrawn=withdrawn,
            )

        try:
            event_id = self.log.append(event_of)
        except LogWriteError as error:
            self._unlogged += 1
            event_id = EventId(self.log.gateway, self.log.worker, self.log.epoch, -self._unlogged)
            _log.error("override of %s is not in the log yet: %s", route.model, error)
        held = HeldOverride(event=event_of(event_id), withdrawn=withdrawn)
        self._put_in_force(held)
        if off:
            self.arms.replace("challenger")
            if plan.challenger is not None:
                self.batches.replace(plan.challenger)
        self.metrics.overrides.labels(route.model, "breaker" if actor == BREAKER else "hand").inc()
        _log.warning("override %s of %s: %s (%s)", event_id, route.model, reason, actor)
        return held

    def _put_in_force(self, held: HeldOverride) -> None:
        self.overrides.hold(held)
        self.table.refresh(held.event.model)
        if held.event.id.n >= 0:
            try:
                # Nothing may come between the event and this: a worker killed there is what recovery is for.
                self.overrides.publish(held)
            except OSError as error:
                _log.error("override %s is in force in this worker only: %s", held.event.id, error)

    async def persist(self, held: HeldOverride) -> None:
        """Return when the override outlives the machine.

        Raises LogWriteError or OSError.
        """
        if held.event.id.n < 0:
            raise LogWriteError("inference log", got="no room for the override", expected="room to write")
        await self.log.durable()
        await asyncio.to_thread(self.overrides.persist, held)

    def persist_later(self, held: HeldOverride) -> None:
        """`persist` in the background, again and again until the disk takes it."""
        task = asyncio.get_running_loop().create_task(self._persist_in_background(held))
        self._persisting[task] = held.event.model
        task.add_done_callback(self._persisting.pop)

    async def is_durable(self, model: str, timeout_s: float) -> bool:
        """Whether every override that this worker made for the model is written; waits for them, but not longer."""
        tasks = [task for task, about in self._persisting.items() if about == model]
        return not tasks or not (await asyncio.wait(tasks, timeout=timeout_s))[1]

    async def _persist_in_background(self, held: HeldOverride) -> None:
        while True:
            try:
                held = self._logged(held)
                await self.persist(held)
            except (OSError, LogWriteError) as error:
                _log.error("override %s is not durable yet: %s", held.event.id, error)
                await asyncio.sleep(_PERSIST_AGAIN_S)  # a disk tells nobody that it takes events again
            else:
                return

    def _logged(self, held: HeldOverride) -> HeldOverride:
        """The override as the log has it, written now if it was not. Raises LogWriteError."""
        if held.event.id.n >= 0:
            return held
        event_id = self.log.append(lambda event_id: msgspec.structs.replace(held.event, id=event_id))
        written = msgspec.structs.replace(held, event=msgspec.structs.replace(held.event, id=event_id))
        self.overrides.let_go(held)
        self._put_in_force(written)
        _log.warning("override of %s is in the log as %s", held.event.model, event_id)
        return written

    async def _remove_settled_overrides(self) -> None:
        """Every hour: files of overrides that decisions have settled go with the log they are about."""
        found = partial(may_be_found, self.log.folder.parent)
        while True:
            before_us = wall_us() - round(self.settings.log_retention_days * _DAY_US)
            await asyncio.to_thread(self.overrides.remove_settled, before_us, found)
            await asyncio.sleep(_HOUSEKEEPING_S)  # its rhythm

    def _recover_overrides(self) -> None:
        for held in logged_overrides(self.log.folder.parent, self.log.folder):
            if self.overrides.recover(held):
                _log.warning("override %s of %s taken up from the log", held.event.id, held.event.model)
