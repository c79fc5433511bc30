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

import ctypes
import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / ".tools"
SUPPORTED = ((3, 11), (3, 12))
STAMP = ".slipway-lock"


class SetupError(Exception):
    """What is missing and the one line that gives it."""


@dataclass(frozen=True)
class Environment:
    """A virtual environment and the locks that make it."""

    name: str
    path: Path
    locks: tuple[Path, ...]
    command: bool
    """Whether the `slipway` command belongs in it."""

    @property
    def python(self) -> Path:
        return self.path / "bin" / "python"

    def digest(self) -> str:
        """Names the state the environment must be in: the locks, this script and the place it lies."""
        content = hashlib.sha256(str(self.path).encode())
        for file in (*self.locks, Path(__file__)):
            content.update(file.read_bytes())
        return content.hexdigest()

    def is_current(self) -> bool:
        stamp = self.path / STAMP
        return (
            self.python.exists()
            and stamp.exists()
            and stamp.read_text() == self.digest()
            and _python_is_as_asked(self.path)
        )


ORCHESTRATION = Environment(
    "orchestration", ROOT / ".venv", (ROOT / "requirements.txt", ROOT / "requirements-dev.txt"), command=True
)
SERVING = Environment(
    "serving",
    ROOT / "serving" / ".venv",
    (ROOT / "serving" / "requirements.txt", ROOT / "serving" / "requirements-dev.txt"),
    command=False,
)
PEERS = Environment(
    "peers",
    ROOT / "benchmarks" / "peers" / ".venv",
    (ROOT / "benchmarks" / "peers" / "requirements.txt",),
    command=False,
)
# The S3 server of tests; alone, because it and the orchestration environment disagree about python-dateutil.
MOTO = Environment("moto", TOOLS / "moto", (ROOT / "scripts" / "requirements-moto.txt",), command=False)
S3_SERVER = "github.com/versity/versitygw/cmd/versitygw@v1.8.0"
GO_NEEDED = (1, 24)
SPARK_LOCK = ROOT / "requirements-spark.txt"


def spark_stamp(environment: Environment) -> Path:
    """The file that says Spark is installed there: the lock it was installed from."""
    return environment.path / ".slipway-spark"


def check_python(version: tuple[int, int] = sys.version_info[:2]) -> None:
    """Raise `SetupError` unless the interpreter is one the locks hold for."""
    if version not in SUPPORTED:
        wanted = " or ".join(".".join(map(str, v)) for v in SUPPORTED)
        got = ".".join(map(str, version))
        raise SetupError(f"Python {wanted} is needed; got {got} ({sys.executable}). Use: make setup PYTHON=python3.12")


# --- what only apt can give --------------------------------------------------------------------------------------


def has_library(name: str) -> bool:
    """Whether the dynamic linker finds a shared library."""
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def has_pip() -> bool:
    return importlib.util.find_spec("pip") is not None


def has_ensurepip() -> bool:
    return importlib.util.find_spec("ensurepip") is not None and importlib.util.find_spec("venv") is not None


def has_uv() -> bool:
    return shutil.which("uv") is not None or (TOOLS / "uv" / "bin" / "uv").exists()


def missing_apt_packages() -> list[str]:
    """Debian and Ubuntu names of the packages without which set-up or the product cannot work."""
    missing = []
    if not has_library("libgomp.so.1"):  # OpenMP: LightGBM
        missing.append("libgomp1")
    if not has_library("libstdc++.so.6"):  # every compiled wheel
        missing.append("libstdc++6")
    if not Path("/usr/share/zoneinfo/UTC").exists():  # Arrow reads the system's time zones
        missing.append("tzdata")
    if not (has_uv() or has_pip() or has_ensurepip()):
        missing.append(f"python3.{sys.version_info[1]}-venv")
    return missing


# What tests start themselves: a program, and the Debian and Ubuntu package that brings it.
SERVERS = {
    "postgres": "postgresql",
    "redis-server": "redis-server",
    "prometheus": "prometheus",
    "java": "default-jre-headless",  # Kafka, whose jars come by Maven: scripts/kafka/broker.py
    "mvn": "maven",
}


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
        raise SetupError(f"VersityGW needs Go {wanted} or newer; got {'.'.join(map(str, version)) or 'none'}")
    say("building VersityGW (minutes)")
    if not run_quietly(["env", f"GOBIN={TOOLS / 'bin'}", go, "install", S3_SERVER]):
        raise SetupError("VersityGW could not be built (Go's message is above)")


def apt_line(packages: Iterable[str]) -> str:
    return f"apt-get install -y {' '.join(packages)}"


def may_install() -> list[str] | None:
    """The prefix with which apt-get may be run without asking anybody, or None."""
    if shutil.which("apt-get") is None:
        return None
    if os.geteuid() == 0:
        return []
    if shutil.which("sudo") is None:
        return None
    if subprocess.run(["sudo", "-n", "true"], capture_output=True, check=False).returncode == 0:
        return ["sudo", "-n"]
    return ["sudo", "-n"] if os.environ.get("CI") == "true" else None


def install_apt(packages: list[str]) -> None:
    """Install the packages, or raise `SetupError` with the line to type."""
    line = apt_line(packages)
    prefix = may_install()
    if prefix is None:
        raise SetupError(f"missing system packages: {' '.join(packages)}. Run: sudo {line}")
    say(f"installing system packages: {line}")
    env = ["env", "DEBIAN_FRONTEND=noninteractive"]
    install = [*prefix, *env, "apt-get", "install", "-y", "-q", "--no-install-recommends", *packages]
    update = [*prefix, *env, "apt-get", "update", "-q"]
    # A fresh image has no package lists, and old lists name files that are gone: both are cured by an update.
    if not run_quietly(install) and not (run_quietly(update) and run_quietly(install)):
        raise SetupError(f"apt-get could not install {' '.join(packages)}. Run: sudo apt-get update && sudo {line}")


