"""The jobs on a small real project: from files to a registered release, and the backtest of a challenger."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import sqlalchemy as sa
from deltalake import DeltaTable

from pipelines.adapters import control_schema
from pipelines.adapters.control_db import control_db
from pipelines.contracts.clocks import from_us
from pipelines.contracts.errors import ContractError, DataError
from pipelines.contracts.release import Release, verify
from pipelines.rollout.stages import Stage, from_spec
from pipelines.rollout.state import Plan, Rollout
from pipelines.settings import Settings
from pipelines.training import training_set
from pipelines.wiring import rollout_traffic, rollouts, training
from pipelines.wiring.backtest import backtest, no_data_reason
from pipelines.wiring.releases import answer_sample
from pipelines.wiring.rollout_replay import replay
from pipelines.wiring.rollouts import fold_backtest
from pipelines.wiring.scoring import load_release
from tests.unit.training import project

AS_OF = project.moment(60)
LATER = project.moment(85)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, training.Trained]:
    """The project and its first release."""
    settings = project.make(tmp_path_factory.mktemp("project"))
    return settings, training.train(settings, "buys", AS_OF)


@pytest.fixture
def copied(made: tuple[Settings, training.Trained], tmp_path: Path) -> Iterator[tuple[Settings, training.Trained]]:
    """A copy of the project that a test may change."""
    settings, trained = made
    folder = settings.include_dir.parent
    shutil.copytree(folder, tmp_path / "copy")
    own = tmp_path / "copy"
    copy = Settings(home=own / "home", include_dir=own / "include", clock="replay", mlflow_port=9)
    yield copy, trained
    control_db(copy).engine.dispose()


def _crown(settings: Settings, digest: str) -> None:
    with control_db(settings).write() as connection:
        connection.execute(sa.delete(control_schema.champion))
        row = {"model": "buys", "release": digest, "decision_id": "d"}
        connection.execute(sa.insert(control_schema.champion).values(**row))


def test_a_release_is_whole_and_answers_its_sample(made: tuple[Settings, training.Trained]) -> None:
    settings, trained = made
    manifest = verify(settings.releases / trained.release, trained.release)
    assert manifest.semver == trained.semver == "1.0.0"
    assert set(manifest.files) == {
        *("model.onnx", "postprocess.py", "metrics.json", "reference.json", "sample_request.json", "model_card.md")
    }
    assert 0 <= answer_sample(settings, trained.release)["score"] <= 1


def test_the_training_set_says_what_it_left_out(made: tuple[Settings, training.Trained]) -> None:
    settings, trained = made
    table, manifest = training_set.read(settings.training_sets, trained.training_set)
    assert table.column_names == [
        *("request_id", "event_timestamp", "shop", "basket", "shop.buyers", "label", "label_timestamp")
    ]
    asked = 60 * project.A_DAY
    assert manifest.dropped["unlabelled"] > 0.01 * asked
    assert manifest.dropped["label_not_known_yet"] > 0
    assert abs(manifest.rows + sum(manifest.dropped.values()) - asked) < 0.1 * asked
    assert manifest.last_label_us <= AS_OF
    assert pc.max(table["label_timestamp"]).as_py() <= from_us(AS_OF)


def test_the_test_part_tells_what_scikit_learn_would(made: tuple[Settings, training.Trained]) -> None:
    settings, trained = made
    found = trained.metrics
    assert found["auc"] > 0.75
    metrics = json.loads((settings.releases / trained.release / "metrics.json").read_bytes())
    assert metrics["test"]["log_loss"] == found["log_loss"] < 0.62
    assert set(metrics["slices"]["shop"]) == {"north", "south", "west"}


def test_repeating_finds_the_finished_work(made: tuple[Settings, training.Trained]) -> None:
    settings, trained = made
    again = training.train(settings, "buys", AS_OF)
    assert (again.release, again.mlflow_run, again.training_set) == (
        trained.release,
        trained.mlflow_run,
        trained.training_set,
    )
    assert len(control_db(settings).releases("buys")) == 1


def test_mlflow_knows_run_version_tags_and_aliases(made: tuple[Settings, training.Trained]) -> None:
    from mlflow import MlflowClient

    from pipelines.adapters import mlflow_registry

    settings, trained = made
    client = MlflowClient(settings.mlflow_store)
    run = client.get_run(trained.mlflow_run)
    assert run.data.metrics["test_log_loss"] == pytest.approx(trained.metrics["log_loss"])
    assert run.data.params["trainer"] == "logistic"
    assert run.data.tags["slipway.training_set"] == trained.training_set
    assert run.inputs.dataset_inputs[0].dataset.digest == trained.training_set[:32]
    version = client.search_model_versions("name = 'buys'")[0]
    assert (version.tags["semver"], version.tags["release"]) == ("1.0.0", trained.release)
    mlflow_registry.set_alias(settings, "buys", "champion", trained.release)
    assert client.get_model_version_by_alias("buys", "champion").version == version.version
    mlflow_registry.set_alias(settings, "buys", "champion", None)
    mlflow_registry.set_alias(settings, "buys", "champion", None)
    assert client.get_registered_model("buys").aliases == {}
    mlflow_registry.tag_release(settings, "buys", trained.release, {"slipway.status": "champion"})
    assert client.get_model_version("buys", version.version).tags["slipway.status"] == "champion"


def test_mlflow_has_the_files_where_its_server_looks(made: tuple[Settings, training.Trained]) -> None:
    settings, _ = made
    kept = {path.name for path in (settings.root / "mlflow" / "artifacts").rglob("*") if path.is_file()}
    assert {"model_card.md", "evaluation.png", "study.json", "gates.json", "MLmodel", "model.onnx"} <= kept
    (model,) = (settings.root / "mlflow" / "artifacts").rglob("MLmodel")
    from mlflow.models import Model

    signature = Model.load(str(model)).signature
    assert signature.inputs.inputs[0].shape == (-1, 2)


def test_a_failed_gate_refuses_the_release_but_keeps_it(copied: tuple[Settings, training.Trained]) -> None:
    settings, _ = copied
    project.set_model(settings, most=0.1)
    trained = training.train(settings, "buys", AS_OF)
    assert trained.refused
    row = control_db(settings).release(trained.release)
    assert row.status == "refused"
    assert "> max 0.1" in trained.gates[0].sentence


def test_the_champion_is_compared_on_rows_it_was_not_fitted_on(copied: tuple[Settings, training.Trained]) -> None:
    settings, first = copied
    _crown(settings, first.release)
    project.set_model(settings, trainer="lightgbm")
    same_time = training.train(settings, "buys", AS_OF)
    assert same_time.gates[1].verdict == "no_data"
    assert "was fitted on all but 0 of these rows" in same_time.gates[1].sentence
    later = training.train(settings, "buys", LATER)
    assert later.gates[1].verdict in ("pass", "fail")
    assert later.gates[1].champion is not None
    assert later.semver == "1.2.0"
    rates = rollout_traffic.evaluation(settings, "buys")
    assert rates is not None
    assert rates.requests_per_hour == pytest.approx(project.A_DAY / 24, rel=0.15)
    assert 0.9 < rates.labelled < 1.0
    assert set(rates.slices) == {"north", "south", "west"}
    paired, mean = rates.of("logloss").paired_sd, rates.of("logloss").mean
    assert mean == pytest.approx(later.metrics["log_loss"], rel=0.05)
    assert paired is not None, "the champion has scored the same rows"
    assert 0.0 < paired < (rates.of("logloss").sd or 0.0)


def test_onnx_that_answers_otherwise_is_never_installed(copied: tuple[Settings, training.Trained]) -> None:
    settings, _ = copied
    digest = training.make_training_set(settings, "buys", LATER)
    candidate = training.fit(settings, "buys", digest, LATER)
    training.evaluate(settings, candidate)
    folder = training.candidates(settings).folder(candidate)
    parity = dict(training.candidates(settings).arrays(candidate, "parity"))
    np.savez(folder / "parity.npz", position=parity["position"], raw=np.clip(parity["raw"] + 1e-3, 0, 1))
    before = sorted(settings.releases.iterdir())
    with pytest.raises(ContractError, match="ONNX parity"):
        training.export(settings, candidate)
    assert sorted(settings.releases.iterdir()) == before


def test_sources_that_change_after_the_fit_are_noticed(copied: tuple[Settings, training.Trained]) -> None:
    settings, _ = copied
    digest = training.make_training_set(settings, "buys", LATER)
    candidate = training.fit(settings, "buys", digest, LATER)
    training.evaluate(settings, candidate)
    path = settings.include_dir / "transforms" / "buys_post.py"
    path.write_text(path.read_text() + "\n# changed\n")
    with pytest.raises(DataError, match="changed after the fit"):
        training.export(settings, candidate)


def test_censored_requests_are_kept_and_never_fitted_on(copied: tuple[Settings, training.Trained]) -> None:
    settings, first = copied
    project.set_model(settings, unlabelled="censor")
    trained = training.train(settings, "buys", AS_OF)
    _, before = training_set.read(settings.training_sets, first.training_set)
    table, manifest = training_set.read(settings.training_sets, trained.training_set)
    assert manifest.censored == before.dropped["unlabelled"] == table["label"].null_count
    assert load_release(settings, trained.release).manifest.training["rows"] == before.labelled


# --- backtest ---------------------------------------------------------------------------------------------------------
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


def _challenger(settings: Settings) -> str:
    project.set_model(settings, trainer="lightgbm")
    return training.train(settings, "buys", AS_OF).release


def test_a_backtest_runs_both_arms_over_what_was_logged(copied: tuple[Settings, training.Trained]) -> None:
    settings, first = copied
    challenger = _challenger(settings)
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


def test_a_backtest_and_what_it_decided_come_out_of_the_log_again(copied: tuple[Settings, training.Trained]) -> None:
    settings, first = copied
    challenger = _challenger(settings)
    _crown(settings, first.release)
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
    _crown(settings, first.release)
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


def test_views_that_were_not_logged_come_by_point_in_time(copied: tuple[Settings, training.Trained]) -> None:
    settings, first = copied
    challenger = _challenger(settings)
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


def test_too_few_requests_are_no_data(copied: tuple[Settings, training.Trained]) -> None:
    settings, first = copied
    challenger = _challenger(settings)
    frame = _frame(settings, AS_OF).slice(0, 30)
    project.log_traffic(settings, load_release(settings, first.release), frame, with_features=True)
    tables = backtest(settings, _rollout(first.release, challenger))
    assert "30 logged requests after" in str(no_data_reason(tables))
    assert "50 are needed" in str(no_data_reason(tables))


def test_an_empty_log_is_no_data(made: tuple[Settings, training.Trained]) -> None:
    settings, first = made
    rollout = _rollout(first.release, first.release)
    assert "no answered requests" in str(no_data_reason(backtest(settings, rollout)))
    assert "no champion" in str(no_data_reason(backtest(settings, _rollout(None, first.release))))


def _scores(release: Release, frame: pa.Table, buyers: np.ndarray) -> np.ndarray:
    from pipelines.training.columns import inputs_of
    from pipelines.wiring.scoring import score, score_of

    inputs = inputs_of(frame, release.manifest.inputs)
    features = {(release.manifest.views[0].view, "buyers"): buyers}
    return score_of(release, score(release, inputs, features, frame.num_rows))


def _naive(us: int) -> np.datetime64:
    return np.datetime64(us, "us")
