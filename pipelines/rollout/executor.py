"""Does what recorded decisions order, and confirms it: safe to kill anywhere and to run twice at once.

Order: the control database's own effects first, for every decision in the order of the record, each in one transaction
with its confirmation. Then the mirrors (registry, assets, people): an outage of one of them delays neither a route nor
the other mirrors, and the next run picks up where this one failed. A mirror's effect may come twice when the process
dies between effect and confirmation, so its handler is idempotent by key.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import msgspec

from pipelines.contracts.errors import SlipwayError
from pipelines.rollout.actions import Action, Notify, target
from pipelines.rollout.record import decision_id

_log = logging.getLogger(__name__)

Mirror = Callable[[Any, str], str]  # (action, idempotency key) -> what was done, in words


class Effect(msgspec.Struct, frozen=True, kw_only=True):
    """One action done (`done=True`) or not (`detail` says why); `done_us` is wall time in microseconds."""

    decision_id: str
    action: int
    kind: str
    done: bool
    detail: str
    done_us: int = 0


class Pending(msgspec.Struct, frozen=True, kw_only=True):
    """A recorded decision with actions that are not confirmed: `open` holds their positions in `actions`."""

    model: str
    n: int
    actions: tuple[Action, ...]
    open: tuple[int, ...]

    @property
    def id(self) -> str:
        """The decision's id."""
        return decision_id(self.model, self.n)


class EffectStore(Protocol):
    """What the executor needs of the control database."""

    def pending(self, model: str) -> Sequence[Pending]:
        """The model's decisions with unconfirmed actions, in order."""
        ...

    def do_control(self, model: str, n: int, action: int, what: Action) -> Effect:
        """Do and confirm one control action in one transaction; the confirmed effect when it was done before."""
        ...

    def mirror_turn(self, model: str, where: str) -> AbstractContextManager[bool]:
        """Gives one process at a time the turn at one mirror of a model; False when it is not to be had soon."""
        ...

    def confirm(self, model: str, n: int, action: int, what: Action, detail: str) -> Effect:
        """Write down that a mirror's action is done."""
        ...


def execute(store: EffectStore, mirrors: Mapping[str, Mirror], model: str) -> list[Effect]:
    """Do every unconfirmed action of the model's decisions; `mirrors` by target (other targets are left alone).

    Returns what was done and what failed.
    Raises only for the control database itself. A failed mirror stays unconfirmed, and later actions on the same
    target wait for it, so that a mirror never goes back in time.
    """
    effects = [
        store.do_control(line.model, line.n, index, line.actions[index])
        for line in store.pending(model)
        for index in line.open
        if target(line.actions[index]) == "control"
    ]
    open_targets = {target(line.actions[index]) for line in store.pending(model) for index in line.open}
    for where, mirror in mirrors.items():
        if where in open_targets:
            with store.mirror_turn(model, where) as is_mine:
                # Where somebody else is at it, the next run does what they leave over.
                effects += _reflect(store, where, mirror, store.pending(model)) if is_mine else []
    return effects


def _reflect(store: EffectStore, where: str, mirror: Mirror, pending: Sequence[Pending]) -> list[Effect]:
    effects = []
    failed: set[str] = set()
    for line in pending:
        for index in line.open:
            action = line.actions[index]
            whom = action.to if isinstance(action, Notify) else ""  # one receiver's outage is not the others'
            if target(action) == where and whom not in failed:
                effects.append(_mirror(store, mirror, line, index, action))
                if not effects[-1].done:
                    failed.add(whom)
    return effects


def _mirror(store: EffectStore, mirror: Mirror, line: Pending, index: int, action: Action) -> Effect:
    try:
        detail = mirror(action, f"{line.id}/{index}")
    except (SlipwayError, OSError) as error:
        _log.warning("%s action %d (%s) is not done: %s", line.id, index, kind(action), error)
        return Effect(decision_id=line.id, action=index, kind=kind(action), done=False, detail=str(error))
    return store.confirm(line.model, line.n, index, action, detail)


def kind(action: Action) -> str:
    """The action's name as the record spells it."""
    return str(action.__struct_config__.tag)
