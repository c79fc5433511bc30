"""Pairs whose arms were scored beside each other are compared by those times, and by nothing else."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.collect.fold import Fold
from pipelines.rollout.judge import judge as judge_evidence
from pipelines.rollout.offline import judge
from pipelines.rollout.policy import Policy
from pipelines.rollout.simulator import HEALTHY, Fault, simulate
from pipelines.rollout.traffic import Traffic
from pipelines.stats.evidence import Evidence
from tests.unit.stats.cases import between, mapping, policy, shuffled, stamps

Tables = dict[str, pa.Table]

BODY = mapping(1500, 1500)
POLICY = Policy.parse(BODY)
TRAFFIC = Traffic(requests_per_s=0.2)


def in_a_process_of_their_own(tables: Tables, slower: float, worker: float = 1.0) -> Tables:
    """The same pairs, as a process `slower` than the gateway's scored them: the challenger's answer for the log, the
    champion again beside it. What the client waited for is `worker` times as much, the champion's alone.
    """
    answers = tables["responses"]
    requests = tables["assignments"].filter(pc.equal(tables["assignments"]["arm"].cast(pa.string()), "both"))
    pair = np.isin(answers["request_id"].to_numpy(), requests["request_id"].to_numpy())
    challenger = np.asarray(pc.equal(answers["arm"].cast(pa.string()), "challenger"))
    took, request = answers["latency_ms"].to_numpy(), answers["request_id"].to_numpy()
    champion = dict(zip(request[~challenger].tolist(), took[~challenger].tolist(), strict=True))
    beside = [
        slower * champion[name] if second and name in champion else None
        for name, second in zip(request.tolist(), pair & challenger, strict=True)
    ]
    factor = np.where(pair, np.where(challenger, slower, worker), 1.0)
    place = answers.column_names.index("latency_ms")
    changed = answers.set_column(place, "latency_ms", pa.array(took * factor, pa.float32()))
    return tables | {"responses": changed.append_column("beside_ms", pa.array(beside, pa.float32()))}


def unmeasured(tables: Tables) -> Tables:
    """The same rows as a log has them that knows nothing of it."""
    return tables | {"responses": tables["responses"].drop_columns("beside_ms")}


def fold(policy: Policy, *batches: Tables) -> Evidence:
    state = Fold(policy)
    for batch in batches:
        state.add(**batch)
    return state.evidence()


def latency(evidence: Evidence, stage: str) -> list[object]:
    """What a stage has shown of latencies."""
    return [cell for cell in json.loads(evidence.to_json())["cells"] if cell[0] == stage and "latency" in cell[1]]


def test_a_slower_process_is_no_harm_where_both_arms_were_scored_in_it_and_would_have_been() -> None:
    """Forty per cent slower than the gateway's worker, for both arms alike."""
    tables = in_a_process_of_their_own(simulate(POLICY, seed=1, traffic=TRAFFIC), slower=1.4)
    words = [(line["stage"], line["verdict"], line["metric"]) for line in judge(BODY, tables)]
    assert words == [
        ("shadow", "continue", None),
        ("canary_20", "continue", None),
        ("canary_50", "continue", None),
        ("canary_50", "promote", None),
    ]
    assert ("shadow", "continue", "latency_p50") in [
        (line["stage"], line["verdict"], line["metric"]) for line in judge(BODY, unmeasured(tables))
    ]


def test_a_slower_challenger_is_found_in_a_process_that_is_quicker_than_the_gateways() -> None:
    slow = simulate(POLICY, seed=1, traffic=TRAFFIC, fault=Fault(latency_factor=1.5))
    tables = in_a_process_of_their_own(slow, slower=0.5)
    found, missed = (
        [line["metric"] for line in judge(BODY, each) if line["stage"] == "shadow"]
        for each in (tables, unmeasured(tables))
    )
    assert "latency_p50" in found
    assert "latency_p50" not in missed


@pytest.mark.parametrize("fault", [HEALTHY, Fault(latency_factor=1.2, error_rate=0.02, doubled=0.01, lost=0.01)])
def test_a_pairs_evidence_does_not_know_what_the_client_waited_for(fault: Fault) -> None:
    """The scale of time is arbitrary, too: twice as slow is exact in floating point."""
    tables = simulate(POLICY, seed=3, traffic=TRAFFIC, fault=fault)
    expected = latency(fold(POLICY, tables), "shadow")
    assert expected
    for worker in (0.25, 1.0, 8.0):
        measured = fold(POLICY, in_a_process_of_their_own(tables, slower=2.0, worker=worker))
        assert latency(measured, "shadow") == expected


