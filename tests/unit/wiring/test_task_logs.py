"""The log of a failed task, as it is shown with the error that it caused."""

from __future__ import annotations

from pipelines.adapters.airflow_rest import told_by


def test_a_failure_is_told_with_its_message() -> None:
    detail = [{"exc_type": "AirflowFailException", "exc_value": "log_loss 0.5396 > 0.5253", "frames": []}]
    line = {"level": "error", "event": "Task failed with exception", "error_detail": detail}
    assert told_by(line) == "Task failed with exception\n  AirflowFailException: log_loss 0.5396 > 0.5253"


def test_other_lines_are_what_happened() -> None:
    assert told_by({"level": "info", "event": "Done"}) == "Done"
