"""The generated pages of docs/reference are what the code says now."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from pipelines.cli.main import app
from pipelines.settings import PROJECT
from scripts import reference


@pytest.mark.parametrize("name", ["cli.md", "settings.md"])
def test_the_committed_reference_is_current(name: str) -> None:
    committed = (PROJECT / "docs" / "reference" / name).read_text(encoding="utf-8")
    assert committed == reference.pages()[name], "make docs"


def test_every_setting_of_the_example_file_exists() -> None:
    named = set(re.findall(r"^#(SLIPWAY_\w+)=", (PROJECT / ".env.example").read_text(), flags=re.MULTILINE))
    documented = set(re.findall(r"`(SLIPWAY_\w+)`", reference.settings_page()))
    assert named
    assert named <= documented


def _pages() -> list[Path]:
    return [PROJECT / "README.md", *sorted((PROJECT / "docs").rglob("*.md"))]


def _anchors(page: Path) -> set[str]:
    """What can stand behind `#` in a link to the page: its headings, spelt as they are on the web."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def test_every_relative_link_of_the_docs_leads_somewhere() -> None:
    broken = []
    for page in _pages():
        for path, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", page.read_text(encoding="utf-8")):
            target = page.parent / path if path else page
            if "://" not in path and (not target.exists() or (anchor and anchor not in _anchors(target))):
                broken.append(f"{page.relative_to(PROJECT)}: {path}#{anchor}")
    assert broken == []


def test_commands_of_the_docs_can_be_copied_as_they_stand() -> None:
    """Nothing puts `slipway` on the PATH: a command to copy names it as `.venv/bin/slipway`."""
    bare = [
        f"{page.relative_to(PROJECT)}: {line}"
        for page in _pages()
        if page.name != "cli.md"
        for line in re.findall(r"^ +(?:\$ )?slipway .*$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    ]
    assert bare == []


VERBS = dict(reference.verbs(get_command(app), "slipway"))


@pytest.mark.parametrize("name", VERBS)
def test_every_verbs_help_ends_in_an_example_that_its_parser_takes(name: str) -> None:
    last = VERBS[name].help.rstrip().splitlines()[-1]
    assert last.startswith(f"Example: {name}")
    words = shlex.split(last.removeprefix(f"Example: {name}"))
    for_a_shell = [at for at, word in enumerate(words) if word in ("<", ">")]
    VERBS[name].make_context(name, words[: min(for_a_shell, default=len(words))])


_VERB = re.compile(r"(?:bin/|`|^ +)slipway ([a-z][a-z|]*(?: [a-z][a-z|]*)?)", re.MULTILINE)


def test_every_verb_that_the_docs_name_exists() -> None:
    known = set(re.findall(r"^## slipway (.+)$", reference.cli_page(), flags=re.MULTILINE))
    groups = {verb.split()[0] for verb in known if " " in verb}
    wrong = []
    for page in _pages():
        for words in _VERB.findall(page.read_text(encoding="utf-8")):
            first, _, second = words.partition(" ")
            named = [f"{first} {word}" for word in second.split("|") if word] if first in groups else first.split("|")
            wrong += [f"{page.relative_to(PROJECT)}: {verb}" for verb in named if verb not in known]
    assert wrong == []
