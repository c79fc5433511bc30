"""Evidence adds like numbers: in any order, to the same bytes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.contracts.canonical import canonical_json, digest
from pipelines.contracts.errors import ContractError
from pipelines.stats.evidence import WIDTH, Evidence
from pipelines.stats.nats import LIMIT

vectors = st.lists(st.integers(-(2**50), 2**50), min_size=WIDTH, max_size=WIDTH)
keys = st.tuples(st.sampled_from(["shadow", "canary"]), st.sampled_from(["errors", "loss"]), st.sampled_from(["", "a"]))
counters = st.tuples(st.sampled_from(["requests", "lost"]), st.sampled_from(["shadow", "canary"]))
times = st.one_of(st.none(), st.integers(0, 2**52))


@st.composite
def evidences(draw: st.DrawFn) -> Evidence:
    cells = draw(st.dictionaries(keys, vectors, max_size=3))
    return Evidence(
        {key: np.array(vector, dtype=np.int64) for key, vector in cells.items()},
        draw(st.dictionaries(counters, st.integers(-5, 1000), max_size=3)),
        draw(times),
        draw(times),
    )


@given(evidences(), evidences(), evidences())
def test_addition_is_commutative_and_associative_to_the_byte(a: Evidence, b: Evidence, c: Evidence) -> None:
    assert (a + b).to_json() == (b + a).to_json()
    assert ((a + b) + c).to_json() == (a + (b + c)).to_json()
    assert (a + Evidence()).to_json() == a.to_json()


@given(evidences())
def test_json_round_trips_to_the_byte_and_keeps_the_digest(a: Evidence) -> None:
    again = Evidence.from_json(a.to_json())
    assert again.to_json() == a.to_json()
    assert again.digest == a.digest == digest(json.loads(a.to_json()))
    assert a.to_json() == canonical_json(json.loads(a.to_json()))


def test_adding_leaves_both_terms_as_they_were() -> None:
    a = Evidence({("s", "m", ""): np.ones(WIDTH, dtype=np.int64)}, {("requests", "s"): 1})
    before = a.to_json()
    _ = a + a
    assert a.to_json() == before


def test_a_sum_near_the_end_of_64_bits_is_refused() -> None:
    huge = Evidence({("s", "m", ""): np.full(WIDTH, LIMIT - 1, dtype=np.int64)})
    with pytest.raises(ContractError, match=r"2\*\*62"):
        _ = huge + huge


def test_evidence_of_another_layout_is_refused() -> None:
    with pytest.raises(ContractError, match="slipway-evidence/1"):
        Evidence.from_json('{"schema":"slipway-evidence/0"}')
