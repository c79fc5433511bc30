"""Jobs on a whole project: check its specs, and apply them to an installation."""

from __future__ import annotations

from functools import partial

import msgspec

from pipelines.settings import Settings
from pipelines.spec.checking import check_project
from pipelines.spec.loading import Specs
from pipelines.wiring import rollout_check


class Checked(msgspec.Struct, frozen=True):
    """The specs that could be read, and every mistake as `file:line: message`."""

    specs: Specs
    mistakes: list[str]


class Applied(msgspec.Struct, frozen=True):
    """What an installation now has: the views' Feast names, and by how many days the sample is moved."""

    views: list[str]
    sample_moved_days: int
    specs_digest: str


def check(settings: Settings, *, logged: bool = True) -> Checked:
    """Check every spec of the project: rollout policies too, and whether they can be reached at the model's declared
    or (with `logged`) its logged traffic.
    """
    return Checked(*check_project(settings.include_dir, partial(rollout_check.problems, settings, logged=logged)))


def apply(settings: Settings) -> Applied:
    """Enter the specs into the installation: Feast registry, online tables, place of the sample. May be repeated.

    Raises SpecError when any spec is wrong.
    """
    from pipelines.contracts.errors import SpecError
    from pipelines.wiring import datasets, features

    checked = check(settings, logged=False)  # a quiet week is no reason to refuse a spec that was applied before
    if checked.mistakes:
        raise SpecError("\n".join(checked.mistakes))
    views = features.apply(settings)
    moved_us = datasets.sample_shift(settings).first_us
    return Applied(views=views, sample_moved_days=moved_us // 86_400_000_000, specs_digest=checked.specs.digest())
