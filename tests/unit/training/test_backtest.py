"""The backtest of a challenger on the small project: both arms over what was logged, and what is decided of it."""

from __future__ import annotations

import shutil
import sqlite3
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable

from pipelines.contracts.clocks import from_us
from pipelines.contracts.release import Release
from pipelines.rollout.stages import Stage, from_spec
from pipelines.rollout.state import Plan, Rollout
from pipelines.settings import Settings
from pipelines.wiring import rollouts, training
from pipelines.wiring.backtest import backtest, no_data_reason
from pipelines.wiring.rollout_replay import replay
from pipelines.wiring.rollouts import fold_backtest
from pipelines.wiring.scoring import load_release
from tests.unit.training import project
from tests.unit.training.project import AS_OF, LATER, crown

POLICY: dict[str, Any] = {
    "schema": "slipway-gate/1",
    "label_maturity_s": 3600,
    "slices": ["shop"],
    "stages": [{"name": "backtest", "share": None, "requests": 50}, {"name": "shadow", "share": None, "requests": 100}],
    "metrics": [
        {"name": "logloss", "kind": "paired_loss", "harm_rel": 0.01, "promote_margin_rel": 0.05, "weight": 1.0}
    ],
}


def _rollout(champion: str | None, challenger: str) -> Rollout:
    stage = Stage(name="backtest", kind="backtest", requests=50)
    return Rollout(
        id="r1", model="buys", challenger=challenger, champion=champion, plan=Plan(stages=(stage,), policy=POLICY),
        policy_digest="", salt="", status="running", stage="backtest", actor="t", created_event_us=LATER,
        created_wall_us=LATER, stage_event_us=LATER, stage_wall_us=LATER,
    )  # fmt: skip


def _frame(settings: Settings, from_us_: int) -> pa.Table:
    """Labelled requests after a moment."""
    import slipway

    table = slipway.training_set("buys", LATER, settings)
    return table.filter(pc.greater(table["event_timestamp"], pa.scalar(from_us(from_us_))))


Challenged = tuple[Settings, training.Trained, str]


def test_a_backtest_runs_both_arms_over_what_was_logged(challenged: Challenged) -> None:
    settings, first, challenger = challenged
    frame = _frame(settings, AS_OF - 5 * 86_400_000_000)
    project.log_traffic(settings, load_release(settings, first.release), frame, with_features=True)
    tables = backtest(settings, _rollout(first.release, challenger))
    assert no_data_reason(tables) is None
    count = tables["assignments"].num_rows
    seen = max(load_release(settings, r).manifest.training["last_label_us"] for r in (first.release, challenger))
    assert pc.min(tables["assignments"]["ts"]).as_py() > from_us(seen)
    assert set(tables["assignments"]["arm"].to_pylist()) == {"both"}
    assert set(tables["assignments"]["shop"].to_pylist()) == {"north", "south", "west"}
    assert tables["responses"].num_rows == 2 * count
    assert tables["labels"].num_rows == count
    evidence, requests = fold_backtest(_rollout(first.release, challenger), tables)
    assert requests == count
    assert evidence.digest
    # The log says the view read 0.123: both arms must have seen that, not what the lake would give.
    release = load_release(settings, first.release)
    logged = _scores(release, frame, np.full(frame.num_rows, 0.123))
    ours = tables["responses"].filter(pc.equal(tables["responses"]["arm"], "champion"))["score"].to_numpy()
    np.testing.assert_allclose(np.sort(ours), np.sort(logged[frame["event_timestamp"].to_numpy() > _naive(seen)]))


def test_a_backtest_and_what_it_decided_come_out_of_the_log_again(challenged: Challenged) -> None:
    settings, first, challenger = challenged
    crown(settings, first.release)
    project.log_traffic(settings, load_release(settings, first.release), _frame(settings, AS_OF), with_features=True)
    settings.event_clock().tick(LATER)
    plan = Plan(stages=from_spec([{"name": "backtest"}, {"name": "shadow", "requests": 100}]), policy=POLICY)
    rollout = rollouts.start(settings, "buys", challenger, plan=plan)
    assert rollouts.backtest(settings, rollout.id)["requests"] > 500
    decision = rollouts.look(settings, rollout.id).decision
    assert decision is not None
    assert [verdict["n"] for verdict in decision.verdicts if verdict["metric"] == "logloss"] != [0]
    assert [one.differences for one in replay(settings)] == [[]]
    DeltaTable(settings.lake / "inference" / "label").delete("value = 1.0")
    assert "the stored evidence of the backtest is not what the inference log gives" in replay(settings)[0].differences
    shutil.rmtree(settings.releases / challenger)
    assert "the backtest cannot be run again: release" in replay(settings)[0].differences[0]