def test_drawn_arms_are_compared_by_what_their_clients_waited_for() -> None:
    """With quantiles of such times from the canary's first request on: those of the shadow stage's answers."""
    tables = simulate(POLICY, seed=4, traffic=TRAFFIC)
    plain, measured = fold(POLICY, tables), fold(POLICY, in_a_process_of_their_own(tables, slower=1.4))
    for stage in ("canary_20", "canary_50"):
        assert latency(measured, stage) == latency(plain, stage) != []
    answers = tables["responses"]
    everywhere = answers.append_column("beside_ms", pa.array([1.0] * answers.num_rows, pa.float32()))
    also = fold(POLICY, tables | {"responses": everywhere})
    assert latency(also, "canary_20") == latency(plain, "canary_20")


@pytest.mark.parametrize("late", ["champion", "challenger"])
def test_it_does_not_matter_which_arms_answer_is_logged_first(late: str) -> None:
    tables = in_a_process_of_their_own(simulate(POLICY, seed=5, traffic=Traffic(requests_per_s=0.02)), slower=1.4)
    answers = tables["responses"]
    behind = np.asarray(pc.equal(answers["arm"].cast(pa.string()), late))
    moved = stamps(answers) + np.where(behind, 5_000_000, 0)
    place = answers.column_names.index("ts")
    other = tables | {"responses": answers.set_column(place, "ts", pa.array(moved, pa.timestamp("us", "UTC")))}
    assert latency(fold(POLICY, other), "shadow") == latency(fold(POLICY, tables), "shadow") != []


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000), cuts=st.integers(1, 12), measured=st.floats(0.0, 1.0))
def test_neither_the_order_of_rows_nor_the_cuts_of_batches_matter(seed: int, cuts: int, measured: float) -> None:
    """Of some pairs it was measured, of some not; answers are lost, some come twice with other times, also at once."""
    chosen = policy(900, 300, warmup_requests=0)
    fault = Fault(error_rate=0.02, lost=0.01, doubled=0.05, latency_factor=1.2)
    tables = in_a_process_of_their_own(simulate(chosen, seed=seed, traffic=TRAFFIC, fault=fault), slower=1.4)
    rng = np.random.default_rng(seed)
    answers = tables["responses"]
    answers = pa.concat_tables([answers, answers.filter(pa.array(rng.random(answers.num_rows) < 0.05))])
    known = np.where(rng.random(answers.num_rows) < measured, answers["beside_ms"].to_numpy(), np.nan)
    known *= rng.choice([1.0, 1.5], answers.num_rows)
    place = answers.column_names.index("beside_ms")
    tables["responses"] = answers.set_column(place, "beside_ms", pa.array(known, pa.float32(), from_pandas=True))
    times = np.concatenate([stamps(table) for table in tables.values()])
    edges = [int(times.min()), *np.sort(rng.choice(times, cuts)).tolist(), int(times.max()) + 1]
    batches = [shuffled(between(tables, low, high), rng) for low, high in pairwise(edges)]
    assert fold(chosen, *batches).to_json() == fold(chosen, tables).to_json()


def test_a_log_without_the_column_folds_like_one_in_which_nothing_was_measured() -> None:
    tables = simulate(POLICY, seed=6, traffic=TRAFFIC, fault=Fault(error_rate=0.02, doubled=0.01))
    nothing = pa.nulls(tables["responses"].num_rows, pa.float32())
    null = tables | {"responses": tables["responses"].append_column("beside_ms", nothing)}
    assert fold(POLICY, null).to_json() == fold(POLICY, tables).to_json()


def test_live_evidence_and_the_replay_say_the_same_of_pairs_measured_beside_each_other() -> None:
    slow = simulate(POLICY, seed=7, traffic=TRAFFIC, fault=Fault(latency_factor=1.5))
    tables = in_a_process_of_their_own(slow, slower=0.5)
    paused = next(line for line in judge(BODY, tables) if line["metric"] == "latency_p50")
    end = int(np.datetime64(str(paused["ts"]).removesuffix("Z"), "us").astype(np.int64)) + 1
    edges = np.linspace(stamps(tables["assignments"])[0], end, 40).astype(np.int64).tolist()
    live = judge_evidence(
        POLICY, fold(POLICY, *(between(tables, *edge) for edge in pairwise(edges))), str(paused["stage"])
    )
    assert live.pause is not None
    assert (live.pause.metric, live.pause.e_value) == (paused["metric"], paused["e_value"])
