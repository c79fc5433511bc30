"""The collector: exactly once, in one order, through a death at any point."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest
from typer.testing import CliRunner

from pipelines.adapters.collector_store import CollectorStore
from pipelines.adapters.delta_lake import DeltaLake
from pipelines.adapters.inference_tables import InferenceTables
from pipelines.cli import log
from pipelines.collect.case import Case
from pipelines.collect.fold import Fold
from pipelines.collect.tables import SCHEMAS
from pipelines.contracts.assignment import PPM, payload_is_logged
from pipelines.contracts.errors import TerminalError
from pipelines.contracts.events import Label
from pipelines.rollout.decide import Now, Standing, decide
from pipelines.rollout.policy import Policy
from pipelines.rollout.state import Plan
from pipelines.stats.evidence import Evidence
from pipelines.wiring import rollouts
from pipelines.wiring.collect import Collector, collect_all, collect_once, verify_log
from pipelines.wiring.live_evidence import read_log
from tests.unit.collect.installation import PLAN, POLICY, Installation, copied
from tests.unit.collect.traffic import Worker

ARMS = ("champion", "challenger")


def drive(worker: Worker, installation: Installation, first: int, count: int, seed: int = 1) -> None:
    """Requests with labels; one in ten fails, at either arm: no harm; one in seven comes twice."""
    rng = random.Random(f"{seed}/{first}")
    for number in range(first, first + count):
        fails = frozenset({rng.choice(ARMS)}) if rng.random() < 0.1 else frozenset[str]()
        name = f"{worker.worker}-q{number}"
        worker.request(installation.route, name, fails=fails, label=float(rng.random() < 0.3), score=rng.random())
        if number % 7 == 0:
            worker.request(installation.route, name, retry=True)


def test_every_event_is_stored_once_in_a_gapless_order(installation: Installation) -> None:
    workers = [Worker(installation.bus, worker=number) for number in range(2)]
    for part in range(3):
        for worker in workers:
            drive(worker, installation, part * 50, 50)
        collect_once(installation.settings)
    stored = installation.stored()
    assert sorted(stored) == [("gw0", w.worker, 1, n) for w in workers for n in range(w.n)]
    counts = CollectorStore(installation.db).counters()
    assert counts.seq["m"] == len(stored)
    assignments = installation.table("assignment")
    numbers = [n for n in assignments["rollout_seq"].to_pylist() if n is not None]
    assert numbers == list(range(1, 301))
    assert sum(assignments["duplicate"].to_pylist()) == assignments.num_rows - 300


def test_evidence_is_the_fold_of_the_lake_to_the_same_bytes(installation: Installation) -> None:
    worker = Worker(installation.bus)
    collector = Collector(installation.settings)
    for part in range(5):
        drive(worker, installation, part * 60, 60)
        collector.once()
    policy = Policy.parse(PLAN.policy)
    rollout = rollouts.load(installation.settings, installation.rollout)
    case, fold = Case(installation.rollout, "m", policy.slices, policy.kpis), Fold(policy)
    fold.add(**case.take(read_log(DeltaLake(installation.settings.lake), rollout)))
    assert fold.evidence().to_json().decode() == installation.evidence()


def test_evidence_does_not_depend_on_how_the_log_was_cut_into_batches_or_on_restarts(
    template: Path, tmp_path: Path
) -> None:
    documents = []
    for parts in (1, 6):
        installation = copied(template, tmp_path / str(parts))
        worker = Worker(installation.bus)
        for part in range(parts):
            drive_each(worker, installation, range(part * 300 // parts, (part + 1) * 300 // parts))
            collect_once(installation.settings)  # a new collector each time
        documents.append(installation.evidence())
    assert documents[0] == documents[1]


def test_a_lake_that_is_older_than_a_column_is_gone_on_with_and_folds_to_the_same_evidence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A collector that knew nothing of `beside_us` wrote the first third, and collectors that know of it the rest."""
    slow = {"name": "latency_p50", "kind": "quantile", "q": 0.5, "promote_margin_rel": 0.2, "weight": 0.3}
    metrics: list[dict[str, Any]] = [*PLAN.policy["metrics"], slow]
    policy = Policy.parse(POLICY | {"metrics": metrics, "warmup_requests": 0})
    installation = Installation(tmp_path / "home", plan=Plan(stages=PLAN.stages, policy=policy.to_mapping()))
    rollout = rollouts.load(installation.settings, installation.rollout)
    worker = Worker(installation.bus)

    def folded() -> Evidence:
        case, fold = Case(installation.rollout, "m", policy.slices, policy.kpis), Fold(policy)
        fold.add(**case.take(read_log(DeltaLake(installation.settings.lake), rollout)))
        return fold.evidence()

    for part, beside_us in enumerate((None, 1000, 1000)):
        for number in range(part * 550, (part + 1) * 550):
            worker.request(installation.route, f"q{number}", beside_us=beside_us)
        with monkeypatch.context() as patched:
            if part == 0:
                without = SCHEMAS["response"]
                patched.setitem(SCHEMAS, "response", without.remove(without.get_field_index("beside_us")))
            collect_once(installation.settings)
        assert folded().to_json().decode() == installation.evidence()
    assert installation.table("response")["beside_us"].drop_null().to_pylist() == [1000] * 2 * 550
    found = folded().cells["shadow", "latency_p50", ""]
    assert found[0] == 3 * 550 - 2 * 500, "each clock's first 500 make its quantiles"


