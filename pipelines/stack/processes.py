"""Detached processes that are found again, and never mistaken for others.

A part is started as the leader of its own session. Its record names the pid, the moment the process was created and
the boot of the machine, so that a pid used again by somebody else is recognised. When a leader was killed, what is
left of it is still ours and is ended with it: it is known by its session, or, where it has made one of its own (as
the gateway's workers do), by a mark in its environment.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import psutil

from pipelines.contracts.errors import TerminalError

_CREATION_TOLERANCE_S = 2.0
"""Creation times are derived from the boot time, which a clock correction may move."""

MARK = "SLIPWAY_PART_MARK"
"""Environment variable that everything a part starts inherits; its value is new for every start."""

_children: dict[int, subprocess.Popen[bytes]] = {}
"""What this process started itself: it has to be waited for, or it stays as a zombie."""


class Record(msgspec.Struct, frozen=True):
    """Written at the start of a part, removed at its stop."""

    part: str
    pid: int
    created: float
    boot_id: str
    command: list[str]
    log: str
    log_offset: int
    mark: str = ""


def boot_id() -> str:
    """Names this boot of the machine; empty where the kernel does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def start(
    part: str, command: Sequence[str], environment: Mapping[str, str], cwd: Path, run_dir: Path, log: Path
) -> Record:
    """Start a part in its own session with its output appended to `log`, and write its record."""
    run_dir.mkdir(parents=True, exist_ok=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    mark = secrets.token_hex(8)
    with log.open("ab") as output:
        offset = output.tell()
        try:
            child = subprocess.Popen(
                list(command),
                env={**os.environ, **environment, MARK: mark},
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except FileNotFoundError:
            raise TerminalError(
                f"{part}: its command", got=f"no {command[0]}", expected="both environments", hint="Run: make setup"
            ) from None
    _children[child.pid] = child
    record = Record(
        part=part,
        pid=child.pid,
        created=psutil.Process(child.pid).create_time(),
        boot_id=boot_id(),
        command=list(command),
        log=str(log),
        log_offset=offset,
        mark=mark,
    )
    draft = run_dir / f".{part}.json"
    draft.write_bytes(msgspec.json.encode(record))
    draft.replace(run_dir / f"{part}.json")
    return record


def read_record(part: str, run_dir: Path) -> Record | None:
    """The record of a part that was started and not stopped."""
    try:
        return msgspec.json.decode((run_dir / f"{part}.json").read_bytes(), type=Record)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def forget(part: str, run_dir: Path) -> None:
    """Remove the record of a part."""
    (run_dir / f"{part}.json").unlink(missing_ok=True)


def leader(record: Record) -> psutil.Process | None:
    """The recorded process if it lives and is the one that was started."""
    if child := _children.get(record.pid):
        child.poll()
    if record.boot_id != boot_id():
        return None
    try:
        process = psutil.Process(record.pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        is_ours = abs(process.create_time() - record.created) <= _CREATION_TOLERANCE_S
    except psutil.NoSuchProcess:
        return None
    return process if is_ours else None


def members(record: Record) -> list[psutil.Process]:
    """Every living process of the part: its leader, what descends from it, its session, and what bears its mark."""
    if record.boot_id != boot_id():
        return []
    first = leader(record)
    found: dict[int, psutil.Process] = {}
    if first is not None:
        found[first.pid] = first
        with contextlib.suppress(psutil.NoSuchProcess):
            found |= {child.pid: child for child in first.children(recursive=True)}
    # Without its leader the pid, and the session of that name, may be somebody else's by now.
    session = None if first is None and _lives(record.pid) else record.pid
    for pid in psutil.pids():
        with contextlib.suppress(psutil.Error, ProcessLookupError, PermissionError):
            if pid not in found and (os.getsid(pid) == session or _bears(pid, record.mark)) and _lives(pid):
                found[pid] = psutil.Process(pid)
    return list(found.values())


def _bears(pid: int, mark: str) -> bool:
    """Whether a process was started, directly or not, by the part of this mark."""
    return bool(mark) and psutil.Process(pid).environ().get(MARK) == mark


def _lives(pid: int) -> bool:
    """Whether a process of that number runs; one that has ended and was not waited for does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _has_ended(process: psutil.Process) -> bool:
    """Whether nothing of it is left but what somebody has to reap. A process is a zombie already while other threads of
    it come to their end, and still hold its ports.
    """
    try:
        is_zombie = process.status() == psutil.STATUS_ZOMBIE and process.num_threads() <= 1
        return is_zombie or not process.is_running()
    except psutil.NoSuchProcess:
        return True


def stop(record: Record, grace_s: float) -> None:
    """Ask the leader to end, wait up to `grace_s` seconds, then kill whatever of the part is left."""
    first = leader(record)
    family = members(record)
    if first is not None:
        with contextlib.suppress(psutil.NoSuchProcess):
            first.send_signal(signal.SIGTERM)
        _wait_until_gone(record, grace_s)
    # Members of before and of now: a child that left its session is known only from before.
    remaining = {process.pid: process for process in (*family, *members(record))}
    for process in remaining.values():
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()  # psutil refuses when the pid has been given to another process
    # Nobody here may wait for an orphan: who does, is the machine's first process, in its own time.
    deadline = time.monotonic() + 5
    while not all(map(_has_ended, remaining.values())) and time.monotonic() < deadline:
        time.sleep(0.02)  # processes of another session: only the process table tells when they have ended
    if child := _children.pop(record.pid, None):
        child.wait()


def _wait_until_gone(record: Record, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while leader(record) is not None and time.monotonic() < deadline:
        time.sleep(0.05)  # another session's leader: only the process table tells when it ends


def log_tail(record: Record, lines: int = 15) -> str:
    """The last lines the part has written since it was started."""
    try:
        with Path(record.log).open("rb") as file:
            file.seek(record.log_offset)
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.rstrip().splitlines()[-lines:])
