"""Overrides kept on this host: shared by the gateway's workers, and still there after a restart."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from pipelines.contracts import durable_files
from pipelines.contracts.events import EventId
from pipelines.contracts.routes import Route
from serving.routing import HeldOverride, clears

_log = logging.getLogger("slipway.overrides")
_decoder = msgspec.json.Decoder(HeldOverride)


class OverrideStore:
    """One file an override under `folder`, polled by every worker. Memory first: a trip acts before it is written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._held: dict[str, HeldOverride] = {}
        self._read: dict[str, tuple[int, int]] = {}

    def of(self, model: str) -> list[HeldOverride]:
        """The model's overrides, cleared ones included, oldest first."""
        with self._lock:
            return [held for _, held in sorted(self._held.items()) if held.event.model == model]

    def hold(self, held: HeldOverride) -> None:
        """Take it in force in this worker at once."""
        with self._lock:
            self._held[str(held.event.id)] = held

    def let_go(self, held: HeldOverride) -> None:
        """Forget one that was never written; it goes on under another id."""
        with self._lock:
            self._held.pop(str(held.event.id), None)

    def publish(self, held: HeldOverride) -> None:
        """Show it to the other workers: what the kernel has, they see, and it outlives this process. Raises OSError."""
        self._write(held, sync=False)

    def persist(self, held: HeldOverride) -> None:
        """Make it outlive the machine as well. Raises OSError."""
        self._write(held, sync=True)

    def _write(self, held: HeldOverride, *, sync: bool) -> None:
        durable_files.write(self.folder / _file_name(held), msgspec.json.encode(held), sync=sync)

    def poll(self) -> set[str]:
        """Read what other workers wrote since the last call; the models concerned."""
        changed: set[str] = set()
        for entry in os.scandir(self.folder):
            if not entry.name.endswith(".json"):
                continue
            found = entry.stat()
            # Each write is another file: two of them within one tick of the file system's clock differ all the same.
            stamp = (found.st_mtime_ns, found.st_ino)
            if self._read.get(entry.name) == stamp:
                continue
            try:
                held = _decoder.decode(Path(entry.path).read_bytes())
            except (msgspec.MsgspecError, OSError) as error:
                _log.error("unreadable override %s: %s", entry.path, error)
                continue
            self._read[entry.name] = stamp
            with self._lock:
                known = self._held.get(str(held.event.id))
                if known is None or known.cleared_by is None:
                    self._held[str(held.event.id)] = held
            changed.add(held.event.model)
        return changed

    def recover(self, held: HeldOverride) -> bool:
        """Take up an override found in the log, unless its file is there already. Returns whether it was missing."""
        if (self.folder / _file_name(held)).exists():
            return False
        self.hold(held)
        try:
            self.persist(held)
        except OSError as error:
            _log.error("override %s is in force in this worker only: %s", held.event.id, error)
        return True

    def remove_settled(self, before_us: int, may_come_back: Callable[[EventId], bool]) -> None:
        """Remove the files of overrides that a decision has settled, and that were made before `before_us` (wall).

        One whose event recovery may still find in the log stays: without its file it would be taken up again.
        """
        for path in self.folder.glob("*.json"):
            try:
                held = _decoder.decode(path.read_bytes())
            except (msgspec.MsgspecError, OSError):  # `poll` says so; another worker may have removed it
                continue
            if held.cleared_by is None or held.event.wall_us >= before_us or may_come_back(held.event.id):
                continue
            path.unlink(missing_ok=True)
            self._read.pop(path.name, None)
            self.let_go(held)

    def clear_named(self, route: Route) -> None:
        """Remember for good that `route` has dealt with the overrides it names: a later route need not repeat them."""
        for held in self.of(route.model):
            if held.cleared_by is None and clears(route, held):
                cleared = msgspec.structs.replace(held, cleared_by=route.version)
                self.hold(cleared)
                try:
                    self.persist(cleared)
                except OSError as error:
                    _log.error("override %s is cleared in memory only: %s", held.event.id, error)


def _file_name(held: HeldOverride) -> str:
    return str(held.event.id).replace("/", "-") + ".json"
