"""Virtual environments, made of their locks by uv; a stamp in each says what it was made of."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from scripts.steps import ROOT, TOOLS, SetupError, run_quietly, say
from scripts.system_packages import has_pip

SUPPORTED = ((3, 11), (3, 12))
STAMP = ".slipway-lock"


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
        """The interpreter in it."""
        return self.path / "bin" / "python"

    def digest(self) -> str:
        """Names the state the environment must be in: the locks, this file and the place it lies."""
        content = hashlib.sha256(str(self.path).encode())
        for file in (*self.locks, Path(__file__)):
            content.update(file.read_bytes())
        return content.hexdigest()

    def is_current(self) -> bool:
        """Whether it is made, of these locks, for the Python that was asked for."""
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
SPARK_LOCK = ROOT / "requirements-spark.txt"


def spark_stamp(environment: Environment) -> Path:
    """The file that says Spark is installed there: the lock it was installed from."""
    return environment.path / ".slipway-spark"


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
