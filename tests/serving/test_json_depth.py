"""The depth that is found before parsing is the depth of the parsed value."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from serving.json_depth import deeper_than

values = st.recursive(
    st.none() | st.integers() | st.text(alphabet='[]{}"\\a'),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(alphabet='[{"\\', max_size=3), inner),
    max_leaves=30,
)


def depth(value: Any) -> int:
    if isinstance(value, dict):
        value = list(value.values())
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


@given(values, st.integers(0, 8))
@example('\\"[[[', 0)
@example(["]]]]", [[[]]]], 3)
def test_a_json_text_is_deeper_than_what_its_value_nests_less_than(value: Any, limit: int) -> None:
    assert deeper_than(json.dumps(value).encode(), limit) == (depth(value) > limit)


@given(st.binary(max_size=200) | st.text(alphabet='[]{}"\\').map(str.encode))
def test_no_bytes_whatever_trouble_it(data: bytes) -> None:
    assert deeper_than(data, 3) in (True, False)
