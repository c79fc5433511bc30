"""One act after the other: real DAG runs by REST, real traffic through the gateway, until every rollout has ended."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from rich.markup import escape

from pipelines.adapters.control_db import control_db
from pipelines.adapters.delta_lake import open_lake
from pipelines.contracts.clocks import from_us
from pipelines.contracts.errors import TerminalError
from pipelines.demo.application import Application
from pipelines.demo.dag_runs import DagRuns
from pipelines.demo.driver import Cost, Publisher, Replay, moment
from pipelines.demo.kpi import payload
from pipelines.demo.progress import Bar, Show
from pipelines.demo.story import Act
from pipelines.demo.world import World
from pipelines.monitoring.report import from_json
from pipelines.settings import Settings
from pipelines.spec.loading import load_model, names
from pipelines.wiring import monitoring, rollouts
from pipelines.wiring.scoring import load_release

MODEL = "late_arrival"
ENDED = ("promoted", "rolled_back", "rejected", "replaced")
GATE_WAIT_S = 10.0
PATIENCE_S = 2.5
MORE = 300


@dataclass(slots=True)
class Told:
    """What an act leaves for the report."""

    act: Act
    rollout_ids: list[str] = field(default_factory=list)
    facts: list[tuple[str, str]] = field(default_factory=list)
    dag_runs: list[dict[str, Any]] = field(default_factory=list)
    evidence: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    requests: int = 0
    seconds: float = 0.0
    outcome: str = "none"


@dataclass(slots=True)
class Rehearsal:
    """What the acts are played with: the stack's interfaces, the year's truth, and how far event time has come."""

    settings: Settings
    runs: DagRuns
    application: Application
    publisher: Publisher
    world: World
    show: Show
    cost: Cost
    now_us: int


@contextlib.contextmanager
def telling(rehearsal: Rehearsal, act: Act) -> Iterator[Told]:
    """Time an act and gather its DAG runs and requests."""
    rehearsal.show.title(act.title)
    told = Told(act)
    begun, runs, sent = time.monotonic(), len(rehearsal.runs.done), rehearsal.application.tally.sent
    with rehearsal.show.part(act.title):
        yield told
    told.seconds = time.monotonic() - begun
    told.dag_runs = rehearsal.runs.done[runs:]
    told.requests = rehearsal.application.tally.sent - sent
    for rollout_id in told.rollout_ids:
        told.outcome = {"promoted": "promote", "rolled_back": "rollback"}.get(
            rollouts.show(rehearsal.settings, rollout_id)["status"], "none"
        )


def load_lake(rehearsal: Rehearsal, through_us: int, name: str) -> None:
    """Raw data and features up to an event time, by DAG runs: datasets side by side, features as their assets fire."""
    specs = rehearsal.settings.include_dir
    dataset_dags = [f"dataset.{each}" for each in names(specs, "datasets")]
    feature_dags = [f"features.{each}" for each in names(specs, "features")]
    before = rehearsal.runs.counts(feature_dags)
    with rehearsal.show.part(f"datasets through {from_us(through_us):%d %b}: {len(dataset_dags)} DAG runs"):
        rehearsal.runs.together(dataset_dags, name, through_us)
    with rehearsal.show.part(f"features, started by their assets: {len(feature_dags)} DAG runs"):
        rehearsal.runs.started_by_assets(feature_dags, before)


def monitored(settings: Settings, as_of_us: int) -> list[tuple[str, str]]:
    """Name and sentence of each verdict of the monitor's report of that event time that asks or could ask."""
    where = f"as_of = TIMESTAMPTZ '{from_us(as_of_us).isoformat()}'"
    documents = open_lake(settings).read(monitoring.table_of(MODEL), ["document"], where).column("document")
    return [(one.name, one.sentence) for text in documents.to_pylist() for one in from_json(text).verdicts]


