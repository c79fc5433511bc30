"""Erasure of a subject: what there is of it, the decision, and everything that goes.

The decision is written first, and names what was found. Each step after it may be repeated, so an erasure that was cut
short is finished by asking for it again: online rows, the lake's rows, the inference log's payloads, staged batches,
training sets, and at last the older versions of every table that held something.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import msgspec

from pipelines.adapters import subject_rows
from pipelines.adapters.control_db import control_db
from pipelines.adapters.delta_lake import DeltaLake, open_lake
from pipelines.adapters.erasure_record import ERASURES, ErasureRecord
from pipelines.adapters.feast_online import OnlineWriter, open_online
from pipelines.adapters.lake_maintenance import sweep
from pipelines.contracts.clocks import wall_us
from pipelines.contracts.errors import NotFoundError, SpecError, TransientError
from pipelines.contracts.pii import KeyedHash
from pipelines.datasets.erasure import Decided, Done, Erasure, TrainedOn, TrainedRelease, erasure_id
from pipelines.datasets.subject import Subject
from pipelines.features.online_layout import keys_of
from pipelines.settings import Settings
from pipelines.spec.loading import load_dataset, load_view, names
from pipelines.training import blanking
from pipelines.wiring import record_copy, tombstones
from pipelines.wiring.erasure_remains import remaining
from pipelines.wiring.rollout_gate import rollout_store
from pipelines.wiring.staged_rows import drop_staged
from pipelines.wiring.streams import streamed, take_turn

_PASSES = 3
"""How often rows that came in meanwhile are looked for, before somebody who goes on writing them is to be stopped."""
_TELLING_CHARS = 6


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What there is of a subject; the fields are those of `Decided`."""

    tables: dict[str, int]
    log: dict[str, dict[str, int]]
    online: int
    training_sets: list[TrainedOn]
    releases: list[TrainedRelease]

    @property
    def anything(self) -> bool:
        """Whether there is anything to delete."""
        return bool(self.tables or self.log or self.online or self.training_sets)


def subject_of(settings: Settings, entity: str, values: Sequence[str]) -> Subject:
    """The subject that a person names: an entity of the views, or a personal column of the datasets, and its key.

    values: the key's value; `name=value` for each where the entity has several keys. Raises NotFoundError, SpecError;
    ContractError without the installation's key.
    """
    known = _entities(settings)
    if entity not in known:
        raise NotFoundError("entity, or personal column of a dataset", got=entity, expected=sorted(known))
    keys = known[entity]
    if len(keys) == 1 and len(values) == 1:
        given = {keys[0]: values[0].removeprefix(f"{keys[0]}=")}
    else:
        given = {name: value for name, _, value in (text.partition("=") for text in values)}
    if set(given) != set(keys) or not all(given.values()):
        raise SpecError(
            f"key of entity {entity}",
            got=f"{len(values)} --key",
            expected=" ".join(f"--key {name}=..." for name in keys) if len(keys) > 1 else "one --key",
        )
    return Subject.of(entity, given, KeyedHash(settings.pii_key.get_secret_value()))


def _entities(settings: Settings) -> dict[str, list[str]]:
    """The key columns of each entity, and of each personal column by its own name."""
    found: dict[str, list[str]] = {}
    for name in names(settings.include_dir, "datasets"):
        columns = load_dataset(settings.include_dir, name).columns
        found |= {column: [column] for column, of in columns.items() if of.pii}
    for name in names(settings.include_dir, "features"):
        entity = load_view(settings.include_dir, name).entity
        found[entity.name] = sorted(entity.keys)
    return found


def find(settings: Settings, subject: Subject) -> Found:
    """What there is of a subject in the lake, online and in training sets. Changes nothing."""
    lake, inputs_of = open_lake(settings), _inputs(settings, subject)
    tables = {}
    for table in subject_rows.tables(lake):
        if count := subject_rows.rows_of(lake, table, subject):
            tables[table] = count
    log: dict[str, dict[str, int]] = {}
    for model in _models(lake):
        requests = subject_rows.requests_of(lake, model, inputs_of(model), subject)
        for rollout in requests.column("rollout_id").to_pylist():
            of_model = log.setdefault(model, {})
            of_model[rollout or ""] = of_model.get(rollout or "", 0) + 1
    with open_online(settings) as online:
        entities = len(_online(online, subject))
    sets = [
        TrainedOn(digest=digest, model=model, rows=rows)
        for digest, model, rows in blanking.holding(settings.training_sets, subject, inputs_of)
    ]
    held = {one.digest for one in sets}
    releases = [
        TrainedRelease(model=row.model, digest=row.digest, semver=row.semver, training_set=row.training_set)
        for row in control_db(settings).releases()
        if row.training_set in held
    ]
    return Found(tables=tables, log=log, online=entities, training_sets=sets, releases=releases)


