"""Rollout runs on a real Airflow: gates that take no worker, approvals that count, marks by hand that do not.

No traffic here: the rollouts' evidence stays empty, and their stages are left by people and by the clock. (Decisions
from traffic are held in `test_steel_thread.py`, over the same jobs.)
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

import httpx
import pytest

from pipelines.adapters.airflow_rest import AirflowRest, DagRun, TaskState
from pipelines.adapters.control_db import control_db
from pipelines.adapters.rollout_store import EvidenceRow
from pipelines.collect.fold import Fold
from pipelines.contracts.clocks import from_us
from pipelines.contracts.errors import NotFoundError, TerminalError, TransientError
from pipelines.rollout.policy import Policy
from pipelines.rollout.simulator import simulate
from pipelines.rollout.state import Rollout
from pipelines.settings import PROJECT, Settings
from pipelines.spec.loading import names
from pipelines.stack import PartStatus, airflow_password, part_environment, processes, up
from pipelines.wiring import rollouts
from tests.builders import constant_release
from tests.e2e.conftest import CAREFUL, STEADY
from tests.free_ports import free_port
from tests.waiting import wait_until as until
from tests.waiting import wait_until_ended

pytestmark = pytest.mark.e2e

MODEL, DAG = STEADY, f"model.{STEADY}.rollout"
CAREFUL_DAG = f"model.{CAREFUL}.rollout"
DAY_US = 86_400_000_000
PATIENCE_S = 180.0


@pytest.fixture(scope="module")
def admin(settings: Settings, stack: list[PartStatus]) -> Iterator[AirflowRest]:
    """A client of the administrator."""
    with AirflowRest(settings.airflow_url, "admin", airflow_password(settings, "admin")) as client:
        client.wait_for_dags([DAG, CAREFUL_DAG], timeout_s=PATIENCE_S)
        yield client


@pytest.fixture(scope="module")
def approver(settings: Settings, admin: AirflowRest) -> Iterator[AirflowRest]:
    with AirflowRest(settings.airflow_url, "approver", airflow_password(settings, "approver")) as client:
        yield client


@pytest.fixture(scope="module")
def champion(settings: Settings, admin: AirflowRest, approver: AirflowRest) -> str:
    """The model's first champion, approved in Airflow by the one who may."""
    release = constant_release(settings.releases, MODEL, 0.2)
    run = admin.trigger(DAG, run_id="first", conf={"challenger": release})
    waited = admin.wait(DAG, run.dag_run_id, timeout_s=PATIENCE_S, until=in_state("approve", "awaiting_input"))
    assert not waited.finished
    question = admin.questions(DAG, run.dag_run_id)[0]
    assert question.assigned_users == ["approver"]
    with pytest.raises(TerminalError, match="not a respondent"):
        admin.answer(DAG, run.dag_run_id, "approve", "Approve")
    approver.answer(DAG, run.dag_run_id, "approve", "Approve", {"reason": "the card looks right"})
    assert admin.wait(DAG, run.dag_run_id, timeout_s=PATIENCE_S).state == "success"
    decision = rollouts.show(settings, f"{MODEL}-r1")["decisions"][-1]
    assert (decision["kind"], decision["actor"]) == ("promote", "approver")
    assert "the card looks right" in decision["reason"]
    return release


@pytest.fixture
def challenge(
    settings: Settings, admin: AirflowRest, champion: str, request: pytest.FixtureRequest
) -> Iterator[DagRun]:
    """A run whose rollout waits at its first gate; whatever is left of it afterwards is rolled back."""
    score = 0.3 + len(rollouts.list(settings, MODEL)) / 100
    release = constant_release(settings.releases, MODEL, score, semver="1.1.0")
    run = admin.trigger(DAG, run_id=request.node.name, conf={"challenger": release})
    admin.wait(DAG, run.dag_run_id, timeout_s=PATIENCE_S, until=in_state("gate_shadow", "deferred"))
    yield run
    rollout = newest(settings)
    if rollout.slot != "ended":
        rollouts.rollback(settings, rollout.id, "approver", "the test is over")
        rollouts.advance(settings, rollout.id)
    for each in admin.runs(DAG):
        admin.wait(DAG, each.dag_run_id, timeout_s=PATIENCE_S)


