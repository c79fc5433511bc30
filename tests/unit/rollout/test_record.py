"""The hash chain."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.rollout.record import GENESIS, Entry, entry, verify


def chain(bodies: list[dict[str, Any]]) -> list[Entry]:
    lines: list[Entry] = []
    for body in bodies:
        lines.append(entry("m", lines[-1] if lines else None, body))
    return lines


BODIES = st.lists(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=3), max_size=6)


@given(BODIES)
def test_an_untouched_chain_holds(bodies: list[dict[str, Any]]) -> None:
    lines = chain(bodies)
    assert verify(lines, {line.n: line.hash for line in lines}) == []
    assert [line.prev_hash for line in lines] == [GENESIS, *(line.hash for line in lines)][: len(lines)]


@given(BODIES.filter(bool), st.data())
def test_any_changed_field_of_any_entry_is_found(bodies: list[dict[str, Any]], data: st.DataObject) -> None:
    lines = chain(bodies)
    at = data.draw(st.integers(0, len(lines) - 1))
    field = data.draw(st.sampled_from(["body", "hash", "prev_hash", "n"]))
    value: Any = lines[at].n + 1 if field == "n" else getattr(lines[at], field) + " "
    lines[at] = msgspec.structs.replace(lines[at], **{field: value})
    assert verify(lines)


@given(BODIES.filter(lambda bodies: len(bodies) > 1), st.data())
def test_a_removed_entry_is_found_unless_it_is_the_last(bodies: list[dict[str, Any]], data: st.DataObject) -> None:
    lines = chain(bodies)
    del lines[data.draw(st.integers(0, len(lines) - 2))]
    assert verify(lines)


def test_a_chain_cut_at_its_end_or_rewritten_whole_is_found_by_its_anchors() -> None:
    lines = chain([{"a": 1}, {"a": 2}])
    anchors = {line.n: line.hash for line in lines}
    assert verify(lines[:1]) == []
    assert verify(lines[:1], anchors) == [f"entry 2: anchored hash {lines[1].hash[:12]} is not in the chain"]
    assert verify(chain([{"a": 1}, {"a": 3}]), anchors)


def test_a_body_with_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        entry("m", None, {"e": float("nan")})
