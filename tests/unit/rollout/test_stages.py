from __future__ import annotations

from typing import Any

import pytest

from pipelines.contracts.errors import SpecError
from pipelines.rollout.stages import from_spec
from pipelines.spec.durations import parse


def test_stages_are_read_with_their_kind_share_and_limits() -> None:
    listed = [
        {"name": "backtest"},
        {"name": "shadow", "requests": 10, "max_wait": "2h wall"},
        {"name": "canary_05", "share": 0.05, "requests": 20},
        {"name": "bake", "requests": 5},
    ]
    stages = from_spec(listed, parse("3d event_time"))
    assert [stage.kind for stage in stages] == ["backtest", "shadow", "canary", "bake"]
    assert stages[2].share_ppm == 50_000
    assert [str(stage.max_wait) for stage in stages] == ["3d event_time", "2h wall", "3d event_time", "3d event_time"]
    assert [stage.exposes for stage in stages] == [False, False, True, True]


@pytest.mark.parametrize(
    ("listed", "words"),
    [
        ([{"name": "canary_05"}], "share"),
        ([{"name": "shadow", "share": 0.5}], "share"),
        ([{"name": "canary_05", "share": 1.5}], "share"),
        ([{"name": "bake"}, {"name": "shadow"}], "order"),
        ([{"name": "shadow"}, {"name": "shadow"}], "distinct"),
        ([{"name": "preview"}], "preview"),
        ([], "stages"),
    ],
)
def test_a_list_that_cannot_be_is_refused_with_its_reason(listed: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        from_spec(listed)