def in_state(task_id: str, state: str):
    def reached(_: DagRun, tasks: Sequence[TaskState]) -> bool:
        return any(task.task_id == task_id and task.state == state for task in tasks)

    return reached


def newest(settings: Settings):
    return rollouts.list(settings, MODEL)[-1]


def states(admin: AirflowRest, run_id: str) -> dict[str, str | None]:
    return {task.task_id: task.state for task in admin.tasks(DAG, run_id)}


def wait_until(admin: AirflowRest, run_id: str, task_id: str, state: str) -> None:
    run = admin.wait(DAG, run_id, timeout_s=PATIENCE_S, until=in_state(task_id, state))
    assert states(admin, run_id)[task_id] == state, run


def test_a_challenger_goes_all_the_way_and_no_gate_takes_a_worker(settings, admin, champion, challenge):
    run_id, seconds = challenge.dag_run_id, {}
    for stage in ("shadow", "canary_50", "bake"):
        wait_until(admin, run_id, f"gate_{stage}", "deferred")
        assert newest(settings).stage == stage
        rollouts.skip(settings, newest(settings).id, "approver", "no traffic in this test")
        began = time.monotonic()
        wait_until(admin, run_id, f"gate_{stage}", "success")
        seconds[stage] = time.monotonic() - began
    assert admin.wait(DAG, run_id, timeout_s=PATIENCE_S).state == "success"
    print("from decision to gate's end:", {stage: round(value, 1) for stage, value in seconds.items()})
    tasks = {task.task_id: task for task in admin.tasks(DAG, run_id)}
    for stage in ("shadow", "canary_50", "bake"):
        assert tasks[f"gate_{stage}"].pid is None
        assert not tasks[f"gate_{stage}"].hostname
        assert tasks[f"advance_{stage}"].pid is not None
    assert admin.xcom(DAG, run_id, "gate_bake")["reason"].endswith("has left bake")
    assert newest(settings).status == "promoted"
    assert control_db(settings).champion(MODEL) == newest(settings).challenger != champion


def test_marking_a_gate_a_success_skips_nothing_and_clearing_it_waits_again(settings, admin, challenge):
    run_id, rollout = challenge.dag_run_id, newest(settings)
    route = control_db(settings).route(MODEL)
    admin.mark(DAG, run_id, "gate_shadow", "success")
    assert admin.wait(DAG, run_id, timeout_s=PATIENCE_S).state == "failed"
    found = states(admin, run_id)
    assert (found["advance_shadow"], found["gate_canary_50"]) == ("success", "failed")
    assert "still in shadow" in admin.xcom(DAG, run_id, "gate_canary_50")["reason"]
    assert newest(settings) == rollout
    assert control_db(settings).route(MODEL) == route

    admin.clear(DAG, run_id, ["gate_shadow"])
    wait_until(admin, run_id, "gate_shadow", "deferred")
    rollouts.skip(settings, rollout.id, "approver", "no traffic in this test")
    wait_until(admin, run_id, "gate_canary_50", "deferred")
    assert newest(settings).stage == "canary_50"
    assert control_db(settings).route(MODEL).share_ppm == 500_000


def test_a_rollback_fails_the_gate_and_the_champion_answers_alone(settings, admin, challenge):
    run_id = challenge.dag_run_id
    rollouts.skip(settings, newest(settings).id, "approver", "no traffic in this test")
    wait_until(admin, run_id, "gate_canary_50", "deferred")
    rollouts.rollback(settings, newest(settings).id, "approver", "enough")
    assert admin.wait(DAG, run_id, timeout_s=PATIENCE_S).state == "failed"
    found = states(admin, run_id)
    assert (found["gate_canary_50"], found["stopped"]) == ("failed", "success")
    assert (found["decide"], found["promoted"]) == ("skipped", "upstream_failed")
    route = control_db(settings).route(MODEL)
    assert route.champion == control_db(settings).champion(MODEL)
    assert route.challenger is None


def put_evidence(settings: Settings, rollout: Rollout) -> str:
    """Some traffic of the shadow stage becomes the rollout's evidence, as the collector would store it; its digest."""
    policy = Policy.parse(rollout.plan.policy)
    fold = Fold(policy)
    fold.add(**simulate(policy, seed=3))
    row = EvidenceRow.of(rollout.id, "live", 1, fold.evidence())
    rollouts.rollout_store(settings).put_evidence(row)
    return row.digest


