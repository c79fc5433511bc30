"""Whether the command runs where it can work. Standard library only: it runs before any other import."""

from __future__ import annotations

import sys
from importlib.util import find_spec


def wrong_environment() -> str | None:
    """What is wrong with the running interpreter, and what to do; None when it is the orchestration environment."""
    if find_spec("airflow") is not None and find_spec("typer") is not None:
        return None
    got = "the serving environment" if find_spec("bentoml") is not None else "an environment without Airflow"
    return (
        f"slipway runs in the orchestration environment; got {got} ({sys.prefix}). "
        "Use .venv/bin/slipway; if there is none, run: make setup"
    )
