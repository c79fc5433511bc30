"""A release that is not on disk yet: the same chain (matrix, post-processing) from the sources themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipelines.contracts.canonical import file_digest
from pipelines.contracts.errors import SpecError
from pipelines.contracts.release import Columns, Manifest, Release


class Draft(Release):
    """`matrix`, `outputs` and `valid` of `contracts.release.Release`, run on source files that are not bundled yet."""

    def __init__(self, manifest: Manifest, request_features: Path | None, postprocess: Path | None) -> None:
        # Release.__init__ verifies a bundle on disk; a draft has none.
        self.folder = Path()
        self.digest = ""
        sources = ((path, file_digest(path)) if path is not None else None for path in (request_features, postprocess))
        self._take(manifest, *sources)

    def check_request_features(self, inputs: Columns, features: dict[tuple[str, str], np.ndarray]) -> None:
        """Raises SpecError when the request features' source does not make a column that the spec names.

        Online such a column would be missing in every row, without a word.
        """
        named = [feature.name for feature in self.manifest.features if feature.source == "request"]
        if not named or self._build is None:
            return
        made = self._build(inputs, {name: values for (_, name), values in features.items()})
        if missing := [name for name in named if name not in made]:
            raise SpecError(
                f"model {self.manifest.model}: request_features.names", got=missing, expected=f"some of {sorted(made)}"
            )