def ensure_system_packages() -> None:
    missing = missing_apt_packages()
    if not missing:
        return
    install_apt(missing)
    importlib.invalidate_caches()
    if still := missing_apt_packages():
        raise SetupError(f"apt-get gave no usable {' '.join(still)}. Run: sudo {apt_line(still)}")


# --- uv ----------------------------------------------------------------------------------------------------------


def find_uv() -> str:
    """The path of uv: on PATH, or our own copy in `.tools/uv`, fetched by pip with its hash."""
    if on_path := shutil.which("uv"):
        return on_path
    own = TOOLS / "uv" / "bin" / "uv"
    if own.exists():
        return str(own)
    say("fetching uv")
    lock = str(ROOT / "scripts" / "requirements-uv.txt")
    install = ["-m", "pip", "install", "-q", "--disable-pip-version-check", "--require-hashes", "-r", lock]
    if has_pip():
        # A target directory is allowed where the system's Python is closed to pip (PEP 668).
        done = run_quietly([sys.executable, *install, "--upgrade", "--target", str(TOOLS / "uv")])
    else:
        done = run_quietly([sys.executable, "-m", "venv", "--clear", str(TOOLS / "uv")])
        done = done and run_quietly([str(TOOLS / "uv" / "bin" / "python"), *install])
    if not done or not own.exists():
        shutil.rmtree(TOOLS / "uv", ignore_errors=True)
        raise SetupError("uv could not be fetched. Is the package index reachable? Try: python3 -m pip download uv")
    return str(own)


# --- environments ------------------------------------------------------------------------------------------------


def _configured_python(path: Path) -> tuple[int, int] | None:
    """The Python version an existing environment was made with."""
    config = path / "pyvenv.cfg"
    if not config.exists():
        return None
    for line in config.read_text().splitlines():
        key, _, value = line.partition("=")
        if key.strip() in ("version", "version_info"):
            major, minor, *_ = value.strip().split(".")
            return int(major), int(minor)
    return None


def _python_is_as_asked(path: Path) -> bool:
    """An existing environment is kept when its Python is supported, and is the one asked for if one was asked for."""
    made_with = _configured_python(path)
    if os.environ.get("PYTHON"):
        return made_with == sys.version_info[:2]
    return made_with in SUPPORTED


def start_build(uv: str, environment: Environment) -> subprocess.Popen[bytes]:
    """Create the environment when there is none of use, and start bringing it to exactly its locks."""
    stamp = environment.path / STAMP
    stamp.unlink(missing_ok=True)
    works = environment.python.exists() and _python_is_as_asked(environment.path)
    if not works and not run_quietly([uv, "venv", "-q", "--clear", "--python", sys.executable, str(environment.path)]):
        raise SetupError(f"the {environment.name} environment could not be created at {environment.path}")
    locks = [str(lock) for lock in environment.locks]
    if spark_stamp(environment).exists():  # a sync removes what is in no lock that it is given
        locks.append(str(SPARK_LOCK))
    # uv's bars are for people; without a terminal it would list hundreds of packages. Its errors are always shown.
    quiet = [] if sys.stderr.isatty() else ["--quiet"]
    # Compiled once here: where Python may not write bytecode (PYTHONDONTWRITEBYTECODE), each process would compile
    # MLflow, Feast and the others again at every start.
    command = [uv, "pip", "sync", *quiet, "--require-hashes", "--compile-bytecode"]
    command += ["--python", str(environment.python), *locks]
    env = {"UV_HTTP_TIMEOUT": "180", **os.environ}
    env.pop("VIRTUAL_ENV", None)
    return subprocess.Popen(command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL)


def finish_build(environment: Environment) -> None:
    """Make the project importable in the environment, and give it the command and the stamp."""
    made_with = _configured_python(environment.path)
    assert made_with is not None
    packages = environment.path / "lib" / f"python{made_with[0]}.{made_with[1]}" / "site-packages"
    (packages / "_slipway_project.pth").write_text(f"{ROOT}\n")
    if environment.command:
        write_command(environment)
    if (spark := spark_stamp(environment)).exists():
        spark.write_text(SPARK_LOCK.read_text())
    (environment.path / STAMP).write_text(environment.digest())


def write_command(environment: Environment) -> None:
    """The console script, in the form that also stands paths with spaces."""
    command = environment.path / "bin" / "slipway"
    command.write_text(
        "#!/bin/sh\n"
        f"'''exec' '{environment.python}' \"$0\" \"$@\"\n"
        "' '''\n"
        "import sys\n\n"
        "from pipelines.cli.main import main\n\n"
        "sys.exit(main())\n"
    )
    command.chmod(0o755)


def build(environments: list[Environment]) -> None:
    """Bring the environments to their locks, side by side."""
    uv = find_uv()
    names = " and ".join(environment.name for environment in environments)
    say(f"installing {names} from the locks")
    running = [(environment, start_build(uv, environment)) for environment in environments]
    failed = []
    for environment, process in running:
        if process.wait() == 0:
            finish_build(environment)
        else:
            failed.append(environment.name)
    if failed:
        raise SetupError(f"uv could not install: {', '.join(failed)} (its message is above)")


# --- the command -------------------------------------------------------------------------------------------------


def say(text: str) -> None:
    print(f"setup: {text}", flush=True)


def run_quietly(command: list[str]) -> bool:
    """Run a command; its output is shown only when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode != 0:
        sys.stderr.write(done.stdout + done.stderr)
    return done.returncode == 0


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
