"""The `slipway` command: its verbs, and how errors end it.

Exit codes: 0 well, 1 the thing asked about is bad (or an error stopped the work), 2 wrong usage.
Verbs import what they need when they run, so that `slipway --help` is quick.
"""

from __future__ import annotations

import sys

from pipelines.cli.environment import wrong_environment

if problem := wrong_environment():  # before the imports that would fail with a riddle
    sys.exit(problem)

import typer

from pipelines.cli import audit, check, collector, demo, feature, gate, lake, log, new, release, rollout, stack, stream
from pipelines.contracts.errors import SlipwayError

app = typer.Typer(
    name="slipway",
    help="Carries models from raw data to a watched champion, with evidence at every step.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(check.check)
app.add_typer(new.app, name="new")
app.command()(check.apply)
app.command()(stack.up)
app.command()(stack.down)
app.command()(stack.status)
app.add_typer(rollout.app, name="rollout")
app.add_typer(gate.app, name="gate")
app.add_typer(release.app, name="release")
app.add_typer(feature.app, name="feature")
app.command()(stream.stream)
app.command()(stream.push)
app.add_typer(lake.app, name="lake")
app.add_typer(log.app, name="log")
app.add_typer(audit.app, name="audit")
app.add_typer(collector.app, name="collector")
app.command()(demo.demo)


def main() -> int:
    """Run the command line; an error raised on purpose becomes one message and exit code 1."""
    try:
        app()
    except SlipwayError as error:
        print(f"slipway: {error}", file=sys.stderr)
        return 1
    except ValueError as error:
        if not type(error).__module__.startswith("pydantic"):
            raise
        print(f"slipway: a setting (SLIPWAY_... or .env) is wrong: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