def test_evidence_does_not_depend_on_which_payloads_were_logged_and_those_that_were_not_are_null(
    template: Path, tmp_path: Path
) -> None:
    documents = []
    for payload_ppm in (PPM, 300_000):
        installation = copied(template, tmp_path / str(payload_ppm))
        worker = Worker(installation.bus)
        for number in range(120):
            name = f"q{number}"
            sampled = payload_is_logged(name, payload_ppm)
            worker.request(installation.route, name, label=number % 2, score=0.2, sampled=sampled)
        collect_once(installation.settings)
        documents.append(installation.evidence())
        asked, answered = installation.table("assignment"), installation.table("response")
        logged = set(asked.filter(pc.is_valid(asked["inputs"]))["request_id"].to_pylist())
        read = set(answered.filter(pc.is_valid(answered["features"]))["request_id"].to_pylist())
        assert logged == read == {f"q{k}" for k in range(120) if payload_is_logged(f"q{k}", payload_ppm)}
        assert all(report.whole for report in verify_log(installation.settings))
    assert len(logged) < 60
    assert documents[0] == documents[1]


def drive_each(worker: Worker, installation: Installation, numbers: range) -> None:
    for number in numbers:
        drive(worker, installation, number, 1)


class Death(BaseException):
    """The process dies here."""


