"""The jobs on a small real project: from files to a registered release."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.compute as pc
import pytest

from pipelines.adapters.control_db import control_db
from pipelines.contracts.clocks import from_us
from pipelines.contracts.errors import ContractError, DataError
from pipelines.contracts.release import verify
from pipelines.settings import Settings
from pipelines.training import training_set
from pipelines.wiring import rollout_traffic, training
from pipelines.wiring.releases import answer_sample
from pipelines.wiring.scoring import load_release
from tests.unit.training import project
from tests.unit.training.project import AS_OF, LATER, crown


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
    crown(settings, first.release)
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
