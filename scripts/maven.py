"""Java and the jars of a POM: fetched once, and again when the POM has changed. Standard library only."""

from __future__ import annotations

import fcntl
import hashlib
import re
import shutil
import subprocess
from pathlib import Path

from scripts.steps import SetupError, run_quietly
from scripts.system_packages import install_apt

JAVA = 17


def java_version() -> int:
    """The major version of the Java on the path; 0 for none."""
    if shutil.which("java") is None:
        return 0
    told = subprocess.run(["java", "-version"], capture_output=True, text=True, check=False).stderr
    found = re.search(r'version "(\d+)', told)
    return int(found[1]) if found else 0


def ensure_java(*, with_maven: bool) -> None:
    """Java 17 or later, and Maven where it is needed, by apt when this user may. Raises SetupError."""
    missing = [] if java_version() >= JAVA else [f"openjdk-{JAVA}-jre-headless"]
    if with_maven and shutil.which("mvn") is None:
        missing.append("maven")
    if missing:
        install_apt(missing)


def fetch(pom: Path, folder: Path) -> Path:
    """The folder with the POM's jars and nothing older. Raises SetupError."""
    folder.mkdir(parents=True, exist_ok=True)
    stamp = folder / ".pom"
    wanted = hashlib.sha256(pom.read_bytes()).hexdigest()
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two processes at once: the second finds the work done
        is_there = stamp.exists() and stamp.read_text() == wanted
        ensure_java(with_maven=not is_there)
        if is_there:
            return folder
        for old in folder.glob("*.jar"):
            old.unlink()
        goal = ["dependency:copy-dependencies", f"-DoutputDirectory={folder}"]
        if not run_quietly(["mvn", "-B", "-q", "-f", str(pom), *goal]):
            raise SetupError(f"the jars of {pom} could not be fetched by Maven (its message is above)")
        stamp.write_text(wanted)
    return folder
