"""The servers that tests start themselves: from apt, and for S3 built with Go where that was asked for."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from scripts.steps import TOOLS, SetupError, run_quietly, say
from scripts.system_packages import apt_line, install_apt, may_install

# A program, and the Debian and Ubuntu package that brings it.
SERVERS = {
    "postgres": "postgresql",
    "redis-server": "redis-server",
    "prometheus": "prometheus",
    "java": "default-jre-headless",  # Kafka, whose jars come by Maven: scripts/kafka/broker.py
    "mvn": "maven",
}
S3_SERVER = "github.com/versity/versitygw/cmd/versitygw@v1.8.0"
GO_NEEDED = (1, 24)


def has_program(name: str) -> bool:
    """Whether a server's program is there; Debian keeps PostgreSQL's by version, off the path."""
    return shutil.which(name) is not None or any(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))


def missing_servers() -> list[str]:
    """The packages of the servers that tests would have to do without."""
    return [package for program, package in SERVERS.items() if not has_program(program)]


def ensure_servers() -> None:
    """Install them. Where this user may not, say so: their tests are skipped (under CI=true it is an error)."""
    if not (missing := missing_servers()):
        return
    if may_install() is None:
        say(f"tests that start servers will be skipped without: sudo {apt_line(missing)}")
        return
    install_apt(missing)
    if still := missing_servers():
        raise SetupError(f"apt-get gave no usable {' '.join(still)}. Run: sudo {apt_line(still)}")


def ensure_s3_server() -> None:
    """Build VersityGW into `.tools/bin`; Go checks what it fetches against its public log of checksums."""
    if (TOOLS / "bin" / "versitygw").exists():
        return
    go = shutil.which("go") or "/usr/local/go/bin/go"
    found = (
        subprocess.run([go, "env", "GOVERSION"], capture_output=True, text=True, check=False)
        if Path(go).exists()
        else None
    )
    version = tuple(int(part) for part in found.stdout.strip().removeprefix("go").split(".")[:2]) if found else ()
    if version < GO_NEEDED:
        wanted = ".".join(map(str, GO_NEEDED))
        got = ".".join(map(str, version)) or "none"
        hint = "Install it, or leave --s3 out: the tests then use the server of --servers"
        raise SetupError(f"VersityGW needs Go {wanted} or newer; got {got}. {hint}")
    say("building VersityGW (minutes)")
    if not run_quietly(["env", f"GOBIN={TOOLS / 'bin'}", go, "install", S3_SERVER]):
        raise SetupError("VersityGW could not be built (Go's message is above)")