def train(rehearsal: Rehearsal, told: Told, as_of_us: int, model: str = MODEL) -> str:
    """A training DAG run; the digest of the release it registered."""
    name = f"act-{told.act.key}"
    with rehearsal.show.part(f"model.{model}.train"):
        run = rehearsal.runs.run(f"model.{model}.train", name, as_of_us)
    made = rehearsal.runs.result(run, "registered")
    what = f"{made['semver']}, {made['digest'][:12]}, MLflow run {made['mlflow_run']}"
    told.facts.append((f"release of {model}", what))
    return str(made["digest"])


def first_champion(rehearsal: Rehearsal, told: Told, model: str, digest: str, as_of_us: int) -> None:
    """Rollout without a champion to beat: a named approver decides."""
    dag_id = f"model.{model}.rollout"
    with rehearsal.show.part(f"{dag_id}: approved by a person"):
        run = rehearsal.runs.start(
            dag_id, f"act-{told.act.key}", as_of_us, {"challenger": digest, "actor": "rehearsal"}
        )
        rehearsal.runs.approve(run, "approve", "offline gates passed")
        rehearsal.runs.finish(run)
    told.rollout_ids.append(rollouts.list(rehearsal.settings, model)[-1].id)


def replay_of(rehearsal: Rehearsal, act: Act, mistake: str | None) -> Replay:
    """The act's replay, from where the year stands: the application sends what the spec and the champion ask for."""
    settings = rehearsal.settings
    champion = load_release(settings, control_db(settings).champion(MODEL) or "").manifest
    taken = frozenset(load_model(settings.include_dir, MODEL).inputs) | {field.name for field in champion.inputs}
    return Replay(
        MODEL,
        rehearsal.world,
        rehearsal.application,
        rehearsal.publisher,
        rehearsal.settings.event_clock(),
        rehearsal.now_us,
        cost=rehearsal.cost,
        keep=act.keep,
        payload=lambda ask: payload(ask, taken, mistake),
    )


async def quiet(rehearsal: Rehearsal, act: Act, replay: Replay) -> None:
    """The champion alone, through the act's quiet days."""
    start, end = moment(act.quiet_from), moment(act.quiet_until)
    if replay.now_us < start:
        await replay.jump(start)
    if end <= replay.now_us:
        return
    total = sum(1 for _ in rehearsal.world.between(replay.now_us, end, replay.keep))
    with rehearsal.show.bar("champion alone", total) as bar:
        await replay.hours(
            lambda: False, end, lambda at, _: bar.update(replay.sent, f"champion alone, {from_us(at):%d %b}")
        )
    rehearsal.now_us = replay.now_us
    rehearsal.show.line(f"{replay.sent:,} requests answered by the champion alone, to {from_us(replay.now_us):%d %b}")


async def play(rehearsal: Rehearsal, told: Told, replay: Replay, digest: str) -> str:
    """A rollout from its start to its end, with traffic as long as its gates ask for it. Returns the rollout's id.

    Raises TerminalError when the act's days are over before the rollout has ended.
    """
    act, settings, dag_id = told.act, rehearsal.settings, f"model.{MODEL}.rollout"
    run = rehearsal.runs.start(dag_id, f"act-{act.key}", replay.now_us, {"challenger": digest, "actor": "rehearsal"})
    rollout_id = await started(settings, digest)
    told.rollout_ids.append(rollout_id)
    replay.keep = 1
    seen = Seen(settings, rollout_id, tell=rehearsal.show.line)
    with rehearsal.show.bar("backtest", 1) as bar:
        while not seen.ended:
            if seen.status == "held":
                raise TerminalError(
                    f"act {act.key}", got=f"rollout {rollout_id} held: {seen.reason}", expected=act.expect
                )
            if not seen.live:
                await asyncio.sleep(0.1)  # the rollout's DAG works, in another process
                seen.read()
            elif await application_sees(rehearsal, seen) and not await feed(replay, seen, moment(act.limit), bar):
                raise TerminalError(
                    f"act {act.key}", got=f"rollout {rollout_id} in {seen.stage}", expected=f"an end by {act.limit}"
                )
    told.evidence[rollout_id] = seen.history
    rehearsal.now_us = replay.now_us
    await asyncio.to_thread(partial(rehearsal.runs.finish, run, may_fail=seen.status == "rolled_back"))
    return rollout_id


