"""Deaths at any moment, between and inside every effect and every statement: what must hold anyway.

The control database is the real one, and so are the jobs; the judge's words, and what lies outside (registry, assets,
people), are drawn or recorded. A death is an exception that nothing catches, raised at a drawn boundary: before a
statement of the database, before a commit, before or after an effect outside. A process that comes back knows only
what the database knows.
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
from pipelines.contracts.events import EventId, Override
from pipelines.rollout import record
from pipelines.rollout.actions import Action, SetAlias, SetChampion, SetRoute
from pipelines.rollout.decide import decide
from pipelines.rollout.executor import Pending, execute
from pipelines.rollout.standing import Now, Standing
from pipelines.rollout.state import Rollout, apply
from pipelines.settings import Settings
from pipelines.wiring import rollout_commands, rollouts
from tests.unit.rollout.examples import PLAN

TWO = msgspec.structs.replace(PLAN, approvals=2)
"""Every second rollout needs both of the people there are."""


class Death(BaseException):
    """The process dies here."""


class Life:
    """Counts boundaries down, while a job lives; raises Death at the drawn one."""

    def __init__(self) -> None:
        self.left: int | None = None

    def boundary(self, *_: object) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                self.left = None
                raise Death

    @contextmanager
    def until(self, boundary: int | None) -> Iterator[None]:
        """What is done inside dies at this boundary, if it gets so far."""
        self.left = boundary
        try:
            with suppress(Death):
                yield
        finally:
            self.left = None


class SlowReader:
    """The real store, as seen by a process that read what is pending long ago."""

    def __init__(self, store: RolloutStore, read: list[Pending]) -> None:
        self._store, self._read = store, read

    def pending(self, model: str) -> list[Pending]:
        read, self._read = self._read, list(self._store.pending(model))
        return read

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


class Mirrors:
    """Records what reaches the outside world, in order; the registry's next `fails` calls fail."""

    def __init__(self, life: Life) -> None:
        self.life = life
        self.fails = 0
        self.aliases: dict[str, str | None] = {}
        self.keys: list[tuple[str, str]] = []

    def handlers(self) -> dict[str, Any]:
        return {where: self._handler(where) for where in ("registry", "assets", "people", "reports")}

    def _handler(self, where: str) -> Any:
        def handle(action: Action, key: str) -> str:
            self.life.boundary()
            if self.fails and where == "registry":
                self.fails -= 1
                raise TransientError("registry", got="down")
            if isinstance(action, SetAlias):
                self.aliases[action.alias] = action.release
            self.keys.append((where, key))
            self.life.boundary()
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
VERBS = st.sampled_from(["approve", "approve", "approve", "reject", "rollback", "pause", "resume", "skip"])
PEOPLE = st.sampled_from(["anna", "ben"])
DEATHS = st.integers(0, 40) | st.none()


