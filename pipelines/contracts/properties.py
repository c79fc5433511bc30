"""A file of properties, a `name=value` a line: what a library reads that has settings of its own, and its secrets."""

from __future__ import annotations

from pathlib import Path

from pipelines.contracts.errors import TerminalError


def read_properties(file: str, setting: str) -> dict[str, str]:
    """The properties in `file`; empty lines and those that begin with # are none. `setting` named the file.

    Raises TerminalError when it cannot be read or a line is no property.
    """
    try:
        lines = Path(file).read_text().splitlines()
    except OSError as error:
        raise TerminalError(setting, got=str(error), expected="a file of name=value lines") from error
    found = {}
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        name, equals, value = text.partition("=")
        if not equals:
            # The line itself may hold a secret.
            raise TerminalError(f"{file}:{number}", got="no '='", expected="name=value")
        found[name.strip()] = value.strip()
    return found
