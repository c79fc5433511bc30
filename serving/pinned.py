"""Releases addressed by digest or semantic version, outside any route: loaded on demand, a few kept."""

from __future__ import annotations

import asyncio
import difflib
import logging
import re
import time
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

import msgspec

from pipelines.contracts.pii import KeyedHash
from serving.models import LoadedModel, why_not_loaded
from serving.oip.errors import Unavailable, Unknown

_log = logging.getLogger("slipway.models")

_DIGEST = re.compile(r"[0-9a-f]{64}")


class _Name(msgspec.Struct):
    model: str
    semver: str
    created_us: int = 0


_decoder = msgspec.json.Decoder(_Name)

_SETTLED_NS = 1_000_000_000
"""A folder changed less than this ago may change again within the same tick of the file system's clock."""


class _Listing(NamedTuple):
    """The releases on disk when their folder had been changed at `changed_ns`."""

    changed_ns: int
    models: dict[str, str]
    """Digest to model."""
    versions: dict[str, dict[str, str]]
    """Model to semantic versions, sorted, and the digest of each: the newest of equal versions."""

    def digest(self, model: str, version: str) -> str | None:
        """The digest that a version (semantic, or a digest) of the model names."""
        digest = self.versions.get(model, {}).get(version, version)
        return digest if self.models.get(digest) == model else None


class PinnedModels:
    """At most `capacity` releases beyond those that routes hold."""

    def __init__(self, releases: Path, capacity: int, keyed: KeyedHash | None = None) -> None:
        self._releases = releases
        self._keyed = keyed
        self._capacity = capacity
        self._models: OrderedDict[str, LoadedModel] = OrderedDict()
        self._lock = asyncio.Lock()
        self._listing = _Listing(-1, {}, {})

    def versions(self, model: str) -> dict[str, str]:
        """Semantic version to digest of every release of the model on disk; the newest of equal versions."""
        return dict(self._listed().versions.get(model, {}))

    async def get(self, model: str, version: str) -> LoadedModel:
        """The release of `model` with that digest or semantic version. Raises Unknown with near names, Unavailable."""
        loaded = None
        if self._listing.changed_ns == self._changed_ns():
            loaded = self._models.get(self._listing.digest(model, version) or "")
        if loaded is None:
            async with self._lock:
                loaded = await asyncio.to_thread(self._load, model, version)
        self._models[loaded.digest] = loaded
        self._models.move_to_end(loaded.digest)
        while len(self._models) > self._capacity:
            self._models.popitem(last=False)
        return loaded

    def _load(self, model: str, version: str) -> LoadedModel:
        listing = self._listed()
        digest = listing.digest(model, version)
        if digest is None:
            versions = list(listing.versions.get(model, {}))
            near = difflib.get_close_matches(version, versions, n=3, cutoff=0.3)
            raise Unknown(f"version of {model}", got=version[:80], expected=f"a digest or one of {near or versions}")
        known = self._models.get(digest)
        if known is not None:
            return known
        folder = self._releases / digest
        try:
            return LoadedModel(folder, digest, self._keyed)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with a release, the gateway is not
            _log.error("release %s not loaded: %s", digest[:12], error)
            told = why_not_loaded(error, folder)
            raise Unavailable(f"release {digest[:12]}", got=told, expected="a bundle that can be loaded") from None

    def _changed_ns(self) -> int:
        """When a release was last added or removed."""
        try:
            return self._releases.stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    def _listed(self) -> _Listing:
        """The releases on disk, read again when their folder has changed."""
        changed_ns = self._changed_ns()
        if changed_ns == self._listing.changed_ns:
            return self._listing
        settled = time.time_ns() - changed_ns > _SETTLED_NS
        models: dict[str, str] = {}
        newest: dict[str, dict[str, tuple[int, str]]] = {}
        for path in self._releases.glob("*/release.json"):
            digest = path.parent.name
            try:
                name = _decoder.decode(path.read_bytes())
            except (msgspec.MsgspecError, OSError):
                continue
            if _DIGEST.fullmatch(digest):
                models[digest] = name.model
                known = newest.setdefault(name.model, {})
                known[name.semver] = max(known.get(name.semver, (-1, "")), (name.created_us, digest))
        versions = {
            model: {semver: known[semver][1] for semver in sorted(known, key=_precedence)}
            for model, known in newest.items()
        }
        self._listing = _Listing(changed_ns if settled else -1, models, versions)
        return self._listing


def _precedence(semver: str) -> tuple[bool, list[int], str]:
    """1.9.0 comes before 1.10.0; what is no semantic version comes last."""
    parts = semver.split(".")
    known = all(part.isdecimal() for part in parts)
    return not known, [int(part) for part in parts] if known else [], semver
