"""Writing a release bundle: staged beside its place, checked there, then renamed to its digest. Never written twice."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec

from pipelines.contracts import release as contract
from pipelines.contracts.canonical import canonical_json
from pipelines.contracts.release import Manifest


class Staged(NamedTuple):
    """A whole bundle that is not in its place yet; `contracts.release.Release(folder, digest)` loads it."""

    folder: Path
    digest: str


def file_digests(files: Mapping[str, bytes]) -> dict[str, str]:
    """SHA-256 in hex of each file's bytes."""
    return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


@contextmanager
def staged(root: Path, manifest: Manifest, files: Mapping[str, bytes]) -> Iterator[Staged]:
    """Stage `files` and their manifest (whose `files` is filled in here). What is not installed vanishes."""
    root.mkdir(parents=True, exist_ok=True)
    folder = root / f".staged-{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        for name, data in files.items():
            (folder / name).write_bytes(data)
        full = msgspec.structs.replace(manifest, files=file_digests(files))
        yield Staged(folder, contract.write(folder, full))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def install(root: Path, bundle: Staged) -> str:
    """Put a staged bundle in its place and return its digest; the same bundle may already be there."""
    place = root / bundle.digest
    try:
        bundle.folder.rename(place)
    except OSError:
        if not place.is_dir():
            raise
        contract.verify(place, bundle.digest)
    return bundle.digest


def json_file(value: object) -> bytes:
    """Canonical JSON with a last newline."""
    return canonical_json(value) + b"\n"
