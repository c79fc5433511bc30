"""What only apt can give: found out before anything is installed, named in one line, installed when this user may."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from scripts.steps import TOOLS, SetupError, run_quietly, say


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