def test_a_stage_without_data_is_held_and_the_answer_counts_for_the_evidence_that_was_shown(
    settings, admin, approver, challenge
):
    run_id, rollout_id = challenge.dag_run_id, newest(settings).id
    settings.event_clock().tick(settings.event_clock().event_now_us() + 4 * DAY_US)
    wait_until(admin, run_id, "decide", "awaiting_input")
    assert newest(settings).status == "held"
    digest = put_evidence(settings, newest(settings))
    approver.answer(DAG, run_id, "decide", "Approve", {"reason": "the traffic comes tomorrow"})
    assert admin.wait(DAG, run_id, timeout_s=PATIENCE_S).state == "failed"
    assert newest(settings).status == "held", "there is evidence that the approver has not seen"

    asked_anew = f"{rollout_id}__{newest(settings).revision}"
    wait_until(admin, asked_anew, "decide", "awaiting_input")
    question = admin.questions(DAG, asked_anew)[0]
    assert digest[:12] in question.body
    assert question.assigned_users == ["approver"]
    approver.answer(DAG, asked_anew, "decide", "Approve", {"reason": "it came"})
    assert admin.wait(DAG, asked_anew, timeout_s=PATIENCE_S).state == "failed"
    assert states(admin, asked_anew)["go_on"] == "success"
    approved = rollouts.show(settings, rollout_id)["decisions"][-1]
    assert (approved["command"], approved["shown"]) == ("approve", digest)
    taken_up = f"{rollout_id}__{newest(settings).revision}"
    wait_until(admin, taken_up, f"gate_{newest(settings).stage}", "deferred")
    assert (newest(settings).id, newest(settings).status) == (rollout_id, "running")


def kill(settings: Settings, *parts: str) -> None:
    """SIGKILL to everything these parts have started."""
    killed = [each for part in parts for each in processes.members(processes.read_record(part, settings.run_dir))]
    for process in killed:
        process.kill()
    wait_until_ended(killed)


def followed(settings: Settings) -> int:
    """The version of the model's route that the gateway follows."""
    routes = httpx.get(f"{settings.gateway_url}/v1/routes").json()["routes"]
    return next((int(each["version"]) for each in routes if each["model"] == MODEL), -1)


def ask(settings: Settings, number: int) -> str:
    """The arm that answers a request."""
    tensor = {"name": "x", "shape": [1], "datatype": "FP64", "data": [number / 1000]}
    given = {"event_time": from_us(settings.event_clock().event_now_us()).isoformat()}
    request = {"id": f"while-down-{number}", "inputs": [tensor], "parameters": given}
    answer = httpx.post(f"{settings.gateway_url}/v2/models/{MODEL}/infer", json=request, timeout=10)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["parameters"]["arm"])


def test_without_scheduler_and_triggerer_a_rollout_waits_and_the_breaker_protects_and_both_go_on_after_a_restart(
    settings, admin, champion
):
    failing = constant_release(settings.releases, MODEL, 0.7, semver="1.2.0", error=True)
    run_id = admin.trigger(DAG, run_id="killed", conf={"challenger": failing}).dag_run_id
    wait_until(admin, run_id, "gate_shadow", "deferred")
    rollout = newest(settings).id
    kill(settings, "airflow-scheduler", "airflow-triggerer")
    rollouts.skip(settings, rollout, "approver", "no traffic in this test")
    rollouts.advance(settings, rollout)
    version = control_db(settings).route(MODEL).version
    until(lambda: followed(settings) == version, "the gateway follows the route")
    assert newest(settings).stage == "canary_50", "it waits where the last decision has put it"

    arms = [ask(settings, number) for number in range(80)]
    assert set(arms) == {"champion"}, "a failed challenger is answered for"
    until(lambda: newest(settings).status == "rolled_back", "the collector takes up the breaker's override")
    decisions = rollouts.show(settings, rollout)["decisions"]
    assert decisions[-1]["cause"] in ("override", "verdict")
    assert control_db(settings).route(MODEL).challenger is None
    assert states(admin, run_id)["gate_shadow"] == "deferred", "nobody was there to see it"

    up(settings)
    assert admin.wait(DAG, run_id, timeout_s=PATIENCE_S).state == "failed"
    found = states(admin, run_id)
    assert (found["gate_shadow"], found["stopped"], found["promoted"]) == ("failed", "success", "upstream_failed")
    assert rollouts.audit(settings)[MODEL] == []
    assert control_db(settings).champion(MODEL) == control_db(settings).route(MODEL).champion