class Rollouts(RuleBasedStateMachine):
    """Releases r0, r1, ... of one model go their ways while processes die."""

    def __init__(self, control_url: str = "") -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp(prefix="slipway-death-"))
        self.settings = Settings(home=self.home, clock="replay", control_url=control_url)
        self.settings.event_clock().tick(1)
        self.life = Life()
        self.mirrors = Mirrors(self.life)
        self.started = self.overridden = 0
        self.clock = 0
        self.standing = Standing()
        self.snapshot: list[Pending] | None = None
        self.patched = pytest.MonkeyPatch()
        for jobs in (rollouts, rollout_commands):
            self.patched.setattr(jobs, "standing_of", self.judged)
        self.patched.setattr(rollouts, "mirrors", lambda _: self.mirrors.handlers())
        self.patched.setattr(rollouts.record_copy, "copy", lambda *_: self.life.boundary())
        self.connect()
        self.start(None)
        rollouts.approve(self.settings, "m-r1", "anna")
        self.finish()
        self.start(None)

    def connect(self) -> None:
        """A process's own way to the database; its statements and commits are boundaries."""
        self.db: ControlDb = control_db(self.settings)
        self.store = rollouts.rollout_store(self.settings)
        for event in ("before_cursor_execute", "commit"):
            sa.event.listen(self.db.engine, event, self.life.boundary)

    def disconnect(self) -> None:
        for event in ("before_cursor_execute", "commit"):
            sa.event.remove(self.db.engine, event, self.life.boundary)
        self.db.engine.dispose()

    def teardown(self) -> None:
        self.finish()
        self.check_end()
        self.disconnect()
        self.patched.undo()
        shutil.rmtree(self.home)

    def judged(self, view: Any) -> Standing:
        """What the judge says: what was drawn last."""
        return Standing() if view.rollout.champion is None or not view.rollout.stage else self.standing

    def now(self) -> Now:
        self.clock += 3_600_000_000
        self.settings.event_clock().tick(self.clock)
        return Now(self.clock, self.clock)

    def current(self) -> Rollout | None:
        running = self.store.rollouts("m", slot="running")
        return running[0] if running else None

    @rule(death=DEATHS)
    def start(self, death: int | None) -> None:
        digest = f"{self.started:064d}"
        self.started += 1
        self.db.put_release(ReleaseRow(model="m", digest=digest, semver=f"1.{self.started}.0"))
        self.now()
        with self.life.until(death):
            plan = TWO if self.started % 2 == 0 else PLAN
            rollouts.start(self.settings, "m", digest, actor="test", plan=plan)

    @rule(standing=STANDINGS, death=DEATHS)
    def a_gate_looks(self, standing: Standing, death: int | None) -> None:
        self.now()
        self.standing = standing
        rollout = self.current()
        if rollout is not None:
            with self.life.until(death):
                rollouts.look(self.settings, rollout.id)
                rollouts.set_routes(self.settings, "m")

    @rule(verb=VERBS, actor=PEOPLE, standing=STANDINGS, shown=st.sampled_from(["", "now", "old"]), death=DEATHS)
    def a_person_speaks(self, verb: Any, actor: str, standing: Standing, shown: str, death: int | None) -> None:
        self.now()
        self.standing = standing
        about = self.current() or self.store.rollouts("m")[-1]
        digest = {"": "", "now": standing.evidence_digest, "old": "what was shown long ago"}[shown]
        with self.life.until(death), suppress(TerminalError, StaleDecisionError):
            after = rollouts.command(self.settings, about.id, verb, actor, "because", evidence_digest=digest)
            last = self.store.newest_decision(about.id)
            rollouts.command(self.settings, about.id, verb, actor, "because", evidence_digest=digest, stage=about.stage)
            if verb in ("pause", "reject", "rollback", "skip") and after.status != "held":
                assert self.store.newest_decision(about.id) == last, "said twice, done once"

    @precondition(lambda self: self.db.route("m") is not None)
    @rule(death=DEATHS)
    def the_gateway_trips(self, death: int | None) -> None:
        """Its event has been collected; the collector that was to decide about it may die."""
        route = self.db.route("m")
        assert route is not None
        if route.fallback is None:
            return
        self.overridden += 1
        event = Override(
            id=EventId("gw0", 0, 1, self.overridden),
            model="m",
            rollout_id=route.rollout_id,
            route_version=route.version,
            reason="20 failures",
            actor="breaker",
            event_us=self.clock,
            wall_us=self.clock,
            action="challenger_off" if route.mode != "single" else "champion_to_fallback",
        )
        with self.db.write() as connection:
            connection.execute(
                sa.insert(schema.override_seen).values(
                    event_id=str(event.id),
                    model="m",
                    rollout_id=event.rollout_id,
                    document=msgspec.json.encode(event, order="sorted").decode(),
                )
            )
        with self.life.until(death):
            rollouts.observe_overrides(self.settings)

    @rule(standing=STANDINGS, death=DEATHS)
    def the_collector_withdraws_harm(self, standing: Standing, death: int | None) -> None:
        self.now()
        self.standing = standing
        with self.life.until(death):
            rollouts.withdraw_harm(self.settings)

    @rule(standing=STANDINGS)
    def two_decide_at_once(self, standing: Standing) -> None:
        rollout = self.current()
        if rollout is None:
            return
        first = decide(rollout, Standing(word="rollback", metrics=("x",), sentence="harm"), self.now())
        if first.is_wait:  # a first champion has nothing to be compared with
            return
        second = decide(rollout, standing, self.now())
        self.store.commit(rollout, first)
        with pytest.raises(StaleDecisionError):
            self.store.commit(rollout, second)

    @rule(death=DEATHS)
    def advance(self, death: int | None) -> None:
        with self.life.until(death):
            rollouts.advance(self.settings, self.store.rollouts("m")[-1].id)

    @rule()
    def a_slow_executor_reads(self) -> None:
        self.snapshot = list(self.store.pending("m"))

    @precondition(lambda self: self.snapshot is not None)
    @rule(death=DEATHS)
    def a_slow_executor_goes_on(self, death: int | None) -> None:
        assert self.snapshot is not None
        with self.life.until(death):
            execute(SlowReader(self.store, self.snapshot), self.mirrors.handlers(), "m")
        self.snapshot = None

    @rule(fails=st.integers(0, 3))
    def the_registry_fails_for_a_while(self, fails: int) -> None:
        self.mirrors.fails = fails

    @rule()
    def everything_is_started_again(self) -> None:
        self.disconnect()
        self.snapshot = None
        self.connect()

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
                rollout, status="waiting", stage="", provisional=False, paused="", waived=(), revision=0, question=None
            )
            state = msgspec.structs.replace(
                state, stage_event_us=rollout.created_event_us, stage_wall_us=rollout.created_wall_us
            )
            for line in self.store.entries("m", rollout.id):
                decision = decision_of(line)
                if decision is not None:  # an observed override changes nothing by itself
                    state = apply(state, decision, line.n)
            assert state == rollout

    @invariant()
    def nobody_lets_a_rollout_go_on_alone_where_two_have_to_agree(self) -> None:
        for line in self.store.entries("m"):
            decision = decision_of(line)
            if decision is not None and decision.command in ("approve", "skip") and decision.kind != "hold":
                asked = self.store.load(decision.rollout_id).plan.approvals
                assert len(set(decision.approvals)) == asked

    def finish(self) -> None:
        """Processes that do not die."""
        self.mirrors.fails = 0
        self.standing = Standing()
        rollouts.observe_overrides(self.settings)
        rollouts.advance(self.settings, self.store.rollouts("m")[-1].id)

    def check_end(self) -> None:
        """With everything done, the route, the champion and the mirrors are what the record says last."""
        assert self.store.pending("m") == []
        current = self.current()
        for override in self.store.overrides(unsettled=True):
            assert current is None or override.rollout_id != current.id, "every override has had its decision"
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


def deaths(examples: int) -> settings:
    """So many histories of one model's rollouts."""
    return settings(
        max_examples=examples,
        stateful_step_count=25,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow],
    )


def test_no_interleaving_of_deaths_gives_two_champions_a_lost_decision_or_a_route_without_its_decision() -> None:
    run_state_machine_as_test(Rollouts, settings=deaths(25))
