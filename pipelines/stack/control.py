"""Up, down and status of the local stack."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from pipelines.contracts.errors import TerminalError, TransientError
from pipelines.settings import PROJECT, Settings
from pipelines.stack import databases, processes
from pipelines.stack.environment import part_environment
from pipelines.stack.parts import Database, Part, choose
from pipelines.stack.ports import require_free
from pipelines.stack.processes import Record
from pipelines.stack.states import PartStatus, Progress, State
from pipelines.stack.versions import version_of

READY_TIMEOUT_S = 180.0
_POLL_S = 0.2


def up(settings: Settings, parts: Sequence[str] | None = None, on_progress: Progress | None = None) -> list[PartStatus]:
    """Start the parts that do not run yet and wait until all of them are ready; returns their status.

    Raises `TerminalError` when a port is taken (before anything is started) or a part ends while it starts (with the
    tail of its log), `TransientError` when one is not ready in time, `NotFoundError` for an unknown part.
    """
    tell = on_progress or _ignore
    chosen = choose(list(parts) if parts else None, settings)
    with _one_at_a_time(settings):
        missing = [part for part in chosen if _living_record(settings, part) is None]
        for part in missing:
            _clear_remains(settings, part)
            if (port := part.port(settings)) is not None:
                require_free(part.name, settings.listen, port, f"SLIPWAY_{str(part.port_setting).upper()}")
        environment = part_environment(settings)
        _start_all(settings, missing, environment, tell)
        records = {part: record for part in chosen if (record := processes.read_record(part.name, settings.run_dir))}
        _wait_until_ready(settings, records, tell)
    return status(settings, [part.name for part in chosen])


def down(
    settings: Settings, parts: Sequence[str] | None = None, on_progress: Progress | None = None
) -> list[PartStatus]:
    """Stop the parts, each with everything it started; returns their status. Stopping what does not run is no error."""
    tell = on_progress or _ignore
    chosen = choose(list(parts) if parts else None)

    def stop(part: Part) -> None:
        record = processes.read_record(part.name, settings.run_dir)
        if record is not None:
            tell(part.name, "stopping")
            processes.stop(record, part.grace_s)
            processes.forget(part.name, settings.run_dir)
            tell(part.name, "stopped")

    with _one_at_a_time(settings), ThreadPoolExecutor(max_workers=len(chosen)) as pool:
        list(pool.map(stop, chosen))
    return status(settings, [part.name for part in chosen])


def status(settings: Settings, parts: Sequence[str] | None = None) -> list[PartStatus]:
    """What each part is doing now."""
    chosen = choose(list(parts) if parts else None, settings)
    with ThreadPoolExecutor(max_workers=len(chosen)) as pool:
        return list(pool.map(lambda part: _status_of(settings, part), chosen))


def _status_of(settings: Settings, part: Part) -> PartStatus:
    record = processes.read_record(part.name, settings.run_dir)
    url = part.url(settings)
    version = version_of(part.distribution)
    if record is None:
        return PartStatus(part.name, "stopped", url=url, version=version)
    if processes.leader(record) is None:
        return PartStatus(part.name, "crashed", pid=record.pid, url=url, version=version, log=record.log)
    state: State = "running" if part.ready(settings, record) else "starting"
    return PartStatus(part.name, state, pid=record.pid, url=url, version=version, log=record.log)


def _living_record(settings: Settings, part: Part) -> Record | None:
    record = processes.read_record(part.name, settings.run_dir)
    return record if record is not None and processes.leader(record) is not None else None


def _clear_remains(settings: Settings, part: Part) -> None:
    """End what a killed part has left behind: its workers would keep the port."""
    if record := processes.read_record(part.name, settings.run_dir):
        processes.stop(record, grace_s=0.0)
        processes.forget(part.name, settings.run_dir)


def _start_all(settings: Settings, missing: list[Part], environment: dict[str, str], tell: Progress) -> None:
    """Start the parts; those of one database follow its migration, the others do not wait for it."""
    groups: dict[Database | None, list[Part]] = {}
    for part in missing:
        groups.setdefault(part.database, []).append(part)

    def start_group(database: Database | None) -> None:
        for part in groups[database]:
            tell(part.name, "preparing")
        if database is not None:
            databases.prepare(settings, {database}, environment)
        for part in groups[database]:
            tell(part.name, "starting")
            processes.start(
                part.name,
                part.command(settings),
                {**environment, "SLIPWAY_PART": part.name},
                PROJECT,
                settings.run_dir,
                settings.logs_dir / f"{part.name}.log",
            )

    if groups:
        with ThreadPoolExecutor(max_workers=len(groups)) as pool:
            list(pool.map(start_group, groups))


def _wait_until_ready(settings: Settings, records: dict[Part, Record], tell: Progress) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    waiting = dict(records)
    while waiting:
        for part, record in list(waiting.items()):
            if processes.leader(record) is None:
                raise TerminalError(
                    f"{part.name} ended while it started",
                    hint=f"Last lines of {record.log}:\n{processes.log_tail(record)}",
                )
            if part.ready(settings, record):
                tell(part.name, "running")
                del waiting[part]
        if waiting and time.monotonic() > deadline:
            names = ", ".join(part.name for part in waiting)
            tails = "\n".join(f"{record.log}:\n{processes.log_tail(record)}" for record in waiting.values())
            raise TransientError(
                f"{names}: not ready after {READY_TIMEOUT_S:.0f} s",
                hint=f"They go on starting: ask `slipway status`, or stop them by `slipway down`. Their logs:\n{tails}",
            )
        time.sleep(_POLL_S)  # parts announce nothing: they are asked whether they are ready


@contextmanager
def _one_at_a_time(settings: Settings) -> Iterator[None]:
    """Two commands on one home follow each other."""
    settings.run_dir.mkdir(parents=True, exist_ok=True)
    with (settings.run_dir / "stack.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _ignore(part: str, happening: str) -> None:
    """Progress that nobody watches."""
