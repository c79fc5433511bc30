"""Crashes at any moment, between and inside every effect, by two executors at once: what must hold anyway.

The control database is the real one. A crash is an exception raised before or after a real operation; a process that
comes back knows only what the database knows.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from pipelines.adapters import control_schema as schema
from pipelines.adapters.control_db import ControlDb, ReleaseRow, control_db
from pipelines.adapters.record_tables import actions_of, decision_of
from pipelines.adapters.rollout_store import RolloutStore
from pipelines.contracts import routes
from pipelines.contracts.errors import StaleDecisionError, TerminalError, TransientError
from pipelines.rollout import record
from pipelines.rollout.actions import Action, SetAlias, SetChampion, SetRoute
from pipelines.rollout.decide import Command, Now, Standing, decide
from pipelines.rollout.executor import Pending, execute
from pipelines.rollout.state import Rollout, apply
from pipelines.settings import Settings
from pipelines.wiring import rollouts
from tests.unit.rollout.examples import PLAN


class Crash(Exception):
    """The process dies here."""


class CrashingStore:
    """The real store, with a death before or after its n-th write; and what a slow process read long ago."""

    def __init__(self, store: RolloutStore, at: int | None, after: bool, stale: list[Pending] | None = None) -> None:
        self._store, self._at, self._after, self._stale = store, at, after, stale

    def _op(self, name: str, *args: Any) -> Any:
        if self._at is not None:
            self._at -= 1
            if self._at < 0 and not self._after:
                raise Crash(name)
        result = getattr(self._store, name)(*args)
        if self._at is not None and self._at < 0:
            raise Crash(name)
        return result

    def pending(self, model: str) -> Any:
        stale, self._stale = self._stale, None
        return self._store.pending(model) if stale is None else stale

    def do_control(self, *args: Any) -> Any:
        return self._op("do_control", *args)

    def confirm(self, *args: Any) -> Any:
        return self._op("confirm", *args)

    @contextmanager
    def mirror_turn(self, model: str, where: str) -> Iterator[bool]:
        with self._store.mirror_turn(model, where) as is_mine:
            yield is_mine


class Mirrors:
    """Records what reaches the outside world, in order; the registry's next `fails` calls fail."""

    def __init__(self) -> None:
        self.fails = 0
        self.aliases: dict[str, str | None] = {}
        self.keys: list[tuple[str, str]] = []

    def handlers(self) -> dict[str, Any]:
        return {where: self._handler(where) for where in ("registry", "assets", "people", "reports")}

    def _handler(self, where: str) -> Any:
        def handle(action: Action, key: str) -> str:
            if self.fails and where == "registry":
                self.fails -= 1
                raise TransientError("registry", got="down")
            if isinstance(action, SetAlias):
                self.aliases[action.alias] = action.release
            self.keys.append((where, key))
            return "done"

        return handle


STANDINGS = st.builds(
    Standing,
    word=st.sampled_from(["continue"] * 6 + ["pause", "hold", "rollback"]),
    metrics=st.just(("error_rate",)),
    sentence=st.just("so it says"),
    requests=st.sampled_from([0, 500, 500, 500]),
    proven=st.booleans(),
)
VERBS = st.sampled_from(["approve", "approve", "reject", "rollback", "pause", "resume", "skip"])


