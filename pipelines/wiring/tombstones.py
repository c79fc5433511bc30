"""What keeps erased subjects away: rows and requests that come later are held against the tombstones.

A subject that was erased stays erased: what a source gives again, late or from a backup, is dropped on its way in.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.adapters.control_db import control_db
from pipelines.adapters.erasure_record import ErasureRecord
from pipelines.collect.quarantine import Refused
from pipelines.contracts import release
from pipelines.contracts.errors import NotFoundError, SlipwayError, SpecError
from pipelines.contracts.pii import KeyedHash
from pipelines.datasets.subject import Tombstones
from pipelines.settings import Settings
from pipelines.spec.loading import load_model

REMEMBERED = 100_000
"""Requests without payload whose answers may still come, in the collector's memory."""


def load(settings: Settings) -> Tombstones:
    """The installation's tombstones. Raises ContractError when there are some, and the key of their hash is missing."""
    stones: dict[tuple[str, ...], dict[str, str]] = {}
    for erasure in ErasureRecord(control_db(settings)).all():
        known = stones.setdefault(tuple(erasure.decided.keys), {})
        for stone in erasure.decided.tombstones:
            known.setdefault(stone, erasure.id)
    return Tombstones(KeyedHash(settings.pii_key.get_secret_value()) if stones else None, stones)


def inputs_of(settings: Settings, model: str, keys: tuple[str, ...]) -> list[dict[str, str]]:
    """The request inputs that carry these keys, by key: as each release of the model looks them up, and as its spec."""
    found = [{key: key for key in keys}]
    for row in control_db(settings).releases(model):
        found += [dict(pairs) for pairs in _pinned(settings.releases, row.digest)]
    try:
        spec = load_model(settings.include_dir, model)
        found += [dict(use.entity) for use in spec.views]
    except (NotFoundError, SpecError):  # its releases alone tell, then
        pass
    whole = [{key: pairs[key] for key in keys} for pairs in found if set(keys) <= set(pairs)]
    return [pairs for at, pairs in enumerate(whole) if pairs not in whole[:at]]


@lru_cache(maxsize=1024)
def _pinned(releases: Path, digest: str) -> tuple[tuple[tuple[str, str], ...], ...]:
    """The entities of a release's views: its manifest never changes."""
    try:
        manifest = release.verify(releases / digest, digest)
    except SlipwayError:  # not on this machine
        return ()
    return tuple(tuple(pin.entity.items()) for pin in manifest.views)


class ErasedRequests:
    """Takes the payload of erased subjects from what the collector is about to write."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._record = ErasureRecord(control_db(settings))
        self._newest = 0
        self._stones = Tombstones(None, {})
        self._blanked: OrderedDict[tuple[str, str], None] = OrderedDict()

    def changed(self) -> bool:
        """Whether the record has grown since it was asked last; from then on its tombstones are in force."""
        newest = self._record.newest()
        if newest == self._newest:
            return False
        self._newest, self._stones = newest, load(self._settings)
        return True

    def blank(self, tables: dict[str, pa.Table]) -> dict[str, pa.Table]:
        """The tables of a batch, with null in the place of inputs, features, outputs and trace of erased subjects."""
        if not self._stones:
            return tables
        blanked = dict(tables)
        if "assignment" in tables:
            blanked["assignment"] = self._assignments(tables["assignment"])
        if "response" in tables and self._blanked:
            rows = tables["response"]
            names = zip(rows.column("model").to_pylist(), rows.column("request_id").to_pylist(), strict=True)
            hit = pa.array([name in self._blanked for name in names], pa.bool_())
            blanked["response"] = _without(rows, hit, ("features", "outputs"))
        return blanked

    def withhold(self, refused: Sequence[Refused]) -> list[Refused]:
        """What goes into quarantine, without the payload where it tells of an erased subject."""
        return [
            msgspec.structs.replace(one, payload=None) if self._stones and self._is_told_by(one) else one
            for one in refused
        ]

    def _is_told_by(self, refused: Refused) -> bool:
        model = refused.claim("model")
        inputs = [
            pairs
            for keys in self._stones.key_names()
            for pairs in (inputs_of(self._settings, model, keys) if model.isidentifier() else [{k: k for k in keys}])
        ]
        unit = self._of_unit(refused.claim("unit") or None, inputs)
        return bool(unit or ("inputs" in refused.claims and self._tells(refused.claims["inputs"], inputs)))

    def _assignments(self, rows: pa.Table) -> pa.Table:
        inputs: dict[str, list[dict[str, str]]] = {}
        units, hit = rows.column("unit").to_pylist(), []
        models, ids = rows.column("model").to_pylist(), rows.column("request_id").to_pylist()
        for at, (model, text) in enumerate(zip(models, rows.column("inputs").to_pylist(), strict=True)):
            if model not in inputs:
                names = self._stones.key_names()
                inputs[model] = [pairs for keys in names for pairs in inputs_of(self._settings, model, keys)]
            by_unit = self._of_unit(units[at], inputs[model])
            by_input = text is not None and self._tells(json.loads(text), inputs[model])
            hit.append(bool(by_unit or by_input))
            units[at] = by_unit or units[at]
            if hit[-1]:
                self._blanked[model, ids[at]] = None
        while len(self._blanked) > REMEMBERED:
            self._blanked.popitem(last=False)
        named = rows.set_column(rows.column_names.index("unit"), "unit", pa.array(units, pa.string()))
        return _without(named, pa.array(hit, pa.bool_()), ("inputs", "traceparent"))

    def _of_unit(self, unit: str | None, inputs: list[dict[str, str]]) -> str | None:
        single = [next(iter(pairs)) for pairs in inputs if len(pairs) == 1]
        return self._stones.of({key: [unit] for key in single}).get(0) if unit is not None and single else None

    def _tells(self, columns: Any, inputs: list[dict[str, str]]) -> bool:
        """Whether inputs of a request may be an erased subject's."""
        try:
            return any(self._stones.of(columns, pairs) for pairs in inputs)
        except (AttributeError, TypeError, ValueError):  # no columns of one length: nobody can tell whose they are
            return True


def _without(rows: pa.Table, hit: pa.Array, columns: tuple[str, ...]) -> pa.Table:
    """The rows, with null in these columns where `hit`."""
    for name in columns:
        column = rows.column(name)
        blank = pc.if_else(hit, pa.scalar(None, column.type), column)
        rows = rows.set_column(rows.column_names.index(name), rows.schema.field(name), blank)
    return rows
