"""When drift asks for a retraining: cool-down and limit, in event time."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.monitoring.triggers import RetrainRule, decide
from pipelines.monitoring.verdicts import Verdict

DAY = 86_400_000_000
RULE = RetrainRule(cooldown_us=14 * DAY, limit=2, per_us=60 * DAY)


def verdict(word: str = "fail", *, report_only: bool = False) -> Verdict:
    return Verdict(
        name="log_loss",
        kind="performance",
        test="welch",
        verdict=word,
        report_only=report_only,
        reference_rows=1,
        current_rows=1,
        sentence="0.4 -> 0.5",
    )


@pytest.mark.parametrize(
    ("verdicts", "asked_days", "day", "drifted", "asked", "why"),
    [
        ([verdict("pass")], [], 100, False, False, "nothing"),
        ([verdict("no_data")], [], 100, False, False, "nothing"),
        ([verdict(report_only=True)], [], 100, False, False, "nothing"),
        ([verdict()], [], 100, True, True, "0.4 -> 0.5"),
        ([verdict()], [87], 100, True, False, "cool-down: the last was 13.0 days ago"),
        ([verdict()], [86], 100, True, True, "log_loss"),
        ([verdict()], [50, 70], 100, True, False, "retrain limit: 2 in 60 days"),
        ([verdict()], [40, 70], 100, True, True, "log_loss"),
        ([verdict()], [100], 100, True, True, "log_loss"),
        ([verdict()], [87, 100], 100, True, False, "cool-down"),
    ],
)
def test_a_table_of_cases(verdicts, asked_days, day, drifted, asked, why):
    found = decide(verdicts, [each * DAY for each in asked_days], day * DAY, RULE)
    assert (found.drifted, found.asked) == (drifted, asked)
    assert why in found.reason


def test_without_a_rule_drift_is_told_and_not_acted_on():
    found = decide([verdict()], [], 0, None)
    assert (found.drifted, found.asked) == (True, False)


@given(st.lists(st.integers(0, 400), max_size=60))
def test_daily_drift_never_breaks_cool_down_or_limit(days):
    asked: list[int] = []
    for day in sorted(days):
        if decide([verdict()], asked, day * DAY, RULE).asked and day * DAY not in asked:
            asked.append(day * DAY)
    assert all(later - earlier >= RULE.cooldown_us for earlier, later in pairwise(asked))
    for moment in asked:
        assert sum(moment - RULE.per_us < other <= moment for other in asked) <= RULE.limit
