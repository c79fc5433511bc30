"""The fold: the rows decide, not how they were cut; late, lost, doubled, repeated and fallback answers count as they
should.
"""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.collect.fold import Fold
from pipelines.contracts.errors import ContractError
from pipelines.rollout.policy import Policy
from pipelines.rollout.simulator import Fault, simulate
from pipelines.rollout.traffic import Traffic
from pipelines.stats.evidence import HARM, Evidence
from pipelines.stats.mixture import AGAIN, ONCE
from pipelines.stats.nats import MOMENT
from tests.unit.stats.cases import between, mapping, policy, shuffled, stamps

FAULT = Fault(error_rate=0.02, invalid_rate=0.01, lost=0.01, doubled=0.01, kpi_factor=0.9, latency_factor=1.2)


def fold(policy: Policy, *batches: dict[str, pa.Table]) -> Evidence:
    state = Fold(policy)
    for batch in batches:
        state.add(**batch)
    return state.evidence()


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000), cuts=st.integers(1, 12), unit=st.sampled_from(["request", "unit"]))
def test_evidence_does_not_depend_on_how_rows_were_cut_or_shuffled(seed: int, cuts: int, unit: str) -> None:
    chosen = policy(600, 600, unit=unit, **({"kpi_maturity_s": 90} if cuts % 2 else {}))
    traffic = Traffic(requests_per_s=0.5, units=150 if unit == "unit" else 0)
    tables = simulate(chosen, seed=seed, traffic=traffic, fault=FAULT)
    rng = np.random.default_rng(seed)
    times = np.concatenate([stamps(table) for table in tables.values()])
    edges = [int(times.min()), *np.sort(rng.choice(times, cuts)).tolist(), int(times.max()) + 1]
    batches = [shuffled(between(tables, low, high), rng) for low, high in pairwise(edges)]
    assert fold(chosen, *batches).to_json() == fold(chosen, tables).to_json()


def test_each_kpi_is_folded_by_itself() -> None:
    one = policy(200, 400)
    *others, spec = mapping()["metrics"]
    half = spec["weight"] / 2
    pair = [spec | {"weight": half}, spec | {"name": "basket", "range": [0, 40], "weight": half}]
    two = policy(200, 400, metrics=[*others, *pair])
    tables = simulate(one, seed=5, fault=FAULT)
    own = tables["kpi"]
    basket = own.set_column(own.column_names.index("value"), "value", pc.multiply(own["value"], 3.0))
    named = [
        table.append_column("metric", pa.array([name] * table.num_rows))
        for name, table in (("kpi", own), ("basket", basket))
    ]
    both = tables | {"kpi": pa.concat_tables(named)}
    found = fold(two, shuffled(both, np.random.default_rng(1)))
    assert cells(found, "kpi") == cells(fold(one, tables), "kpi")
    assert cells(found, "basket") == cells(fold(two, tables | {"kpi": basket}), "basket")
    assert cells(found, "basket") != cells(fold(two, tables), "basket")
    with pytest.raises(ContractError, match="one of"):
        fold(one, both)


def cells(evidence: Evidence, metric: str) -> list[object]:
    """What the evidence holds of a metric."""
    return [cell for cell in json.loads(evidence.to_json())["cells"] if cell[1].partition("/")[0] == metric]


def test_evidence_does_not_depend_on_cuts_when_the_collector_gives_the_order_and_two_clocks() -> None:
    """Event time runs 10,000 times faster than the wall; rows of all tables carry the collector's order."""
    chosen = policy(400, 400)
    tables = simulate(chosen, seed=4, fault=FAULT)
    keyed = {kind: table.append_column("wall_ts", _wall(table)) for kind, table in tables.items()}
    for kind in ("labels", "kpi"):
        keyed[kind] = tables[kind]
    times = np.concatenate([stamps(table) for table in keyed.values()])
    order = np.empty(len(times), dtype=np.int64)
    order[np.argsort(times, kind="stable")] = np.arange(len(times))
    start = 0
    for kind, table in keyed.items():
        keyed[kind] = table.append_column("order", pa.array(order[start : start + table.num_rows]))
        start += table.num_rows
    whole = fold(chosen, keyed)
    edges = [0, 700, 1900, 1901, 4000, len(order)]
    parts = []
    for low, high in pairwise(edges):
        parts.append(
            {
                kind: table.filter(pa.array((table["order"].to_numpy() >= low) & (table["order"].to_numpy() < high)))
                for kind, table in keyed.items()
            }
        )
    assert fold(chosen, *parts).to_json() == whole.to_json()
    assert whole.counted("lost_responses") == 0, "30 seconds of wall time never pass in so fast a rehearsal"
    assert whole.counted("labelled") > 0, "labels mature in event time"


