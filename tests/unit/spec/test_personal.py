"""PII in specs: an entity key by its hash is fine, anything else is told."""

from __future__ import annotations

import pytest

from pipelines.settings import PROJECT
from pipelines.spec import personal
from pipelines.spec.dataset import DatasetSpec
from pipelines.spec.loading import load_all
from pipelines.spec.model import ModelSpec
from pipelines.spec.view import ViewSpec

SPECS = load_all(PROJECT / "include")
MODEL = SPECS.models["air_time"]
VIEW = SPECS.views["route_punctuality"]


def with_pii(*columns: str) -> dict[str, DatasetSpec]:
    """All datasets, with these columns marked wherever they are."""
    marked = {}
    for name, spec in SPECS.datasets.items():
        changed = {c: v.model_copy(update={"pii": True}) if c in columns else v for c, v in spec.columns.items()}
        marked[name] = spec.model_copy(update={"columns": changed})
    return marked


def told(spec: ModelSpec, datasets: dict[str, DatasetSpec]) -> list[str]:
    return [problem.message for problem in personal.model_problems(spec, SPECS.views, datasets)]


def test_a_project_without_pii_has_no_personal_inputs() -> None:
    for spec in SPECS.models.values():
        assert personal.personal_inputs(spec, SPECS.views, SPECS.datasets) == frozenset()


def test_an_entity_key_may_be_personal() -> None:
    assert personal.personal_inputs(MODEL, SPECS.views, with_pii("origin")) == {"origin"}
    assert told(MODEL.model_copy(update={"slices": []}), with_pii("origin")) == []


def test_an_input_under_another_name_is_personal_by_its_join_key() -> None:
    use = MODEL.views[0].model_copy(update={"entity": {"origin": "from_airport", "dest": "dest"}})
    inputs = {"from_airport": MODEL.inputs["origin"], "dest": MODEL.inputs["dest"]}
    renamed = MODEL.model_copy(update={"views": [use], "inputs": inputs, "slices": []})
    assert personal.personal_inputs(renamed, SPECS.views, with_pii("origin")) == {"from_airport"}


@pytest.mark.parametrize(
    ("changes", "column", "said"),
    [
        ({}, "carrier", "input 'carrier' is PII; only an entity key may be"),
        ({"slices": ["origin"]}, "origin", "input 'origin' is PII; it cannot slice metrics"),
        (
            {"inputs": {**MODEL.inputs, "origin": MODEL.inputs["origin"].model_copy(update={"datatype": "INT64"})}},
            "origin",
            "its datatype is BYTES",
        ),
    ],
)
def test_other_uses_of_a_personal_input_are_told(changes: dict[str, object], column: str, said: str) -> None:
    spec = MODEL.model_copy(update={"slices": [], **changes})
    (message,) = told(spec, with_pii(column))
    assert said in message


def test_a_view_makes_no_feature_of_a_personal_column_and_keys_it_by_text() -> None:
    def problems_of(spec: ViewSpec) -> list[str]:
        return [problem.message for problem in personal.view_problems(spec, with_pii("origin"))]

    assert problems_of(VIEW) == []
    feature = next(iter(VIEW.features.values()))
    (message,) = problems_of(VIEW.model_copy(update={"features": {"origin": feature}}))
    assert "feature 'origin' is PII" in message
    keys = VIEW.entity.model_copy(update={"keys": {"origin": "int64", "dest": "string"}})
    (message,) = problems_of(VIEW.model_copy(update={"entity": keys}))
    assert "its type is string" in message