def erase(
    settings: Settings, subject: Subject, reason: str, actor: str, step: Callable[[str], None] = lambda _: None
) -> Erasure | None:
    """Erase a subject, or finish what was begun; None when there is nothing of it.

    step: told before each step. Raises SpecError for a reason that names the subject, TransientError while another
    process erases, feeds a stream, or goes on writing the subject's rows.
    """
    for texts in subject.keys.values():
        if any(len(text) >= _TELLING_CHARS and text in reason for text in texts):
            raise SpecError("reason", got="one that holds the key", expected="one that may be kept for good")
    keyed = KeyedHash(settings.pii_key.get_secret_value())
    stones = subject.tombstones(keyed)
    with _turns(settings, subject):
        record = ErasureRecord(control_db(settings))
        begun = [one for one in record.all() if one.done is None and one.decided.tombstones == stones]
        found = find(settings, subject)
        if not begun and not found.anything:
            record_copy.copy(settings, rollout_store(settings), ERASURES)
            return None
        if begun:
            n, decided = begun[0].n, begun[0].decided
        else:
            step("decide")
            decided = Decided(
                entity=subject.entity,
                keys=list(subject.keys),
                tombstones=stones,
                reason=reason,
                actor=actor,
                at_us=wall_us(),
                **msgspec.structs.asdict(found),
            )
            n = record.add(decided)
        for _ in range(_PASSES):
            _remove(settings, subject, found, erasure_id(n), step)
            _blank_sets(settings, subject, [*decided.training_sets, *found.training_sets], erasure_id(n), step)
            _sweep(settings, {*_touched(decided), *_touched(found)}, step)
            found = find(settings, subject)
            if not found.anything:
                break
        else:
            hint = "Stop what writes them (a DAG run that is under way), and ask for the erasure again."
            raise TransientError(f"{erasure_id(n)}: rows come back", got=sorted(_touched(found)), hint=hint)
        step("done")
        now_us = wall_us()
        done = Done(erasure=n, at_us=now_us, remaining=remaining(settings, subject, decided, now_us))
        record.add(done)
        step("copy")
        record_copy.copy(settings, rollout_store(settings), ERASURES)
    return Erasure(n=n, decided=decided, done=done)


def erasures(settings: Settings) -> list[Erasure]:
    """Every erasure, oldest first."""
    return ErasureRecord(control_db(settings)).all()


def of_releases(settings: Settings) -> dict[str, list[str]]:
    """The erasures that touched what each release was fitted on, by its digest."""
    found: dict[str, list[str]] = {}
    for erasure in erasures(settings):
        for one in erasure.decided.releases:
            found.setdefault(one.digest, []).append(erasure.id)
    return found


@contextmanager
def _turns(settings: Settings, subject: Subject) -> Iterator[None]:
    """One erasure at a time, and no stream that still holds rows of the subject in memory."""
    with ExitStack() as held:
        if not held.enter_context(control_db(settings).turn("erasure")):
            raise TransientError("erasure", got="another one is under way", hint="Wait for it, then ask again.")
        for dataset in streamed(settings):
            if set(subject.keys) <= set(load_dataset(settings.include_dir, dataset).columns):
                held.callback(take_turn(settings, dataset).close)
        yield


def _remove(settings: Settings, subject: Subject, found: Found, erasure: str, step: Callable[[str], None]) -> None:
    lake, inputs_of = open_lake(settings), _inputs(settings, subject)
    step("online")
    with open_online(settings) as online:
        online.forget(_online(online, subject))
    for table in found.tables:
        step(table)
        subject_rows.remove(lake, table, subject)
    for model in found.log:
        step(f"log of {model}")
        requests = subject_rows.requests_of(lake, model, inputs_of(model), subject)
        subject_rows.blank_requests(lake, model, requests, subject, erasure)
    step("staged")
    drop_staged(settings.root / "stage", subject)


def _blank_sets(
    settings: Settings, subject: Subject, sets: Sequence[TrainedOn], erasure: str, step: Callable[[str], None]
) -> None:
    for digest, model in dict.fromkeys((one.digest, one.model) for one in sets):
        step(f"training set {digest[:12]}")
        inputs = tombstones.inputs_of(settings, model, tuple(subject.keys))
        blanking.blank(settings.training_sets / digest, subject, inputs, erasure)


def _sweep(settings: Settings, tables: set[str], step: Callable[[str], None]) -> None:
    lake = open_lake(settings)
    for table in sorted(tables):
        if lake.exists(table):
            step(f"sweep {table}")
            sweep(lake, table)


def _touched(what: Found | Decided) -> list[str]:
    """The lake's tables whose older versions hold the subject."""
    log = [subject_rows.ASSIGNMENT, subject_rows.RESPONSE] if what.log else []
    return [*what.tables, *log]


def _models(lake: DeltaLake) -> list[str]:
    """The models that the inference log tells of."""
    if not lake.exists(subject_rows.ASSIGNMENT):
        return []
    return sorted(set(lake.read(subject_rows.ASSIGNMENT, ["model"]).column("model").unique().to_pylist()))


def _inputs(settings: Settings, subject: Subject) -> Callable[[str], list[dict[str, str]]]:
    """From a model to the inputs that carry the subject's keys."""
    return lambda model: tombstones.inputs_of(settings, model, tuple(subject.keys))


def _online(online: OnlineWriter, subject: Subject) -> list[bytes]:
    """The serialised keys of the subject's entities in the online store."""
    found = set()
    for key in online.entities():
        try:
            columns = {name: [value] for name, value in keys_of(key).items()}
        except ValueError:  # not an entity's: the store holds other things, too
            continue
        if subject.marks(columns)[0]:
            found.add(key)
    return sorted(found)
