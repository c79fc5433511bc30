"""The offline judge: causal, deterministic, order-robust, the same words as live."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from pipelines.cli.gate import app
from pipelines.collect.fold import Fold
from pipelines.rollout.judge import judge as judge_evidence
from pipelines.rollout.offline import judge
from pipelines.rollout.policy import Policy
from pipelines.rollout.simulator import HEALTHY, Fault, simulate
from pipelines.rollout.traffic import Traffic
from tests.unit.stats.cases import between, mapping, shuffled, stamps

TRAFFIC = Traffic(requests_per_s=0.2)
BODY = mapping(1500, 1500)
POLICY = Policy.parse(BODY)
KEYS = [
    "rollout_id", "ts", "seq", "stage", "verdict", "metric", "slice", "e_value", "threshold", "estimate", "lower",
    "upper", "exposed", "final", "missing",
]  # fmt: skip


def text(lines: list[dict[str, object]]) -> list[str]:
    return [json.dumps(line) for line in lines]


def together(*rollouts: dict[str, pa.Table]) -> dict[str, pa.Table]:
    return {kind: pa.concat_tables([part[kind] for part in rollouts]).unify_dictionaries() for kind in rollouts[0]}


def test_a_healthy_rollout_walks_its_stages_and_is_promoted() -> None:
    lines = judge(BODY, simulate(POLICY, seed=1, traffic=TRAFFIC))
    assert [(line["stage"], line["verdict"]) for line in lines] == [
        ("shadow", "continue"), ("canary_20", "continue"), ("canary_50", "continue"), ("canary_50", "promote"),
    ]  # fmt: skip
    assert list(lines[0]) == KEYS
    assert [line["final"] for line in lines] == [False, False, False, True]


def test_shadow_harm_is_stopped_with_nothing_exposed() -> None:
    last = judge(BODY, simulate(POLICY, seed=1, traffic=TRAFFIC, fault=Fault(logit_noise=2.5)))[-1]
    assert (last["verdict"], last["metric"], last["stage"], last["exposed"]) == ("rollback", "logloss", "shadow", 0)


def test_unproven_metrics_are_named_at_the_end() -> None:
    tables = simulate(POLICY, seed=1, traffic=TRAFFIC)
    half = between(tables, 0, int(stamps(tables["assignments"])[2000]))
    last = judge(BODY, half)[-1]
    assert last["verdict"] == "inconclusive"
    assert "kpi" in last["missing"]


@pytest.mark.parametrize("fault", [HEALTHY, Fault(error_rate=0.02, only_served=True), Fault(latency_factor=1.5)])
def test_a_line_depends_only_on_rows_up_to_its_time(fault: Fault) -> None:
    """Cut anywhere: what the whole run said up to the cut, the cut run says too, byte for byte."""
    tables = simulate(POLICY, seed=5, traffic=TRAFFIC, fault=fault)
    whole = judge(BODY, tables)
    rng = np.random.default_rng(1)
    times = stamps(tables["assignments"])
    for cut in [*rng.choice(times, 5).tolist(), *(_micros(str(line["ts"])) for line in whole)]:
        part = judge(BODY, between(tables, 0, int(cut) + 1))
        said = [line for line in whole if _micros(str(line["ts"])) <= cut]
        assert text(part)[: len(said)] == text(said)


def _micros(stamp: str) -> int:
    return int(np.datetime64(stamp.removesuffix("Z"), "us").astype(np.int64))


def test_shuffled_rows_other_row_groups_and_rounded_times_give_the_same_bytes() -> None:
    tables = simulate(POLICY, seed=6, traffic=TRAFFIC, fault=Fault(error_rate=0.02))
    coarse = {}
    for kind, table in tables.items():
        # Whole seconds: many rows with equal times.
        rounded = pa.array(stamps(table) // 1_000_000 * 1_000_000, pa.timestamp("us", "UTC"))
        coarse[kind] = table.set_column(table.column_names.index("ts"), "ts", rounded)
    first = text(judge(BODY, coarse))
    assert text(judge(BODY, shuffled(coarse, np.random.default_rng(2)))) == first
    chunks = {kind: pa.Table.from_batches(table.to_batches(max_chunksize=97)) for kind, table in coarse.items()}
    assert text(judge(BODY, chunks)) == first


def test_rollouts_in_one_file_are_judged_one_by_one() -> None:
    rollouts = [
        simulate(POLICY, seed=n, traffic=TRAFFIC, fault=fault, rollout_id=n)
        for n, fault in enumerate([HEALTHY, Fault(error_rate=0.05)])
    ]
    mixed = shuffled(together(*rollouts), np.random.default_rng(0))
    alone = [line for tables in rollouts for line in judge(BODY, tables)]
    assert text(judge(BODY, mixed)) == text(alone)
    assert [line["rollout_id"] for line in judge(BODY, mixed) if line["final"]] == [0, 1]


def test_no_rows_are_no_lines() -> None:
    assert judge(BODY, {}) == []


def test_live_evidence_and_the_replay_say_the_same() -> None:
    """Folded in small batches and judged live at the moment of the offline decision, the words and numbers agree."""
    tables = simulate(POLICY, seed=7, traffic=TRAFFIC, fault=Fault(error_rate=0.03, only_served=True))
    last = judge(BODY, tables)[-1]
    fold = Fold(POLICY)
    edges = np.linspace(0, _micros(str(last["ts"])) - 1_767_225_600_000_000 + 1, 40).astype(np.int64)
    for low, high in pairwise(edges):
        fold.add(**between(tables, 1_767_225_600_000_000 + int(low), 1_767_225_600_000_000 + int(high)))
    found = judge_evidence(POLICY, fold.evidence(), str(last["stage"]))
    assert found.stop is not None
    assert (found.stop.action, found.stop.metric, found.stop.e_value) == (
        last["verdict"],
        last["metric"],
        last["e_value"],
    )
    assert found.exposed == last["exposed"]


def test_the_command_writes_json_lines(tmp_path: Path) -> None:
    for kind, table in simulate(POLICY, seed=1, traffic=TRAFFIC).items():
        pq.write_table(table, tmp_path / f"{kind}.parquet", row_group_size=500)
    (tmp_path / "policy.yaml").write_text(yaml.safe_dump(BODY), encoding="utf-8")
    out = tmp_path / "out" / "verdicts.jsonl"
    result = CliRunner().invoke(app, ["judge", "--case", str(tmp_path), "--out", str(out)])
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert lines[-1]["verdict"] == "promote"


def test_a_case_without_responses_is_refused_by_name(tmp_path: Path) -> None:
    pq.write_table(simulate(POLICY, seed=1)["assignments"], tmp_path / "assignments.parquet")
    (tmp_path / "policy.yaml").write_text(yaml.safe_dump(BODY), encoding="utf-8")
    result = CliRunner().invoke(app, ["judge", "--case", str(tmp_path)])
    assert result.exit_code == 1
    assert "responses.parquet" in str(result.exception)
