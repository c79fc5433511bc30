"""The page of a rollout: drawn from the record and the log, and kept beside the release."""

from __future__ import annotations

import html
import random
import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from pipelines.adapters import inference_log
from pipelines.adapters.delta_lake import DeltaLake
from pipelines.cli import rollout as cli
from pipelines.contracts.errors import DataError
from pipelines.contracts.routes import Route
from pipelines.rollout.base_rates import Answers, measured
from pipelines.rollout.policy import Policy
from pipelines.wiring import rollouts
from pipelines.wiring.collect import collect_once
from pipelines.wiring.gate_plan import plan_model
from pipelines.wiring.rollout_page import page
from tests.unit.collect.installation import POLICY, Installation
from tests.unit.collect.traffic import START_US, Worker
from tests.unit.rollout.test_stage_lengths import SPEC, installed


@pytest.fixture(scope="module")
def withdrawn(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """400 requests of the champion alone, a shadow, and a canary that is rolled back for its errors."""
    made = Installation(tmp_path_factory.mktemp("home"))
    rng, worker = random.Random(5), Worker(made.bus)
    alone = Route(model="m", version=1, mode="single", champion=made.champion, stage="live")
    for number in range(400):
        fails = frozenset({"champion"}) if number % 100 == 50 else frozenset[str]()
        worker.request(alone, f"c{number}", label=float(rng.random() < 0.3), score=rng.random(), fails=fails)
    sent = 0
    while rollouts.load(made.settings, made.rollout).slot == "running":
        canary = made.route.mode == "split"
        for _ in range(130):
            fails = frozenset({"challenger"}) if canary and rng.random() < 0.3 else frozenset[str]()
            worker.request(made.route, f"q{sent}", fails=fails, label=float(rng.random() < 0.3), score=rng.random())
            sent += 1
        collect_once(made.settings)
        rollouts.look(made.settings, made.rollout)
        rollouts.advance(made.settings, made.rollout)
        assert sent < 5000
    return made


def words(text: str) -> str:
    """The text of a page without its marks."""
    text = re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", text)))


def test_the_page_shows_the_way_the_verdict_the_effects_and_what_was_promised(withdrawn: Installation) -> None:
    text = page(withdrawn.settings, withdrawn.rollout)
    shown = rollouts.show(withdrawn.settings, withdrawn.rollout)
    said = words(text)
    assert f"Rollout {withdrawn.rollout} of m rolled back in canary_20" in said
    assert "What decided rollback at canary_20 by gate (verdict): error_rate: challenger" in said
    assert f"{shown['exposed']:,} answered by the challenger" in said
    for verdict in shown["verdicts"]:
        assert verdict["reason"] in said
    for family in ("sample_ratio", "error_rate", "logloss"):
        assert f"<title>e-values of {family}</title>" in text
    assert "error_rate harm error_rate: harm of 1.5 needs" in said
    assert re.search(r"error_rate: harm of 1.5 needs [^;]*;.{0,80}? after [\d,]+ requests, in canary_20", said)
    assert "bake ends before" not in said
    for outside in ("http://127", "https://", "<script", "src="):
        assert outside not in text.replace("http://www.w3.org/2000/svg", "")


def test_the_last_point_of_a_chart_is_the_recorded_verdict(withdrawn: Installation) -> None:
    shown = rollouts.show(withdrawn.settings, withdrawn.rollout)
    text = page(withdrawn.settings, withdrawn.rollout)
    requests = sum(shown["counts"]["assignments"].values())
    assert f">{requests:,} requests</text>" in text


def test_a_chart_begins_with_its_first_stage_and_the_first_request(withdrawn: Installation) -> None:
    chart = re.search(r"<title>e-values of error_rate</title>.*?</svg>", page(withdrawn.settings, withdrawn.rollout))
    assert chart is not None
    begins = re.findall(r'x1="([\d.]+)" x2="[\d.]+" [^>]*class="stage"', chart[0])
    assert begins[0] == "46.0", "the first stage begins at the axis"
    assert len(re.findall(r'<polyline points="46\.0,', chart[0])) == 2, "so do harm and proof"


def test_a_first_champion_has_a_page_without_evidence(withdrawn: Installation) -> None:
    said = words(page(withdrawn.settings, "m-r1"))
    assert "promote at approval by anna" in said
    assert "The inference log holds no evidence of this rollout." in said
    assert "a named person decided" in said


def test_explain_writes_the_page_to_a_file(
    withdrawn: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLIPWAY_HOME", str(withdrawn.settings.root))
    target = tmp_path / "new" / "page.html"
    done = CliRunner().invoke(cli.app, ["explain", withdrawn.rollout, "--html", str(target)])
    assert done.exit_code == 0, done.output
    assert target.read_text() == page(withdrawn.settings, withdrawn.rollout)


def test_base_rates_are_those_of_the_champion_before_the_rollout(withdrawn: Installation) -> None:
    policy = Policy.parse(POLICY)
    lake = DeltaLake(withdrawn.settings.lake)
    before = START_US + 401 * 10_000
    answers = inference_log.answers(lake, "m", withdrawn.champion, before)
    rates = measured(policy, answers)
    assert len(answers.event_us) == 400
    assert rates.requests_per_hour == pytest.approx(360_000, rel=0.02)
    assert rates.metrics["error_rate"].rate == pytest.approx(4.5 / 401)
    kept = np.isfinite(answers.label) & np.isfinite(answers.score)
    p = np.clip(answers.score[kept], 0.01, 0.99)
    losses = -np.log(np.where(answers.label[kept] == 1, p, 1 - p))
    assert rates.metrics["logloss"].mean == pytest.approx(losses.mean())
    assert rates.metrics["logloss"].sd == pytest.approx(losses.std())


def test_too_little_traffic_is_no_base_rate() -> None:
    none = np.empty(0)
    with pytest.raises(DataError, match="got 0 answers of the champion; expected at least 100"):
        measured(Policy.parse(POLICY), Answers(np.empty(0, np.int64), np.empty(0, bool), none, none, none, none))


def test_the_base_rate_of_a_ranking_is_one_minus_the_area_under_the_roc_curve() -> None:
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(3)
    label = (rng.random(2000) < 0.3).astype(float)
    score = np.round(rng.normal(label, 1.0), 1)  # with ties
    nothing = np.full(2000, np.nan)
    answers = Answers(np.arange(2000) * 1_000_000, np.zeros(2000, bool), score, nothing, label, nothing)
    metric = {"name": "auc", "kind": "paired_loss", "loss": "rank", "harm_abs": 0.02, "promote_margin_abs": 0.03}
    policy = Policy.parse(POLICY | {"score_range": None, "metrics": [metric | {"weight": 0.5}]})
    found = measured(policy, answers).metrics["auc"]
    assert found.rate == label.mean()
    assert found.mean == pytest.approx(1 - roc_auc_score(label, score))


def test_a_model_is_planned_at_the_traffic_its_champion_has_logged(withdrawn: Installation) -> None:
    include = withdrawn.settings.root / "include"
    metrics = [row for row in POLICY["metrics"] if isinstance(row, dict)]
    installed(include.parent, slices=[], rollout=SPEC["rollout"] | {"policy": {"metrics": metrics}})
    settings = withdrawn.settings.model_copy(update={"include_dir": include})
    found = plan_model(settings, "m")
    assert found.traffic.source == "the inference log"
    assert found.traffic.by_metric["error_rate"] == "the inference log"
    assert found.traffic.rates.requests_per_hour == pytest.approx(360_000, rel=0.05)
    assert found.traffic.rates.of("logloss").paired_sd is not None, "the rollout before has compared pairs"
    assert {need.metric for need in found.needs} == {"error_rate", "invalid_score", "logloss"}