def test_evidence_does_not_depend_on_cuts_when_workers_lag_and_ids_are_texts() -> None:
    """The collector's order is not that of time: some rows come up to a minute late. Request ids are texts."""
    chosen = policy(400, 400, warmup_requests=0)
    tables = simulate(chosen, seed=8, traffic=Traffic(requests_per_s=1.0), fault=FAULT)
    rng = np.random.default_rng(8)
    late = np.where(rng.random(1200) < 0.2, rng.integers(0, 60_000_000, 1200), 0)
    keyed = {}
    for kind, table in tables.items():
        request = table["request_id"].to_numpy()
        names = pa.array([f"r{n}" for n in request.tolist()])
        # A worker that lags brings all rows of its requests late.
        order = (stamps(table) + late[request]) * 8 + list(tables).index(kind)
        keyed[kind] = table.set_column(table.column_names.index("request_id"), "request_id", names).append_column(
            "order", pa.array(order)
        )
    whole = fold(chosen, keyed)
    orders = {kind: table["order"].to_numpy() for kind, table in keyed.items()}
    edges = np.quantile(np.concatenate(list(orders.values())), np.linspace(0, 1, 30)).astype(np.int64)
    edges[0], edges[-1] = 0, np.iinfo(np.int64).max
    parts = [
        {kind: table.filter(pa.array((orders[kind] >= low) & (orders[kind] < high))) for kind, table in keyed.items()}
        for low, high in pairwise(edges.tolist())
    ]
    assert fold(chosen, *parts).to_json() == whole.to_json()


