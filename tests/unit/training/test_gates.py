"""Offline gates: every verdict, its numbers and its sentence."""

from __future__ import annotations

import pytest

from pipelines.spec.model import OfflineGate
from pipelines.training.gates import Comparison, judge, refused

NOBODY = Comparison(None, None, "there is no champion yet")


@pytest.mark.parametrize(
    ("gate", "value", "verdict", "sentence"),
    [
        ({"max": 0.65}, 0.60, "pass", "log_loss 0.6000 <= max 0.65"),
        ({"max": 0.65}, 0.70, "fail", "log_loss 0.7000 > max 0.65"),
        ({"min": 0.10}, 0.05, "fail", "log_loss 0.0500 < min 0.1"),
    ],
)
def test_bars(gate: dict[str, float], value: float, verdict: str, sentence: str) -> None:
    found = judge([OfflineGate(metric="log_loss", **gate)], {"log_loss": value}, NOBODY)
    assert (found[0].verdict, found[0].sentence) == (verdict, sentence)


@pytest.mark.parametrize(
    ("metric", "ours", "theirs", "verdict"),
    [
        ("log_loss", 0.509, 0.50, "pass"),
        ("log_loss", 0.511, 0.50, "fail"),
        ("auc", 0.69, 0.70, "pass"),
        ("auc", 0.68, 0.70, "fail"),
    ],
)
def test_margins_against_the_champion_know_which_way_is_better(
    metric: str, ours: float, theirs: float, verdict: str
) -> None:
    gate = OfflineGate(metric=metric, against="champion", max_worse_rel=0.02)
    found = judge([gate], {metric: 0.0}, Comparison({metric: ours}, {metric: theirs}, "champion 1.0.0 over 900 rows"))
    assert found[0].verdict == verdict
    assert found[0].champion == theirs
    assert "champion 1.0.0 over 900 rows" in found[0].sentence


def test_without_a_champion_there_is_no_data_and_nothing_is_refused() -> None:
    gate = OfflineGate(metric="log_loss", against="champion", max_worse_rel=0.02)
    found = judge([gate], {"log_loss": 0.5}, NOBODY)
    assert found[0].verdict == "no_data"
    assert "there is no champion yet" in found[0].sentence
    assert not refused(found)


def test_a_metric_that_was_not_measured_is_no_data() -> None:
    assert judge([OfflineGate(metric="auc", min=0.6)], {}, NOBODY)[0].verdict == "no_data"


def test_one_failed_gate_refuses_the_release() -> None:
    gates = [OfflineGate(metric="log_loss", max=0.65), OfflineGate(metric="auc", min=0.6)]
    assert refused(judge(gates, {"log_loss": 0.5, "auc": 0.5}, NOBODY))
