"""The Feast vectors, held against the Feast that is installed: an upgrade that changes its layout fails here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.contract import make_vectors

pytest.importorskip("feast", reason="the serving environment has no Feast; the vectors stand for it there")


@pytest.mark.parametrize("name", ["feast", "feast_redis"])
def test_the_installed_feast_still_writes_the_published_bytes(name: str) -> None:
    published = json.loads((Path(make_vectors.VECTORS) / f"{name}.json").read_text())
    assert getattr(make_vectors, name)() == published
