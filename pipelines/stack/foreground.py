"""One part in the foreground, for containers and service managers: `python -m pipelines.stack.foreground PART`.

Prepares what the part needs, then becomes it, so that signals and exit codes are the part's own.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from pipelines.contracts.errors import SlipwayError
from pipelines.settings import PROJECT, Settings
from pipelines.stack import databases
from pipelines.stack.environment import part_environment
from pipelines.stack.parts import choose


def main(arguments: list[str]) -> int:
    """Run the one part named; returns only when it cannot be started."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m pipelines.stack.foreground PART\n")
        return 2
    settings = Settings()
    try:
        (part,) = choose(arguments)
        environment = {**part_environment(settings), "SLIPWAY_PART": part.name}
        if part.database is not None:
            databases.prepare(settings, {part.database}, environment)
    except SlipwayError as error:
        sys.stderr.write(f"slipway: {error}\n")
        return 1
    else:
        become(part.command(settings), environment)


def become(command: list[str], environment: dict[str, str]) -> NoReturn:
    """Replace this process by the command."""
    os.chdir(PROJECT)
    os.execvpe(command[0], command, {**os.environ, **environment})  # noqa: S606 - an argument list, no shell


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