STEPS = ["plan", "append:assignment", "append:response", "append:label", "set_aside", "fold", "complete"]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_death_at_any_step_leaves_each_event_stored_once_and_the_same_evidence(
    step: str, when: str, template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calm, killed = copied(template, tmp_path / "calm"), copied(template, tmp_path / "killed")
    for installation in (calm, killed):
        drive(Worker(installation.bus), installation, 0, 40)
        collect_once(installation.settings)
        worker = Worker(installation.bus, worker=1)
        drive(worker, installation, 40, 20)
        worker.frame(b"no event")
        drive(worker, installation, 60, 20)
    collect_all(calm.settings)

    with monkeypatch.context() as patch:
        die(patch, step, when)
        with pytest.raises(Death):
            collect_once(killed.settings)
    if (step, when) != ("plan", "before"):  # what comes meanwhile is not mixed into the begun batch
        drive(Worker(killed.bus, worker=2), killed, 0, 1)
        drive(Worker(calm.bus, worker=2), calm, 0, 1)
    collect_all(killed.settings)
    collect_all(calm.settings)

    assert killed.stored() == calm.stored()
    assert len(killed.quarantined()) == 1
    assert killed.quarantined() == calm.quarantined()
    assert len(set(killed.stored())) == len(killed.stored())
    assert killed.evidence() == calm.evidence()
    assert all(report.whole for report in verify_log(killed.settings))


def die(patch: pytest.MonkeyPatch, step: str, when: str) -> None:
    """Let the process die before or after one step of a batch."""
    name, _, kind = step.partition(":")
    owner: Any = {"plan": CollectorStore, "complete": CollectorStore, "fold": Fold}.get(name, InferenceTables)
    method = "add" if name == "fold" else name
    real = getattr(owner, method)

    def dying(self: Any, *args: Any, **kwargs: Any) -> Any:
        if kind and args[0] != kind:
            return real(self, *args, **kwargs)
        if when == "before":
            raise Death(step)
        real(self, *args, **kwargs)
        raise Death(step)

    patch.setattr(owner, method, dying)


def test_a_second_collector_at_the_same_time_stores_nothing_twice(installation: Installation) -> None:
    drive(Worker(installation.bus), installation, 0, 40)
    first, second = Collector(installation.settings), Collector(installation.settings)
    first.once()
    with pytest.raises(TerminalError, match="another collector"):
        second.once()
    stored = installation.stored()
    assert len(set(stored)) == len(stored)


def test_a_label_that_comes_before_its_request_counts_like_any_other(template: Path, tmp_path: Path) -> None:
    documents = []
    for early in (False, True):
        installation = copied(template, tmp_path / str(early))
        worker = Worker(installation.bus)
        worker.request(installation.route, "q0")
        if early:
            worker.append(Label, model="m", request_id="q1", value=1.0)
        worker.request(installation.route, "q1")
        if not early:
            worker.append(Label, model="m", request_id="q1", value=1.0)
        for number in range(2, 900):
            worker.request(installation.route, f"q{number}")
        collect_all(installation.settings)
        documents.append(json.loads(installation.evidence()))
    labelled = [{row[0]: row[2] for row in found["counters"]}.get("labelled") for found in documents]
    assert labelled == [1, 1]


def test_a_clients_retry_is_neither_a_request_nor_a_duplicate_answer(installation: Installation) -> None:
    worker = Worker(installation.bus)
    worker.request(installation.route, "q1")
    worker.request(installation.route, "q1", retry=True)
    collect_all(installation.settings)
    shown = rollouts.show(installation.settings, installation.rollout)
    assert shown["counts"]["assignments"] == {"shadow": 1}
    assert (shown["counts"]["responses"], shown["counts"]["retries"]) == (2, 1)


def test_a_second_label_that_says_otherwise_is_kept_and_counted_and_changes_nothing(installation: Installation) -> None:
    worker = Worker(installation.bus)
    worker.request(installation.route, "q1", label=1.0)
    worker.append(Label, model="m", request_id="q1", value=1.0)
    worker.append(Label, model="m", request_id="q1", value=0.0)
    collect_all(installation.settings)
    assert installation.table("label").num_rows == 3
    counts = rollouts.show(installation.settings, installation.rollout)["counts"]
    assert (counts["labels"], counts["repeated"], counts["contradicting"]) == (1, 2, 1)


def test_an_override_is_chained_as_observed_and_ends_the_rollout(installation: Installation) -> None:
    worker = Worker(installation.bus)
    worker.request(installation.route, "q1")
    event_id = str(worker.override(installation.route))
    collect_all(installation.settings)
    collect_all(installation.settings)
    shown = rollouts.show(installation.settings, installation.rollout)
    assert shown["status"] == "rolled_back"
    kinds = [decision["kind"] for decision in shown["decisions"]]
    assert kinds[-2:] == ["observed", "rollback"]
    assert shown["decisions"][-2]["override"]["actor"] == "breaker"
    assert installation.route.clears_overrides == [event_id]
    assert (installation.route.mode, installation.route.champion) == ("single", installation.champion)
    assert rollouts.audit(installation.settings) == {"m": []}


def test_an_override_of_the_fallback_after_the_promotion_brings_the_old_champion_back(
    installation: Installation,
) -> None:
    settings = installation.settings
    for _ in range(3):  # two skips into the bake, one out of it
        rollouts.skip(settings, installation.rollout, "anna", "test")
        rollouts.advance(settings, installation.rollout)
    assert rollouts.load(settings, installation.rollout).status == "promoted"
    assert installation.db.champion("m") == installation.challenger
    Worker(installation.bus).override(installation.route, action="champion_to_fallback")
    collect_all(settings)
    assert installation.db.champion("m") == installation.champion
    assert installation.route.champion == installation.champion


@pytest.mark.parametrize("held", [True, False])
def test_a_rollout_that_proves_harmful_is_withdrawn_by_the_collector_with_no_gate_there(
    installation: Installation, held: bool
) -> None:
    settings = installation.settings
    rollout = rollouts.load(settings, installation.rollout)
    if held:
        standing = Standing(word="hold", metrics=("sample_ratio",), sentence="odd")
        rollouts.rollout_store(settings).commit(rollout, decide(rollout, standing, Now(0, 0)))
    worker = Worker(installation.bus)
    for number in range(100):
        worker.request(installation.route, f"q{number}", fails=frozenset({"challenger"}))
    collect_all(settings)
    assert rollouts.load(settings, installation.rollout).status == "rolled_back"
    assert (installation.route.mode, installation.route.champion) == ("single", installation.champion)


def test_removing_one_frame_by_hand_makes_log_verify_fail(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker(installation.bus)
    drive(worker, installation, 0, 20)
    whole = worker.path.read_bytes()
    collect_all(installation.settings)
    monkeypatch.setenv("SLIPWAY_HOME", str(installation.settings.root))
    assert CliRunner().invoke(log.app, ["verify"]).exit_code == 0

    from pipelines.contracts import segments

    ends = [len(segments.MAGIC), *(frame.end for frame in segments.read_frames(whole))]
    worker.path.write_bytes(whole[: ends[10]] + whole[ends[11] :])
    result = CliRunner().invoke(log.app, ["verify", "--json"])
    assert result.exit_code == 1
    (report,) = json.loads(result.output)
    assert report["lost"] == [[10, 10]]


def test_log_verify_tells_what_was_lost_before_it_was_collected(installation: Installation) -> None:
    worker = Worker(installation.bus)
    drive(worker, installation, 0, 5)
    worker.skip()
    drive(worker, installation, 5, 5)
    worker.tear()
    worker.close()
    collect_all(installation.settings)
    (report,) = verify_log(installation.settings)
    assert not report.whole
    assert len(report.lost) == 1
    assert (report.missing, report.twice, report.waiting, report.torn) == (0, 0, 0, 40)


def test_log_verify_finds_rows_that_left_the_lake(installation: Installation) -> None:
    worker = Worker(installation.bus)
    drive(worker, installation, 0, 10)
    collect_all(installation.settings)
    lake = DeltaLake(installation.settings.lake)
    lake.replace("inference/label", installation.table("label").slice(2), partition_by=("model",))
    (report,) = verify_log(installation.settings)
    assert (report.missing, report.whole) == (2, False)
    shutil.rmtree(worker.path.parent)
    (gone,) = verify_log(installation.settings)
    assert (gone.written, gone.missing) == (None, 2)


def test_rows_that_a_policy_cannot_take_stop_that_rollouts_evidence_and_nothing_else(
    installation: Installation,
) -> None:
    from msgspec.structs import replace

    worker = Worker(installation.bus)
    worker.request(replace(installation.route, stage="no_such_stage"), "q1")
    collector = Collector(installation.settings)
    report = collector.once()
    assert report.events == 3
    assert list(report.problems) == [installation.rollout]
    worker.request(installation.route, "q2")
    assert collector.once().events == 3
