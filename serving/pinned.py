"""Releases addressed by digest or semantic version, outside any route: loaded on demand, a few kept."""

from __future__ import annotations

import asyncio
import difflib
import re
from collections import OrderedDict
from pathlib import Path

import msgspec

from pipelines.contracts.errors import SlipwayError
from pipelines.contracts.pii import KeyedHash
from serving.models import LoadedModel
from serving.oip.errors import Unavailable, Unknown

_DIGEST = re.compile(r"[0-9a-f]{64}")


class _Name(msgspec.Struct):
    model: str
    semver: str
    created_us: int = 0


_decoder = msgspec.json.Decoder(_Name)


class PinnedModels:
    """At most `capacity` releases beyond those that routes hold."""

    def __init__(self, releases: Path, capacity: int, keyed: KeyedHash | None = None) -> None:
        self._releases = releases
        self._keyed = keyed
        self._capacity = capacity
        self._models: OrderedDict[str, LoadedModel] = OrderedDict()
        self._lock = asyncio.Lock()

    def versions(self, model: str) -> dict[str, str]:
        """Semantic version to digest of every release of the model on disk; the newest of equal versions."""
        found: dict[str, tuple[int, str]] = {}
        for path in self._releases.glob("*/release.json"):
            if not _DIGEST.fullmatch(path.parent.name):
                continue
            try:
                name = _decoder.decode(path.read_bytes())
            except (msgspec.MsgspecError, OSError):
                continue
            if name.model == model and name.created_us >= found.get(name.semver, (-1, ""))[0]:
                found[name.semver] = (name.created_us, path.parent.name)
        return {semver: digest for semver, (_, digest) in sorted(found.items())}

    async def get(self, model: str, version: str) -> LoadedModel:
        """The release of `model` with that digest or semantic version. Raises Unknown with near names, Unavailable."""
        loaded = self._models.get(version)
        if loaded is None or loaded.manifest.model != model:
            async with self._lock:
                loaded = await asyncio.to_thread(self._load, model, version)
        self._models[loaded.digest] = loaded
        self._models.move_to_end(loaded.digest)
        while len(self._models) > self._capacity:
            self._models.popitem(last=False)
        return loaded

    def _load(self, model: str, version: str) -> LoadedModel:
        versions = self.versions(model)
        digest = version if _DIGEST.fullmatch(version) else versions.get(version, "")
        if not digest or digest not in self._digests(model):
            near = difflib.get_close_matches(version, versions, n=3, cutoff=0.3)
            raise Unknown(
                f"version of {model}", got=version[:80], expected=f"a digest or one of {near or list(versions)}"
            )
        known = self._models.get(digest)
        if known is not None:
            return known
        try:
            return LoadedModel(self._releases / digest, digest, self._keyed)
        except SlipwayError as error:
            raise Unavailable(
                f"release {digest[:12]}", got=str(error), expected="a bundle that can be loaded"
            ) from None

    def _digests(self, model: str) -> set[str]:
        found = set()
        for path in self._releases.glob("*/release.json"):
            try:
                if _decoder.decode(path.read_bytes()).model == model:
                    found.add(path.parent.name)
            except (msgspec.MsgspecError, OSError):
                continue
        return found