async def application_sees(rehearsal: Rehearsal, seen: Seen) -> bool:
    """Wait until the gateway follows the stage's route; False when the stage is over before."""
    name = seen.stage
    while await rehearsal.application.stage_of(MODEL) != name:
        if seen.changed(name):
            return False
        await asyncio.sleep(0.05)  # the gateway polls its routes
    return True


async def feed(replay: Replay, seen: Seen, end_us: int, bar: Bar) -> bool:
    """Send what the stage still asks for, then wait for its gate. False: the act's days are over.

    A stage that has its requests and whose gate is silent gets some more: proofs wait for labels to mature.
    """
    name, full = seen.stage, seen.requests >= seen.wanted
    before, base = replay.sent, replay.sent - seen.requests
    burst = MORE if full else seen.wanted - seen.requests

    def hour(at_us: int, _: int) -> None:
        done = replay.sent - base
        bar.update(done, f"{name}, {from_us(at_us):%d %b}", max(seen.wanted, done))

    alive = await replay.hours(lambda: replay.sent - before >= burst or seen.changed(name), end_us, hour)
    waited = time.monotonic() + (PATIENCE_S if full else GATE_WAIT_S)
    while not seen.changed(name) and time.monotonic() < waited:  # noqa: ASYNC110  # another process decides
        await asyncio.sleep(0.1)  # the same
    return alive or seen.ended


async def started(settings: Settings, digest: str) -> str:
    """The id of the rollout of a release, once its DAG has begun it."""
    for _ in range(300):
        for rollout in rollouts.list(settings, MODEL):
            if rollout.challenger == digest and rollout.status not in ENDED:
                return rollout.id
        await asyncio.sleep(0.1)  # its DAG begins it, in another process
    raise TerminalError("rollout DAG", got="no rollout after 30 s", expected=f"one of {digest[:12]}")


class Seen:
    """A rollout as the driver sees it, read anew by `read()`, which tells each decision once; keeps the verdicts it saw
    for the report's charts.
    """

    def __init__(self, settings: Settings, rollout_id: str, *, tell: Callable[[str], None] = lambda _: None) -> None:
        self._settings = settings
        self._id = rollout_id
        self.history: list[dict[str, Any]] = []
        self._tell = tell
        self._told = 0
        self._total = -1
        self.read()

    def read(self) -> Seen:
        """Read the rollout's state and verdicts."""
        shown = rollouts.show(self._settings, self._id)
        self.status, self.stage, self.requests = shown["status"], shown["stage"], shown["requests"]
        self.reason = shown["decisions"][-1].get("reason", "") if shown["decisions"] else ""
        for one in shown["decisions"][self._told :]:
            self._tell(escape(f"{self._id} {one['kind']}: {one['reason']}"))
        self._told = len(shown["decisions"])
        stages = {stage["name"]: stage for stage in shown["stages"]}
        self.wanted = int(stages.get(self.stage, {}).get("requests", 0))
        self.live = self.stage in stages and stages[self.stage]["kind"] not in ("backtest", "approval")
        total = sum(shown["counts"].get("assignments", {}).values())
        if total != self._total and shown["verdicts"]:
            self._total = total
            self.history.append({"requests": total, "stage": self.stage, "verdicts": shown["verdicts"]})
        return self

    @property
    def ended(self) -> bool:
        """Whether the rollout is over."""
        return self.status in ENDED

    def changed(self, stage_name: str) -> bool:
        """Whether the rollout has left a stage, ended, or is held."""
        self.read()
        return self.ended or self.status == "held" or self.stage != stage_name
