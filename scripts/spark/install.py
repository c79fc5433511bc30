#!/usr/bin/env python3
"""Spark, the second engine: PySpark into `.venv`, its connectors' jars into `.tools/spark`, Java by apt when missing.

Run it by `python3 scripts/setup.py --spark`. What it installs is kept by every later `make setup`; the demo needs none
of it. Standard library only.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

# Run as a file: the project's folder is not on the path.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from scripts import maven
from scripts.environments import ORCHESTRATION, SPARK_LOCK, find_uv, spark_stamp
from scripts.steps import TOOLS, SetupError, say

POM = Path(__file__).with_name("pom.xml")
JARS = TOOLS / "spark"


def install() -> bool:
    """Bring Spark to its lock. Returns whether anything had to be done. Raises SetupError."""
    if not ORCHESTRATION.python.exists():
        raise SetupError(f"no {ORCHESTRATION.python}: run `make setup` first")
    jars_before = (JARS / ".pom").exists()
    maven.fetch(POM, JARS)
    stamp, wanted = spark_stamp(ORCHESTRATION), SPARK_LOCK.read_text()
    if stamp.exists() and stamp.read_text() == wanted:
        return not jars_before
    say("installing Spark from its lock (400 MB)")
    # The hashes are checked; what it depends on is in the lock, too.
    command = [find_uv(), "pip", "install", "--no-deps", "--require-hashes", "-r", str(SPARK_LOCK)]
    command += ["--python", str(ORCHESTRATION.python)]
    quiet = [] if sys.stderr.isatty() else ["--quiet"]
    environment = {"UV_HTTP_TIMEOUT": "180", **os.environ}
    if subprocess.run([*command, *quiet], env=environment, check=False).returncode != 0:
        raise SetupError("uv could not install Spark (its message is above)")
    stamp.write_text(wanted)
    return True


def main() -> int:
    started = time.monotonic()
    try:
        if install():
            say(f"Spark: ready ({time.monotonic() - started:.0f} s)")
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
