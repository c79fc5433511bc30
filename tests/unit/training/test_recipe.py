"""What of a spec a release's manifest says."""

from __future__ import annotations

import msgspec

from pipelines.contracts import release
from pipelines.settings import PROJECT
from pipelines.spec.loading import load_model
from pipelines.spec.model import Batching, Serving
from pipelines.training.recipe import draft_manifest


def test_batching_is_part_of_a_release_and_one_without_it_is_the_same_bytes_as_before() -> None:
    include = PROJECT / "include"
    spec = load_model(include, "late_arrival")
    plain = draft_manifest(spec, include, {})
    assert b"batching" not in release.manifest_bytes(plain)
    serving = Serving(batching=Batching(max_size=32, max_wait_ms=5))
    gathered = draft_manifest(spec.model_copy(update={"serving": serving}), include, {})
    assert gathered.batching == release.Batching(max_size=32, max_wait_ms=5)
    read_again = msgspec.json.decode(release.manifest_bytes(gathered), type=release.Manifest)
    assert read_again == gathered