def test_mlflow_keeps_the_page_of_a_withdrawn_rollout_and_the_hash_of_its_decision(
    copied: tuple[Settings, training.Trained],
) -> None:
    settings, first = copied
    project.set_model(settings, trainer="lightgbm")
    challenger = training.train(settings, "buys", AS_OF)
    crown(settings, first.release)
    settings.event_clock().tick(LATER)
    plan = Plan(stages=from_spec([{"name": "shadow", "requests": 100}]), policy=POLICY)
    rollout = rollouts.start(settings, "buys", challenger.release, plan=plan)
    rollouts.rollback(settings, rollout.id, "anna", "wrong <release>")
    effects = {effect.kind: effect for effect in rollouts.advance(settings, rollout.id)}
    assert effects["attach_report"].done, effects
    assert effects["attach_report"].detail == f"attach_report: rollouts/{rollout.id}.html"
    (kept,) = (settings.root / "mlflow" / "artifacts").rglob(f"{challenger.mlflow_run}/artifacts/rollouts/*.html")
    assert kept.name == f"{rollout.id}.html"
    assert "anna: wrong &lt;release&gt;" in kept.read_text()

    assert rollouts.audit(settings) == {"buys": []}
    last = rollouts.rollout_store(settings).entries("buys")[-1]
    shutil.rmtree(settings.lake / "record")
    with sqlite3.connect(settings.root / "control.db") as connection:
        connection.execute("DROP TRIGGER decision_no_delete")
        connection.execute(f"DELETE FROM decision WHERE n = {last.n}")
    (fault,) = rollouts.audit(settings)["buys"]
    assert fault == f"entry {last.n}: the hash {last.hash[:12]} that MLflow was told is not in the chain"


def test_views_that_were_not_logged_come_by_point_in_time(challenged: Challenged) -> None:
    settings, first, challenger = challenged
    frame = _frame(settings, AS_OF)
    release = load_release(settings, first.release)
    project.log_traffic(settings, release, frame, with_features=False)
    tables = backtest(settings, _rollout(first.release, challenger))
    ours = tables["responses"].filter(pc.equal(tables["responses"]["arm"], "champion"))["score"].to_numpy()
    joined = _scores(release, frame, frame["shop.buyers"].to_numpy(zero_copy_only=False))
    assert np.isin(np.round(ours, 9), np.round(joined, 9)).all()
    assert tables["assignments"].num_rows > 500


def test_a_new_payload_field_is_no_data_with_its_name(copied: tuple[Settings, training.Trained]) -> None:
    settings, first = copied
    project.set_model(settings, new_input="minutes")
    challenger = training.train(settings, "buys", AS_OF)
    assert challenger.semver == "2.0.0"
    frame = _frame(settings, AS_OF)
    project.log_traffic(settings, load_release(settings, first.release), frame, with_features=True)
    tables = backtest(settings, _rollout(first.release, challenger.release))
    assert tables["assignments"].num_rows == 0
    assert "the log lacks input minutes" in str(no_data_reason(tables))
    assert fold_backtest(_rollout(first.release, challenger.release), tables)[1] == 0


def test_too_few_requests_are_no_data(challenged: Challenged) -> None:
    settings, first, challenger = challenged
    frame = _frame(settings, AS_OF).slice(0, 30)
    project.log_traffic(settings, load_release(settings, first.release), frame, with_features=True)
    tables = backtest(settings, _rollout(first.release, challenger))
    assert "30 logged requests with a label that is mature, newer than" in str(no_data_reason(tables))
    assert "50 are needed" in str(no_data_reason(tables))


def test_an_empty_log_is_no_data(made: tuple[Settings, training.Trained]) -> None:
    settings, first = made
    rollout = _rollout(first.release, first.release)
    assert "no answered request with a label that is mature, newer than the trainings' last one" in str(
        no_data_reason(backtest(settings, rollout))
    )
    assert "no champion" in str(no_data_reason(backtest(settings, _rollout(None, first.release))))


def _scores(release: Release, frame: pa.Table, buyers: np.ndarray) -> np.ndarray:
    from pipelines.training.columns import inputs_of
    from pipelines.wiring.scoring import score, score_of

    inputs = inputs_of(frame, release.manifest.inputs)
    features = {(release.manifest.views[0].view, "buyers"): buyers}
    return score_of(release, score(release, inputs, features, frame.num_rows))


def _naive(us: int) -> np.datetime64:
    return np.datetime64(us, "us")