def take_for_lost(settings: Settings, run_id: str) -> None:
    """Airflow loses the answer to `approve`: it has heard of the answer before the end of the asking worker."""
    subprocess.run(
        [sys.executable, "-m", "tests.e2e.losing_scheduler", CAREFUL_DAG, run_id, "approve"],
        cwd=PROJECT,
        env=os.environ | part_environment(settings),
        check=True,
        timeout=PATIENCE_S,
    )


def test_two_people_have_to_answer_where_the_spec_says_so_and_one_of_them_does_not_count_twice(
    settings, admin, approver
):
    release = constant_release(settings.releases, CAREFUL, 0.2)
    run_id = admin.trigger(CAREFUL_DAG, run_id="two-people", conf={"challenger": release}).dag_run_id
    admin.wait(CAREFUL_DAG, run_id, timeout_s=PATIENCE_S, until=in_state("approve", "awaiting_input"))
    admin.pause(CAREFUL_DAG, paused=True)  # what is answered waits to be queued
    approver.answer(CAREFUL_DAG, run_id, "approve", "Approve", {"reason": "the card looks right"})
    take_for_lost(settings, run_id)
    admin.pause(CAREFUL_DAG, paused=False)
    assert admin.wait(CAREFUL_DAG, run_id, timeout_s=PATIENCE_S).state == "success"
    assert {task.task_id: task.try_number for task in admin.tasks(CAREFUL_DAG, run_id)}["approve"] == 2
    first = rollouts.list(settings, CAREFUL)[-1]
    assert (first.status, control_db(settings).champion(CAREFUL)) == ("held", None)

    again = f"{first.id}__{first.revision}"
    admin.wait(CAREFUL_DAG, again, timeout_s=PATIENCE_S, until=in_state("approve", "awaiting_input"))
    question = admin.questions(CAREFUL_DAG, again)[0]
    assert question.assigned_users == ["admin"]
    assert "2 different people have to agree; so far: approver" in question.body
    with pytest.raises(TerminalError, match="not a respondent"):
        approver.answer(CAREFUL_DAG, again, "approve", "Approve")
    by_command = ["rollout", "approve", first.id, "--actor", "admin", "--reason", "so do I say"]
    told = subprocess.run(
        [sys.executable, "-m", "pipelines.cli.main", *by_command],
        cwd=PROJECT,
        env=os.environ | part_environment(settings),
        check=True,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert f"Airflow's question is closed: its run {again} goes on" in told.stdout
    assert admin.wait(CAREFUL_DAG, again, timeout_s=PATIENCE_S).state == "success"
    assert control_db(settings).champion(CAREFUL) == release
    said = [(each["actor"], each["kind"]) for each in rollouts.show(settings, first.id)["decisions"][1:]]
    assert said == [("approver", "hold"), ("admin", "promote")]


def test_the_client_says_what_is_wrong(settings, admin):
    with (
        AirflowRest(settings.airflow_url, "admin", "guessed") as stranger,
        pytest.raises(TerminalError, match="refused"),
    ):
        stranger.dag_ids()
    with pytest.raises(NotFoundError):
        admin.trigger("model.unknown.rollout")
    with pytest.raises(TerminalError, match="as_of"):
        admin.trigger(f"model.{MODEL}.train", run_id="wrong", conf={"as_of": "yesterday"})
    with AirflowRest(f"http://127.0.0.1:{free_port()}", "admin", "x") as nobody, pytest.raises(TransientError):
        nobody.health()
    assert admin.import_errors() == {}
    kinds = [("datasets", "dataset.{}"), ("features", "features.{}")]
    kinds += [("models", f"model.{{}}.{kind}") for kind in ("rollout", "train")]
    of_specs = [kind.format(name) for folder, kind in kinds for name in names(settings.include_dir, folder)]
    assert admin.dag_ids() == sorted(["lake.maintenance", *of_specs])
