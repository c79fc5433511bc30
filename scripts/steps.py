"""What the steps of the set-up share: what they say, what they raise, how they run a command. Standard library only."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / ".tools"


class SetupError(Exception):
    """What is missing and the one line that gives it."""


def say(text: str) -> None:
    print(f"setup: {text}", flush=True)


def run_quietly(command: list[str]) -> bool:
    """Run a command; its output is shown only when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode != 0:
        sys.stderr.write(done.stdout + done.stderr)
    return done.returncode == 0
