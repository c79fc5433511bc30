"""A real PostgreSQL server for tests: own port, own data folder, own password; ended with the block.

Usable from both environments. PostgreSQL refuses to run as root, so a root's server runs as another user.
"""

from __future__ import annotations

import itertools
import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import psycopg
import pytest

from tests.free_ports import free_port
from tests.waiting import wait_until_ended

_USER = "slipway"
_OPTIONS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "shared_buffers": "16MB",
    "max_connections": "100",
    # A process that is killed leaves its writes with the kernel: only a machine that dies would need more.
    "fsync": "off",
}


class PostgresServer:
    """One server. `kill` ends it like a crash; `start` brings it back on the same port with the same data."""

    def __init__(self, programs: Path, folder: Path, port: int) -> None:
        self.port = port
        self._programs = programs
        self._data = folder / "data"
        self._log = folder / "log"
        self._password = secrets.token_hex(16)
        self._as_user = _unprivileged()
        self._process: subprocess.Popen[bytes] | None = None
        self._names = itertools.count()
        password_file = folder / "password"
        password_file.write_text(self._password)
        if self._as_user:
            for path in (folder, password_file):
                shutil.chown(path, self._as_user, _group(self._as_user))
        self._run("initdb", "-D", self._data, "-U", _USER, "-A", "scram-sha-256", f"--pwfile={password_file}", "-N")

    def url(self, database: str = "postgres") -> str:
        """The URL of a database of this server."""
        return f"postgresql://{_USER}:{self._password}@127.0.0.1:{self.port}/{database}"

    def new_database(self, template: str = "template1") -> str:
        """The URL of a new database: empty, or a copy of another."""
        name = f"test_{next(self._names)}"
        with psycopg.connect(self.url("template1"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return self.url(name)

    def start(self) -> None:
        """Start, and return when it takes connections."""
        options = [part for name, value in _OPTIONS.items() for part in ("-c", f"{name}={value}")]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [self._programs / "postgres", "-D", self._data, "-p", str(self.port), *options],
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
                **self._identity(),
            )
        deadline = time.monotonic() + 60
        while True:
            try:
                psycopg.connect(self.url(), connect_timeout=2).close()
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError(f"PostgreSQL does not start:\n{self._log.read_text()}") from None
                time.sleep(0.05)  # it starts in another process
            else:
                return

    def kill(self) -> None:
        """`kill -9` of the server and of every process of it."""
        if self._process is None:
            return
        family = self._family()
        for one in family:
            with suppress(psutil.NoSuchProcess):  # the others end by themselves once the first is gone
                one.kill()
        self._process.wait(20)
        wait_until_ended(family)
        self._process = None

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """The server keeps its connections and answers nothing."""
        family = self._family()
        for one in family:
            one.suspend()
        try:
            yield
        finally:
            for one in family:
                one.resume()

    def _family(self) -> list[psutil.Process]:
        assert self._process is not None
        root = psutil.Process(self._process.pid)
        return [root, *root.children(recursive=True)]

    def _run(self, program: str, *arguments: object) -> None:
        done = subprocess.run(
            [self._programs / program, *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
            **self._identity(),
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def _identity(self) -> dict[str, object]:
        return {"user": self._as_user, "group": _group(self._as_user), "extra_groups": []} if self._as_user else {}


@contextmanager
def running_postgres() -> Iterator[PostgresServer]:
    """A started server; the test is skipped where PostgreSQL is not installed, and fails there under CI=true."""
    programs = _programs()
    if programs is None:
        line = "PostgreSQL is not installed: apt-get install -y postgresql (or: python3 scripts/setup.py --servers)"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(line)
    # Not pytest's folder: another user has to reach it.
    folder = Path(tempfile.mkdtemp(prefix="slipway-postgres-"))
    server = PostgresServer(programs, folder, free_port())
    try:
        server.start()
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder, ignore_errors=True)


def _programs() -> Path | None:
    """The folder of `postgres` and `initdb`; Debian keeps them by version, off the path."""
    by_version = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
    on_path = shutil.which("initdb")
    return by_version[-1] if by_version else Path(on_path).resolve().parent if on_path else None


def _unprivileged() -> str | None:
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


def _group(user: str) -> int:
    return pwd.getpwnam(user).pw_gid
