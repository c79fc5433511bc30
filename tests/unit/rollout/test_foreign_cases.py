"""Files written by somebody else come out alike: healthy, harmful, shuffled, in other encodings, cut at any time."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pyarrow as pa
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from pipelines.cli.gate import app
from pipelines.rollout.offline import judge
from tests.unit.rollout.foreign_cases import Rows, policy, rows, seconds, tables, upto, write

BODY = policy()


def text(lines: list[dict[str, object]]) -> list[str]:
    return [json.dumps(line) for line in lines]


@pytest.fixture(scope="module")
def harmful() -> Rows:
    return rows(1, error=0.15)


def test_healthy_rollouts_of_another_generator_are_not_stopped() -> None:
    rollouts = {number: rows(number) for number in range(10, 40)}
    last = [line for line in judge(BODY, tables(rollouts)) if line["final"]]
    assert [line["rollout_id"] for line in last] == list(rollouts)
    assert not [line for line in last if line["verdict"] in ("rollback", "hold")]


def test_workers_whose_rows_come_a_second_apart_lose_no_assignment() -> None:
    """Numbers are the collector's: in the order of time a hundred of them are missing for a second."""
    made = rows(4, pace_s=0.02)
    ahead = {row["request_id"] for row in made["assignments"] if row["request_id"] % 2}
    for part in made.values():
        for row in part:
            row["ts"] -= 1_000_000 * (row["request_id"] in ahead)
    last = judge(BODY, tables({0: made}))[-1]
    assert (last["verdict"], last["metric"]) == ("inconclusive", None)


@pytest.mark.parametrize(
    ("harm", "metric"), [({"error": 0.15}, "error_rate"), ({"kpi": 0.6}, "kpi"), ({"slow": 3.0}, "latency")]
)
def test_faults_of_another_generator_are_stopped_by_their_metric(harm: dict[str, float], metric: str) -> None:
    # Latency is compared between minutes, and needs a few requests in each; KPIs need an hour to mature.
    requests, pace = {"error_rate": (900, 6.0), "kpi": (2500, 6.0), "latency": (3000, 0.6)}[metric]
    last = judge(policy(requests), tables({0: rows(2, requests=requests, pace_s=pace, **harm)}))[-1]
    assert (last["verdict"], last["metric"], last["stage"]) == ("rollback", metric, "canary_25")


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    encoding=st.sampled_from([pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())]),
    unit=st.sampled_from(["us", "ns"]),
)
def test_shuffles_and_encodings_do_not_change_a_byte(
    harmful: Rows, seed: int, encoding: pa.DataType, unit: str
) -> None:
    plain = text(judge(BODY, tables({0: harmful, 1: harmful})))
    assert text(judge(BODY, tables({0: harmful, 1: harmful}, random.Random(seed), text=encoding, unit=unit))) == plain


@settings(max_examples=12, deadline=None)
@given(share=st.floats(0.01, 1.0))
def test_what_was_said_by_any_time_rests_on_the_rows_of_that_time(harmful: Rows, share: float) -> None:
    whole = judge(BODY, tables({0: harmful}))
    times = [row["ts"] for row in harmful["assignments"]]
    cut = times[int(share * (len(times) - 1))]
    said = [line for line in whole if seconds(line) <= cut]
    assert text(judge(BODY, tables({0: upto(harmful, cut)})))[: len(said)] == text(said)


@pytest.mark.parametrize("row_group", [64, 100_000])
def test_files_without_labels_kpis_slices_or_units_are_judged(tmp_path: Path, harmful: Rows, row_group: int) -> None:
    bare = {kind: harmful[kind] for kind in ("assignments", "responses")}
    bare["assignments"] = [
        {name: value for name, value in row.items() if name != "segment"} for row in bare["assignments"]
    ]
    write(tmp_path, tables({0: bare | {"labels": [], "kpi": []}}), row_group=row_group)
    body = policy(metrics=("error_rate", "loss")) | {"slices": []}
    (tmp_path / "policy.yaml").write_text(yaml.safe_dump(body), encoding="utf-8")
    out = tmp_path / "verdicts.jsonl"
    result = CliRunner().invoke(app, ["judge", "--case", str(tmp_path), "--out", str(out)])
    assert result.exit_code == 0, result.output
    last = json.loads(out.read_text(encoding="utf-8").splitlines()[-1])
    assert (last["verdict"], last["metric"]) == ("rollback", "error_rate")
