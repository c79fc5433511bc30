"""JSON Schemas of the three kinds of spec, for editors: written to `docs/schema`."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel

from pipelines.spec.dataset import DatasetSpec
from pipelines.spec.model import ModelSpec
from pipelines.spec.view import ViewSpec

SCHEMAS: dict[str, type[BaseModel]] = {"dataset": DatasetSpec, "feature": ViewSpec, "model": ModelSpec}


def schema_texts() -> dict[str, str]:
    """File name to content, the same bytes for the same specs."""
    made = {}
    for name, spec_type in SCHEMAS.items():
        schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **spec_type.model_json_schema()}
        made[f"{name}.schema.json"] = json.dumps(schema, indent=2, sort_keys=True) + "\n"
    return made


def write_schemas(folder: Path) -> list[Path]:
    """Write the schemas; returns the files that changed."""
    folder.mkdir(parents=True, exist_ok=True)
    changed = []
    for name, text in schema_texts().items():
        path = folder / name
        if not path.is_file() or path.read_text() != text:
            path.write_text(text)
            changed.append(path)
    return changed