class Rollouts(RuleBasedStateMachine):
    """Releases r0, r1, ... of one model go their ways while processes die."""

    def __init__(self, control_url: str = "") -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp(prefix="slipway-crash-"))
        self.settings = Settings(home=self.home, clock="replay", control_url=control_url)
        self.settings.event_clock().tick(1)
        self.db: ControlDb = control_db(self.settings)
        self.store = rollouts.rollout_store(self.settings)
        self.mirrors = Mirrors()
        self.started = 0
        self.clock = 0
        self.snapshot: list[Pending] | None = None
        self.start()
        rollouts.approve(self.settings, "m-r1", "anna")
        self.finish()
        self.start()

    def teardown(self) -> None:
        self.finish()
        self.check_end()
        self.db.engine.dispose()
        shutil.rmtree(self.home)

    def now(self) -> Now:
        self.clock += 3_600_000_000
        self.settings.event_clock().tick(self.clock)
        return Now(self.clock, self.clock)

    def current(self) -> Rollout | None:
        running = self.store.rollouts("m", slot="running")
        return running[0] if running else None

    @rule()
    def start(self) -> None:
        digest = f"{self.started:064d}"
        self.started += 1
        self.db.put_release(ReleaseRow(model="m", digest=digest, semver=f"1.{self.started}.0"))
        rollouts.start(self.settings, "m", digest, as_of_us=self.now().event_us, actor="test", plan=PLAN)

    @rule(standing=STANDINGS)
    def look(self, standing: Standing) -> None:
        rollout = self.current()
        if rollout is not None:
            decision = decide(rollout, standing, self.now())
            if not decision.is_wait:
                self.store.commit(rollout, decision)

    @rule(verb=VERBS, standing=STANDINGS)
    def command(self, verb: Any, standing: Standing) -> None:
        everything = self.store.rollouts("m")
        rollout = self.current() or (everything[-1] if everything else None)
        if rollout is None:
            return
        with suppress(TerminalError, StaleDecisionError):
            decision = decide(rollout, standing, self.now(), command=Command(verb=verb, actor="anna"))
            self.store.commit(rollout, decision)

    @rule(standing=STANDINGS)
    def two_decide_at_once(self, standing: Standing) -> None:
        rollout = self.current()
        if rollout is None:
            return
        first = decide(rollout, Standing(word="rollback", metrics=("x",), sentence="harm"), self.now())
        second = decide(rollout, standing, self.now())
        self.store.commit(rollout, first)
        with pytest.raises(StaleDecisionError):
            self.store.commit(rollout, second)

    @rule(at=st.integers(0, 12) | st.none(), after=st.booleans())
    def advance(self, at: int | None, after: bool) -> None:
        with suppress(Crash):
            execute(CrashingStore(self.store, at, after), self.mirrors.handlers(), "m")
            rollouts.begin_waiting(self.settings, "m")

    @rule()
    def a_slow_executor_reads(self) -> None:
        self.snapshot = list(self.store.pending("m"))

    @precondition(lambda self: self.snapshot is not None)
    @rule(at=st.integers(0, 6) | st.none(), after=st.booleans())
    def a_slow_executor_goes_on(self, at: int | None, after: bool) -> None:
        with suppress(Crash):
            execute(CrashingStore(self.store, at, after, self.snapshot), self.mirrors.handlers(), "m")
        self.snapshot = None

    @rule(fails=st.integers(0, 3))
    def the_registry_fails_for_a_while(self, fails: int) -> None:
        self.mirrors.fails = fails

    @invariant()
    def at_most_one_runs_and_one_waits(self) -> None:
        slots = [rollout.slot for rollout in self.store.rollouts("m")]
        assert slots.count("running") <= 1
        assert slots.count("waiting") <= 1

    @invariant()
    def the_chain_holds(self) -> None:
        assert record.verify(self.store.entries("m")) == []

    @invariant()
    def every_route_is_ordered_by_exactly_one_decision_in_the_order_of_the_record(self) -> None:
        ordered = {
            line.id: [a for a in actions_of(line) if isinstance(a, SetRoute)] for line in self.store.entries("m")
        }
        with self.db.read() as connection:
            rows = connection.execute(sa.select(schema.route).order_by(schema.route.c.version)).mappings().all()
        written = [routes.decode(row["document"]) for row in rows]
        for route in written:
            assert route.decision_id is not None
            assert msgspec.structs.replace(route, version=0) == ordered[route.decision_id][0].route
        numbers = [int(str(route.decision_id).partition(":")[2]) for route in written]
        assert numbers == sorted(set(numbers))

    @invariant()
    def no_decision_is_lost(self) -> None:
        """Every rollout's stored state is what its recorded decisions make of it."""
        for rollout in self.store.rollouts("m"):
            state = msgspec.structs.replace(
                rollout, status="waiting", stage="", provisional=False, paused="", waived=(), revision=0
            )
            state = msgspec.structs.replace(
                state, stage_event_us=rollout.created_event_us, stage_wall_us=rollout.created_wall_us
            )
            for line in self.store.entries("m", rollout.id):
                decision = decision_of(line)
                assert decision is not None
                state = apply(state, decision, line.n)
            assert state == rollout

    def finish(self) -> None:
        """A process that does not die."""
        self.mirrors.fails = 0
        execute(self.store, self.mirrors.handlers(), "m")

    def check_end(self) -> None:
        """With everything done, the route, the champion and the mirrors are what the record says last."""
        assert self.store.pending("m") == []
        planned = [(line, action) for line in self.store.entries("m") for action in actions_of(line)]
        set_routes = [action.route for _, action in planned if isinstance(action, SetRoute)]
        champions = [action.release for _, action in planned if isinstance(action, SetChampion)]
        route = self.db.route("m")
        if set_routes:
            assert route is not None
            assert msgspec.structs.replace(route, version=0) == set_routes[-1]
        assert self.db.champion("m") == (champions[-1] if champions else None)
        if route is not None:
            assert self.db.champion("m") == route.champion, "who answers is who is champion"
        aliases = {action.alias: action.release for _, action in planned if isinstance(action, SetAlias)}
        assert self.mirrors.aliases == aliases
        for where in ("registry", "assets", "people", "reports"):
            keys = [key for at, key in self.mirrors.keys if at == where]
            places = [(int(key.partition(":")[2].partition("/")[0]), int(key.rpartition("/")[2])) for key in keys]
            assert places == sorted(places), "a mirror never goes back in time"


def crashes(examples: int) -> settings:
    """So many lives of one model's rollouts."""
    return settings(
        max_examples=examples,
        stateful_step_count=25,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow],
    )


def test_no_interleaving_of_crashes_gives_two_champions_a_lost_decision_or_a_route_without_its_decision() -> None:
    run_state_machine_as_test(Rollouts, settings=crashes(25))
