"""A release that is not on disk yet: the same chain (matrix, post-processing) from the sources themselves."""

from __future__ import annotations

from pathlib import Path

from pipelines.contracts.canonical import file_digest
from pipelines.contracts.release import Manifest, Release, load_function


class Draft(Release):
    """`matrix`, `outputs` and `valid` of `contracts.release.Release`, run on source files that are not bundled yet."""

    def __init__(self, manifest: Manifest, request_features: Path | None, postprocess: Path | None) -> None:
        # Release.__init__ verifies a bundle on disk; a draft has none.
        self.folder = Path()
        self.digest = ""
        self.manifest = manifest
        self._build = self._apply = None
        if request_features is not None:
            self._build = load_function(request_features, file_digest(request_features), "build")
        if postprocess is not None:
            self._apply = load_function(postprocess, file_digest(postprocess), "apply")
