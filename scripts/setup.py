#!/usr/bin/env python3
"""Builds both environments from their locks: `.venv` (orchestration) and `serving/.venv` (gateway).

`--peers` builds a third, `benchmarks/peers/.venv`: what the gateway is measured against and tested with.
`--servers` installs the servers that tests start; where it may not, it names them, and their tests are skipped.
`--spark` adds Spark to the orchestration environment (scripts/spark/install.py); every later set-up keeps it.
`--s3` builds the real S3 server, which takes Go and minutes; without it the tests use the one of `--servers`.

Standard library only, because it runs before anything is installed. Run it by `make setup`.
What only apt can give (a C library, pip, ensurepip) is found out first, named in one line, and installed when this
user may: as root, or through sudo without a password. Under `CI=true` the attempt is always made.
A stamp in each environment holds the digest of its locks, so that a second run finds nothing to do.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time
from pathlib import Path

# Run as a file, before anything is installed: its own folder is on the path, the project's is not.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.environments import MOTO, ORCHESTRATION, PEERS, SERVING, SUPPORTED, build
from scripts.servers import ensure_s3_server, ensure_servers
from scripts.steps import ROOT, TOOLS, SetupError, say
from scripts.system_packages import ensure_system_packages, missing_apt_packages


def check_python(version: tuple[int, int] = sys.version_info[:2]) -> None:
    """Raise `SetupError` unless the interpreter is one the locks hold for."""
    if version not in SUPPORTED:
        wanted = " or ".join(".".join(map(str, v)) for v in SUPPORTED)
        got = ".".join(map(str, version))
        raise SetupError(f"Python {wanted} is needed; got {got} ({sys.executable}). Use: make setup PYTHON=python3.12")


def main() -> int:
    started = time.monotonic()
    if "--spark" in sys.argv[1:]:
        os.execv(sys.executable, [sys.executable, str(ROOT / "scripts" / "spark" / "install.py")])
    wanted = [PEERS] if "--peers" in sys.argv[1:] else [ORCHESTRATION, SERVING]
    if "--servers" in sys.argv[1:]:
        wanted = [MOTO]
    try:
        check_python()
        if "--s3" in sys.argv[1:]:
            ensure_s3_server()
            return 0
        if "--servers" in sys.argv[1:]:
            ensure_servers()
        if all(environment.is_current() for environment in wanted) and not missing_apt_packages():
            return 0
        TOOLS.mkdir(exist_ok=True)
        with (TOOLS / "setup.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # two `make` at once: the second waits and finds the work done
            ensure_system_packages()
            if stale := [e for e in wanted if not e.is_current()]:
                build(stale)
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    say(f"{' and '.join(environment.name for environment in wanted)}: ready ({time.monotonic() - started:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
