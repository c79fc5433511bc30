"""Parts as processes: started detached, found again, never mistaken for others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import psutil
import pytest

from pipelines.contracts.errors import TerminalError
from pipelines.stack import processes
from pipelines.stack.processes import Record
from tests.waiting import wait_until

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Record]]:
    started: list[Record] = []

    def start_part(command: list[str], part: str = "gateway") -> Record:
        record = processes.start(part, command, {}, tmp_path, tmp_path / "run", tmp_path / "logs" / f"{part}.log")
        started.append(record)
        return record

    yield start_part
    for record in started:
        processes.stop(record, grace_s=0)


def test_a_started_part_leads_its_own_session_and_is_found_by_its_record(start, tmp_path):
    record = start(SLEEP)
    found = processes.read_record("gateway", tmp_path / "run")
    assert found == record
    assert processes.leader(found).pid == record.pid
    assert os.getsid(record.pid) == record.pid != os.getsid(0)


def test_stop_ends_the_part_and_everything_it_started(start):
    family = start(
        [sys.executable, "-c", f"import subprocess, time; subprocess.Popen({SLEEP!r}); print('up'); time.sleep(60)"]
    )
    wait_until(lambda: len(processes.members(family)) == 2, "the family is complete")
    pids = [process.pid for process in processes.members(family)]
    processes.stop(family, grace_s=5)
    assert processes.leader(family) is None
    assert not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids)


def test_a_part_that_ignores_the_request_to_end_is_killed_after_its_grace(start):
    ignore = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    stubborn = start([sys.executable, "-c", f"{ignore}; print('set', flush=True); time.sleep(60)"])
    wait_until(lambda: "set" in processes.log_tail(stubborn), "it ignores SIGTERM")
    began = time.monotonic()
    processes.stop(stubborn, grace_s=0.3)
    assert processes.leader(stubborn) is None
    assert 0.3 <= time.monotonic() - began < 30


@pytest.mark.parametrize("own_session", [False, True])
def test_children_of_a_killed_leader_are_still_found_and_ended(start, own_session):
    child = f"subprocess.Popen({SLEEP!r}, start_new_session={own_session})"
    family = start([sys.executable, "-c", f"import subprocess, time; {child}; time.sleep(60)"])
    wait_until(lambda: len(processes.members(family)) == 2, "the family is complete")
    os.kill(family.pid, signal.SIGKILL)
    wait_until(lambda: processes.leader(family) is None, "the leader has ended")
    orphans = processes.members(family)
    assert len(orphans) == 1
    processes.stop(family, grace_s=0)
    assert processes.members(family) == []


@pytest.mark.parametrize("change", [{"created": -3600.0}, {"boot_id": "another boot"}])
def test_a_stale_pid_that_belongs_to_somebody_else_is_never_touched(change):
    stranger = subprocess.Popen(SLEEP, start_new_session=True)
    try:
        created = psutil.Process(stranger.pid).create_time() + float(change.get("created", 0.0))
        stale = Record(
            part="gateway",
            pid=stranger.pid,
            created=created,
            boot_id=str(change.get("boot_id", processes.boot_id())),
            command=SLEEP,
            log="/nowhere",
            log_offset=0,
        )
        assert processes.leader(stale) is None
        assert processes.members(stale) == []
        processes.stop(stale, grace_s=0)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_torn_record_is_no_record(tmp_path):
    (tmp_path / "gateway.json").write_bytes(b'{"part": "gate')
    assert processes.read_record("gateway", tmp_path) is None


def test_the_log_tail_shows_only_what_this_start_wrote(start, tmp_path):
    log = tmp_path / "logs" / "gateway.log"
    log.parent.mkdir()
    log.write_text("of an earlier start\n")
    record = start([sys.executable, "-c", "print('of this start')"])
    wait_until(lambda: processes.leader(record) is None, "the process has ended")
    assert processes.log_tail(record) == "of this start"


def test_a_missing_command_says_that_setup_was_not_run(start):
    with pytest.raises(TerminalError, match=r"no /nowhere/airflow.*make setup"):
        start(["/nowhere/airflow"])


def test_a_record_survives_its_encoding(start, tmp_path):
    record = start(SLEEP)
    assert msgspec.json.decode((tmp_path / "run" / "gateway.json").read_bytes(), type=Record) == record