def _wall(table: pa.Table) -> pa.Array:
    micros = stamps(table)
    return pa.array(1_700_000_000_000_000 + (micros - 1_767_225_600_000_000) // 10_000, pa.timestamp("us", "UTC"))


def _tables(
    requests: list[dict[str, Any]], responses: list[dict[str, Any]], labels: list[dict[str, Any]] | None = None
) -> dict[str, pa.Table]:
    common = {"stage": "canary_50", "share": 0.5, "slice": "a"}
    answer = {"latency_ms": 10.0, "status": "ok", "score": 0.5}
    made = {
        "assignments": pa.Table.from_pylist(
            [common | {"seq": n, "request_id": n} | row for n, row in enumerate(requests)]
        ),
        "responses": pa.Table.from_pylist([answer | row for row in responses]),
    }
    if labels:
        made["labels"] = pa.Table.from_pylist(labels)
    return made


PLAIN = policy(warmup_requests=0)
SECOND = 1_000_000


def test_a_request_without_an_answer_is_lost_after_its_deadline_and_not_before() -> None:
    requests = [{"ts": 0, "arm": "challenger"}, {"ts": 29 * SECOND, "arm": "champion"}]
    answers = [{"request_id": 1, "arm": "champion", "ts": 29 * SECOND + 10}]
    assert fold(PLAIN, _tables(requests, answers)).counted("lost_responses") == 0
    requests.append({"ts": 31 * SECOND, "arm": "champion"})
    assert fold(PLAIN, _tables(requests, answers)).counted("lost_responses") == 1


def test_an_answer_after_the_deadline_stays_lost_and_counts_as_stray() -> None:
    requests = [{"ts": 0, "arm": "challenger"}, {"ts": 31 * SECOND, "arm": "champion"}]
    answers = [{"request_id": 0, "arm": "challenger", "ts": 32 * SECOND}]
    found = fold(PLAIN, _tables(requests, answers))
    assert (found.counted("lost_responses"), found.counted("stray")) == (1, 1)


def test_a_missing_label_is_never_a_lost_response() -> None:
    requests = [{"ts": 0, "arm": "both", "share": None, "stage": "shadow"}, {"ts": 700 * SECOND, "arm": "champion"}]
    answers = [{"request_id": 0, "arm": arm, "ts": 10} for arm in ("champion", "challenger")]
    answers.append({"request_id": 1, "arm": "champion", "ts": 700 * SECOND + 10})
    found = fold(PLAIN, _tables(requests, answers))
    assert (found.counted("lost_responses"), found.counted("unlabelled")) == (0, 1)


def test_labels_count_only_once_their_request_is_mature() -> None:
    requests = [{"ts": 0, "arm": "both", "share": None, "stage": "shadow"}, {"ts": 500 * SECOND, "arm": "champion"}]
    answers = [{"request_id": 0, "arm": arm, "ts": 10} for arm in ("champion", "challenger")]
    labels = [{"request_id": 0, "ts": 20, "label": 1.0}]
    assert fold(PLAIN, _tables(requests, answers, labels)).counted("pairs") == 0
    requests.append({"ts": 601 * SECOND, "arm": "champion"})
    assert fold(PLAIN, _tables(requests, answers, labels)).counted("pairs") == 1


def test_a_label_after_maturity_comes_too_late_and_a_second_one_is_counted() -> None:
    requests = [{"ts": 0, "arm": "both", "share": None, "stage": "shadow"}, {"ts": 601 * SECOND, "arm": "champion"}]
    answers = [{"request_id": 0, "arm": arm, "ts": 10} for arm in ("champion", "challenger")]
    late = fold(PLAIN, _tables(requests, answers, [{"request_id": 0, "ts": 602 * SECOND, "label": 1.0}]))
    assert (late.counted("unlabelled"), late.counted("stray")) == (1, 1)
    twice = [{"request_id": 0, "ts": 20, "label": 1.0}, {"request_id": 0, "ts": 30, "label": 0.0}]
    found = fold(PLAIN, _tables(requests, answers, twice))
    assert (found.counted("labelled"), found.counted("label_contradicted")) == (1, 1)


def test_a_label_that_is_not_a_number_is_counted_and_left_out() -> None:
    requests = [{"ts": 0, "arm": "both", "share": None, "stage": "shadow"}, {"ts": 601 * SECOND, "arm": "champion"}]
    answers = [{"request_id": 0, "arm": arm, "ts": 10} for arm in ("champion", "challenger")]
    found = fold(PLAIN, _tables(requests, answers, [{"request_id": 0, "ts": 20, "label": float("nan")}]))
    assert (found.counted("label_not_finite"), found.counted("unlabelled")) == (1, 1)


def test_a_challenger_that_the_champion_stood_in_for_has_failed() -> None:
    requests = [{"ts": 0, "arm": "challenger"}]
    answers = [{"request_id": 0, "arm": "champion", "ts": 10, "served": True}]
    cell = fold(PLAIN, _tables(requests, answers)).cells["canary_50", "error_rate", ""]
    assert cell[1] == 1
    assert cell[3] == MOMENT
    own = [
        *answers,
        {"request_id": 0, "arm": "challenger", "ts": 20, "status": "error", "score": None, "served": False},
    ]
    again = fold(PLAIN, _tables(requests, own))
    assert (again.cells["canary_50", "error_rate", ""] == cell).all(), "told twice, it is one failure"
    assert again.counted("duplicates") == 0


def test_a_shadow_answer_of_the_other_arm_is_no_bet_on_the_assignment() -> None:
    requests = [{"ts": 0, "arm": "champion"}]
    answers = [
        {"request_id": 0, "arm": "champion", "ts": 10, "served": True},
        {"request_id": 0, "arm": "challenger", "ts": 20, "status": "error", "score": None, "served": False},
    ]
    cell = fold(PLAIN, _tables(requests, answers)).cells["canary_50", "error_rate", ""]
    assert (cell[1], cell[3]) == (0, 0)


def test_a_second_answer_of_one_arm_is_a_duplicate() -> None:
    requests = [{"ts": 0, "arm": "challenger"}, {"ts": 31 * SECOND, "arm": "champion"}]
    answers = [{"request_id": 0, "arm": "challenger", "ts": at} for at in (10, 20)]
    assert fold(PLAIN, _tables(requests, answers)).counted("duplicates") == 1


@pytest.mark.parametrize("score", [None, float("nan"), float("inf"), -0.1, 1.1])
def test_a_score_that_is_missing_or_out_of_range_is_invalid(score: float | None) -> None:
    requests = [{"ts": 0, "arm": "challenger"}]
    answers = [{"request_id": 0, "arm": "challenger", "ts": 10, "score": score}]
    found = fold(PLAIN, _tables(requests, answers))
    assert found.cells["canary_50", "invalid_score", ""][3] == MOMENT
    assert found.cells["canary_50", "error_rate", ""][3] == 0


def test_a_repeated_assignment_is_a_retry_and_a_jump_in_seq_a_gap_when_the_deadline_is_over() -> None:
    requests = [
        {"ts": 0, "arm": "champion"},
        {"ts": 1, "arm": "champion", "request_id": 0},
        {"ts": 2, "arm": "champion", "seq": 5},
    ]
    answers = [{"request_id": 0, "arm": "champion", "ts": 5}]
    assert fold(PLAIN, _tables(requests, answers)).counted("gaps") == 0
    answers.append({"request_id": 5, "arm": "champion", "ts": 2 + 30 * SECOND + 1})
    found = fold(PLAIN, _tables(requests, answers))
    assert (found.counted("requests"), found.counted("retries"), found.counted("gaps")) == (2, 1, 3)


def test_warm_up_leaves_out_both_arms_and_is_counted_per_process_start() -> None:
    warm = policy(warmup_requests=1)
    requests = [{"ts": n, "arm": "champion", "process": p} for n, p in enumerate(["a", "a", "b", "a", "b"])]
    answers = [{"request_id": n, "arm": "champion", "ts": 10 + n} for n in range(5)]
    found = fold(warm, _tables(requests, answers))
    assert found.counted("warmup") == 2
    assert found.cells["canary_50", "error_rate", ""][0] == 3
    assert found.cells["canary_50", "sample_ratio", ""][0] == 5, "integrity is judged from the first request on"


def test_a_sticky_unit_is_bet_on_once_a_stage() -> None:
    sticky = policy(warmup_requests=0, unit="unit")
    requests = [{"ts": n, "arm": "challenger", "unit_id": 7} for n in range(5)]
    answers = [{"request_id": n, "arm": "challenger", "ts": 10 + n, "status": "error", "score": None} for n in range(5)]
    once = fold(sticky, _tables(requests[:1], answers[:1]))
    many = fold(sticky, _tables(requests, answers))
    for metric in ("error_rate", "sample_ratio"):
        assert (many.cells["canary_50", metric, ""][7:] == once.cells["canary_50", metric, ""][7:]).all()
        assert many.cells["canary_50", metric, ""][0] == 5


def test_a_kpi_is_judged_at_its_own_maturity_where_it_has_one() -> None:
    requests = [{"ts": 0, "arm": "challenger"}, {"ts": 90 * SECOND, "arm": "champion"}]
    tables = _tables(requests, [{"request_id": 0, "arm": "challenger", "ts": 5}])
    tables |= {"kpi": pa.Table.from_pylist([{"request_id": 0, "ts": 5, "value": 4.0}])}
    sooner = policy(warmup_requests=0, kpi_maturity_s=60)
    assert fold(sooner, tables).counted("kpis") == 1
    assert fold(PLAIN, tables).counted("kpis") == 0
    assert sooner.to_mapping()["kpi_maturity_s"] == 60
    assert "kpi_maturity_s" not in PLAIN.to_mapping()


def test_half_of_the_bets_on_a_sticky_unit_are_not_made_again_in_a_later_stage() -> None:
    sticky = policy(warmup_requests=0, unit="unit")
    requests = [
        {"ts": n, "arm": "challenger", "unit_id": 7, "stage": stage, "share": share}
        for n, (stage, share) in enumerate([("canary_20", 0.2), ("canary_50", 0.5), ("canary_50", 0.5)])
    ]
    answers = [{"request_id": n, "arm": "challenger", "ts": 10 + n, "status": "error", "score": None} for n in range(3)]
    found = fold(sticky, _tables(requests, answers))
    alone = fold(sticky, _tables(requests[1:2], [answers[1] | {"request_id": 0}]))
    first, again = (found.cells[stage, "error_rate", ""] for stage in ("canary_20", "canary_50"))
    bets = alone.cells["canary_50", "error_rate", ""][HARM]
    assert first[HARM].all()
    assert (again[HARM][AGAIN] == bets[AGAIN]).all()
    assert not again[HARM][ONCE].any()


def test_pairs_whose_labels_mature_while_it_bakes_are_the_bakes_where_it_has_a_weight() -> None:
    stages = [
        {"name": "canary_50", "share": 0.5, "requests": 2},
        {"name": "bake", "share": None, "requests": 1, "weight": 0.1},
    ]
    requests = [{"ts": 0, "arm": "both", "share": None}, {"ts": 500 * SECOND, "arm": "both", "share": None}]
    requests.append({"ts": 700 * SECOND, "arm": "challenger", "share": None, "stage": "bake"})
    requests.append({"ts": 2000 * SECOND, "arm": "challenger", "share": None, "stage": "bake"})
    answers = [
        {"request_id": n, "arm": arm, "ts": 500 * n * SECOND + 5, "score": 0.4}
        for n in (0, 1)
        for arm in ("champion", "challenger")
    ]
    labels = [{"request_id": n, "ts": 500 * n * SECOND + 9, "label": 1.0} for n in (0, 1)]
    tables = _tables(requests, answers, labels)
    weighed, plain = (
        fold(policy(warmup_requests=0, stages=stages if weight else [stages[0], stages[1] | {"weight": None}]), tables)
        for weight in (True, False)
    )
    assert weighed.cells["canary_50", "logloss", ""][0] == 1
    assert weighed.cells["bake", "logloss", ""][0] == 1
    assert plain.cells["canary_50", "logloss", ""][0] == 2
    assert ("bake", "logloss", "") not in plain.cells


def test_a_missing_column_and_an_unknown_stage_are_named() -> None:
    tables = _tables([{"ts": 0, "arm": "champion"}], [])
    with pytest.raises(ContractError, match="a column share"):
        Fold(PLAIN).add(tables["assignments"].drop_columns("share"))
    with pytest.raises(ContractError, match="Did you mean 'canary_50'"):
        Fold(PLAIN).add(_tables([{"ts": 0, "arm": "champion", "stage": "canary_5"}], [])["assignments"])


def test_a_request_to_one_arm_alone_compares_nothing() -> None:
    """After promotion the champion answers by itself: its silence is counted, and no bet is made on it."""
    requests = [
        {"ts": 0, "arm": "challenger", "share": None, "stage": "shadow"},
        {"ts": 31 * SECOND, "arm": "challenger", "share": None, "stage": "shadow"},
    ]
    answers = [{"request_id": 1, "arm": "challenger", "ts": 31 * SECOND + 5}]
    found = fold(PLAIN, _tables(requests, answers))
    assert found.counted("lost_responses") == 1
    assert ("shadow", "lost_responses", "") not in found.cells


def test_an_unknown_arm_is_named() -> None:
    with pytest.raises(ContractError, match="'chalenger'"):
        fold(PLAIN, _tables([{"ts": 0, "arm": "champion"}], [{"request_id": 0, "arm": "chalenger", "ts": 1}]))
