"""The generated pages of docs/reference are what the code says now."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

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


def test_every_relative_link_of_the_docs_leads_somewhere() -> None:
    broken = [
        f"{page.relative_to(PROJECT)}: {target}"
        for page in _pages()
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert broken == []


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
