"""When a shift is called one: it must be large and not chance."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.contracts.errors import SpecError
from pipelines.monitoring import performance, verdicts
from pipelines.monitoring.columns import Column, windows
from pipelines.monitoring.verdicts import Bars

BARS = Bars()
DAY = 86_400_000_000


def numbers(mean: float, rows: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, 1, rows)


def test_a_large_shift_fails_with_its_numbers():
    found = verdicts.of_column(Column("temp", numbers(0, 4000, 1), numbers(1, 900, 2)), BARS)
    assert found.verdict == "fail"
    assert found.asks
    assert found.reference == pytest.approx(0, abs=0.1)
    assert found.current == pytest.approx(1, abs=0.1)
    assert "bar 0.2" in found.sentence


def test_a_shift_that_is_certain_but_small_passes():
    found = verdicts.of_column(Column("temp", numbers(0, 50_000, 1), numbers(0.1, 50_000, 2)), BARS)
    assert found.p_value < 1e-9
    assert found.verdict == "pass"


def test_a_shift_that_is_large_but_may_be_chance_passes():
    bars = Bars(min_rows=5)
    found = verdicts.of_column(Column("temp", numbers(0, 12, 3), numbers(0.4, 12, 4)), bars)
    assert found.psi > bars.psi
    assert found.verdict == "pass"


def test_report_only_is_said_and_does_not_ask():
    found = verdicts.of_column(Column("temp", numbers(0, 4000, 1), numbers(3, 900, 2)), BARS, report_only=True)
    assert found.verdict == "fail"
    assert not found.asks


def test_too_few_rows_are_no_data_and_not_a_pass():
    found = verdicts.of_column(Column("temp", numbers(0, 499, 1), numbers(3, 900, 2)), BARS)
    assert found.verdict == "no_data"
    assert "499" in found.sentence


def test_a_column_that_goes_missing_fails():
    found = verdicts.of_column(Column("temp", numbers(0, 4000, 1), np.full(900, np.nan)), BARS)
    assert found.verdict == "fail"


def test_other_tail_numbers_this_week_are_no_drift_but_a_new_carrier_is():
    planes = [f"N{i % 2000}" for i in range(20_000)], [f"N{i % 2000 + 500}" for i in range(5_000)]
    assert verdicts.of_column(Column("tailnum", *planes), BARS).verdict == "pass"
    carriers = ["UA", "AA", "DL"] * 3000, (["UA", "AA", "DL"] * 500) + ["ZZ"] * 1500
    assert verdicts.of_column(Column("carrier", *carriers), BARS).verdict == "fail"


@pytest.mark.parametrize(("share", "word"), [(0.33, "fail"), (0.24, "pass")])
def test_the_share_of_positives_fails_by_its_change(share: float, word: str):
    reference = (np.arange(20_000) % 100 < 17).astype(float)
    current = (np.arange(6_000) % 100 < share * 100).astype(float)
    assert verdicts.of_label(reference, current, "binary", BARS).verdict == word


def test_labels_of_a_regression_are_compared_as_distributions():
    assert verdicts.of_label(numbers(100, 3000, 1), numbers(101, 900, 2), "regression", BARS).verdict == "fail"


@pytest.mark.parametrize(("worse", "word"), [(1.25, "fail"), (1.05, "pass"), (0.8, "pass")])
def test_performance_fails_when_it_is_worse_by_more_than_allowed(worse: float, word: str):
    rng = np.random.default_rng(8)
    reference, current = rng.exponential(0.5, 20_000), rng.exponential(0.5 * worse, 6_000)
    found = verdicts.of_performance("log_loss", reference, current, 0.10, BARS)
    assert found.verdict == word
    assert found.name == "log_loss"


def test_an_unknown_metric_names_the_known_ones():
    with pytest.raises(SpecError, match="log_loss"):
        performance.losses("f1", np.zeros(1), np.zeros(1))


def test_windows_touch_and_labels_end_at_maturity():
    inputs, labels = windows(100 * DAY, 30 * DAY, 7 * DAY), windows(100 * DAY, 30 * DAY, 7 * DAY, DAY)
    assert (inputs.reference.start_us, inputs.reference.end_us) == (63 * DAY, 93 * DAY)
    assert (inputs.current.start_us, inputs.current.end_us) == (93 * DAY, 100 * DAY)
    assert labels.current.end_us == 99 * DAY
