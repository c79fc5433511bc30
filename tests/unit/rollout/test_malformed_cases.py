"""A case that is not as `slipway-gate/1` has it is refused by file and row, a policy by file and line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml

from pipelines.cli.main import main
from pipelines.contracts.errors import ContractError
from pipelines.rollout.offline import judge
from tests.unit.rollout.foreign_cases import Rows, policy, rows, tables, write

Tables = dict[str, pa.Table]
Change = Callable[[Tables], None]


@pytest.fixture(scope="module")
def healthy() -> Rows:
    return rows(3, requests=40)


@pytest.fixture
def found(healthy: Rows) -> Tables:
    return tables({0: healthy})


def value(kind: str, column: str, row: int, given: object) -> Change:
    """One value of a table, its row counted from 1, is another."""

    def change(found: Tables) -> None:
        values = found[kind][column].to_pylist()
        values[row - 1] = given
        place, typed = found[kind].column_names.index(column), found[kind][column].type
        found[kind] = found[kind].set_column(place, column, pa.array(values, typed))

    return change


def typed(kind: str, column: str, as_type: pa.DataType) -> Change:
    """A column has values of another type."""

    def change(found: Tables) -> None:
        place = found[kind].column_names.index(column)
        found[kind] = found[kind].set_column(place, column, found[kind][column].cast(as_type))

    return change


def without(kind: str, column: str) -> Change:
    """A table lacks a column."""

    def change(found: Tables) -> None:
        found[kind] = found[kind].drop_columns([column])

    return change


def beside(row: int, took: Any) -> Change:
    """One answer says what the other arm took beside it."""

    def change(found: Tables) -> None:
        answers = found["responses"]
        values = [took if at == row - 1 else None for at in range(answers.num_rows)]
        found["responses"] = answers.append_column("beside_ms", pa.array(values))

    return change


def renamed(kind: str, column: str, other: str) -> Change:
    """A column is called otherwise."""

    def change(found: Tables) -> None:
        found[kind] = found[kind].rename_columns(
            [other if name == column else name for name in found[kind].column_names]
        )

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (value("assignments", "ts", 8, None), r"assignments, row 8: ts; got null"),
        (value("responses", "ts", 8, None), r"responses, row 8: ts; got null"),
        (value("labels", "ts", 8, None), r"labels, row 8: ts; got null"),
        (value("kpi", "request_id", 8, None), r"kpi, row 8: request_id; got null"),
        (value("assignments", "seq", 9, 7), r"assignments, row 9: seq; got 7; expected a number that no other"),
        (value("assignments", "stage", 3, "shadw"), r"row 3: stage; got 'shadw'; .* Did you mean 'shadow'\?"),
        (value("assignments", "arm", 3, "control"), r"row 3: arm; got 'control'; expected one of champion"),
        (value("assignments", "share", 50, None), r"row 50: share; got null; expected the share that the arm"),
        (value("assignments", "share", 50, 1.5), r"row 50: share; got 1.5; expected a share in \[0, 1\]"),
        (value("responses", "arm", 2, "both"), r"responses, row 2: arm; got 'both'"),
        (value("responses", "status", 2, "OK"), r"responses, row 2: status; got 'OK'; expected one of ok, error"),
        (value("responses", "latency_ms", 2, -1.0), r"responses, row 2: latency_ms; got -1.0"),
        (beside(2, -1.0), r"responses, row 2: beside_ms; got -1.0; expected a time of at least 0, or null"),
        (beside(3, float("inf")), r"responses, row 3: beside_ms; got inf; expected a time of at least 0, or null"),
        (beside(2, "quick"), r"responses, column beside_ms; got string; expected numbers"),
        (value("labels", "label", 2, 2.0), r"labels, row 2: label; got 2.0; expected 0 or 1"),
        (value("responses", "rollout_id", 2, None), r"responses, row 2: rollout_id; got null"),
        (without("labels", "rollout_id"), r"labels; .* expected a column rollout_id"),
        (without("assignments", "segment"), r"assignments; .* expected a column segment"),
        (renamed("responses", "score", "scores"), r"expected a column score. Is it the one called 'scores'\?"),
        (typed("assignments", "ts", pa.int64()), r"assignments, column ts; got int64; expected timestamps"),
        (typed("assignments", "seq", pa.float64()), r"assignments, column seq; got double; expected whole numbers"),
        (typed("labels", "label", pa.string()), r"labels, column label; got string; expected numbers"),
        (typed("kpi", "request_id", pa.string()), r"kpi, column request_id; got string; expected int64, as assign"),
        (lambda found: found.update(label=found.pop("labels")), r"got 'label'; .* Did you mean 'labels'\?"),
    ],
)
def test_a_row_that_could_only_be_misread_is_named(found: Tables, change: Change, message: str) -> None:
    change(found)
    with pytest.raises(ContractError, match=message):
        judge(policy(40), found)


def test_a_kpi_value_of_another_metric_is_named(found: Tables) -> None:
    names = [None, *["kpi"] * (found["kpi"].num_rows - 2), "revenue"]
    found["kpi"] = found["kpi"].append_column("metric", pa.array(names))
    with pytest.raises(ContractError, match=rf"kpi, row {len(names)}: metric; got 'revenue'; expected one of kpi"):
        judge(policy(40), found)


def test_drawn_units_have_to_be_named(found: Tables) -> None:
    with pytest.raises(ContractError, match="expected a column unit_id"):
        judge(policy(40) | {"unit": "unit"}, found)


@pytest.mark.parametrize(
    "change",
    [
        value("responses", "score", 2, None),
        value("responses", "score", 2, float("inf")),
        value("responses", "latency_ms", 2, float("nan")),
        beside(2, None),
        beside(2, 12.5),
        beside(2, float("nan")),
        value("responses", "request_id", 2, 1),
        value("labels", "label", 2, float("nan")),
        value("kpi", "value", 2, 1e9),
        value("assignments", "segment", 2, None),
        typed("assignments", "ts", pa.timestamp("ns", "UTC")),
        typed("responses", "status", pa.dictionary(pa.int8(), pa.string())),
    ],
)
def test_what_a_gateway_may_really_send_is_judged(found: Tables, change: Change) -> None:
    change(found)
    assert judge(policy(40), found)[-1]["final"]


def _judged(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["slipway", "gate", "judge", "--case", str(folder)])
    return main(), capsys.readouterr().err


@pytest.fixture
def case(tmp_path: Path, found: Tables) -> Path:
    write(tmp_path, found, row_group=16)
    (tmp_path / "policy.yaml").write_text(yaml.safe_dump(policy(40), sort_keys=False), encoding="utf-8")
    return tmp_path


def test_the_command_names_file_and_row(case: Path, found: Tables, monkeypatch: Any, capsys: Any) -> None:
    value("responses", "status", 5, "timeout")(found)
    write(case, found, row_group=16)
    code, told = _judged(case, monkeypatch, capsys)
    assert code == 1
    assert told.startswith(f"slipway: {case / 'responses.parquet'}, row 5: status; got 'timeout'; expected one of ok")


@pytest.mark.parametrize(("place", "code"), [(".", 2), ("policy.yaml/verdicts.jsonl", 1)])
def test_a_place_that_cannot_be_written_is_named(
    case: Path, place: str, code: int, monkeypatch: Any, capsys: Any
) -> None:
    out = case / place
    monkeypatch.setattr(sys, "argv", ["slipway", "gate", "judge", "--case", str(case), "--out", str(out)])
    try:
        ended = main()
    except SystemExit as usage:
        ended = int(usage.code or 0)
    assert ended == code
    assert "--out" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"hello", b"PAR1" + bytes(40)])
def test_a_file_that_is_no_parquet_is_named(case: Path, content: bytes, monkeypatch: Any, capsys: Any) -> None:
    (case / "labels.parquet").write_bytes(content)
    code, told = _judged(case, monkeypatch, capsys)
    assert code == 1
    assert told.startswith(f"slipway: {case / 'labels.parquet'}; got ")
    assert told.endswith("expected a Parquet file\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("schema: slipway-gate/1\nstages: [}\n", "2: "),
        ("schema: slipway-gate/1\nschema: slipway-gate/1\n", '2: duplicate key "schema".'),
        ("- schema\n", "1: the file holds list; expected a mapping"),
        ("schema: slipway-gate/1\nstages:\n", "2: stages of the policy; got None; expected a list."),
        ("stages:\n  - {name: shadow}\n  - {name: canary_05}\n", "3: share of stage canary_05; got None"),
        (
            "stages: [{name: shadow}]\nmetrics:\n  - name: e\n    kind: event\n    harm_abs: 1\n",
            "5: harm_abs of metric",
        ),
        ("stages: [{name: shadow}]\nmetrics: [{name: e, kind: event}]\nslices: slice\n", "3: slices; got 'slice'"),
    ],
)
def test_the_command_names_file_and_line_of_a_policy(
    case: Path, text: str, message: str, monkeypatch: Any, capsys: Any
) -> None:
    (case / "policy.yaml").write_text(text, encoding="utf-8")
    code, told = _judged(case, monkeypatch, capsys)
    assert code == 1
    assert told.startswith(f"slipway: {case / 'policy.yaml'}:{message}"), told
