"""Jobs of parity: logged feature values against the lake's point-in-time rows, for a rollout, a model or a view."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.adapters.delta_lake import MICROS_UTC, DeltaLake, connect, open_lake
from pipelines.contracts.clocks import from_us
from pipelines.contracts.errors import ContractError, NotFoundError, NotYetError
from pipelines.contracts.release import Manifest, ViewPin
from pipelines.features import parity
from pipelines.features.lake_rows import around
from pipelines.features.parity import Bars, ParityReport, Read, Value, ViewParity
from pipelines.rollout.feature_terms import FeatureTerms, view_name
from pipelines.settings import Settings
from pipelines.spec.loading import load_model, load_view
from pipelines.wiring import feature_terms, features, requests_and_labels
from pipelines.wiring.scoring import load_release

_ASKED = """
    SELECT request_id, epoch_us(event_time), inputs, challenger FROM assignment
    WHERE model = $model AND NOT duplicate AND ($rollout = '' OR (rollout_id = $rollout AND stage = $stage))
    ORDER BY {order} LIMIT $most
"""
_ANSWERED = """
    SELECT request_id, release, features, degraded FROM response JOIN asked USING (request_id)
    WHERE model = $model AND status <> 'error' AND ($rollout = '' OR (rollout_id = $rollout AND release = challenger))
    ORDER BY seq
"""
REPORT = pa.schema(
    [
        ("made", MICROS_UTC),
        ("rollout_id", pa.string()),
        ("stage", pa.string()),
        ("digest", pa.string()),
        ("verdict", pa.string()),
        ("document", pa.string()),
    ]
)


class Logged(NamedTuple):
    """One request: when it was asked (event time), its inputs and reads by view, a value a row each."""

    asked_us: int
    inputs: dict[str, list[Value]]
    reads: dict[str, _ViewRead]


class _ViewRead(NamedTuple):
    names: list[str]
    stamps: list[int | None]
    values: list[list[Value]]
    why: str


def table_of(model: str) -> str:
    """The lake table of a model's parity reports."""
    return f"parity/{model}"


def of_stage(
    settings: Settings, model: str, rollout_id: str, stage: str, terms: FeatureTerms | None = None
) -> ParityReport:
    """Compare the requests of one stage of a rollout: a sample of them that depends on their ids alone.

    What the challenger reads is compared; a view that the champion alone reads is no reason to hold the challenger.
    `terms`: what is frozen into the rollout's plan; without them, what the specs say now.
    """
    return _measure(settings, model, rollout_id, stage, terms=terms)


def of_model(settings: Settings, model: str) -> ParityReport:
    """Compare the model's newest requests. Raises NotFoundError naming the nearest model."""
    load_model(settings.include_dir, model)
    return _measure(settings, model)


def of_view(settings: Settings, view: str) -> list[ParityReport]:
    """Compare the newest requests of every model that uses the view, this view alone. Raises NotFoundError."""
    from pipelines.wiring.projects import check

    load_view(settings.include_dir, view)
    models = check(settings).specs.models
    users = sorted(name for name, spec in models.items() if any(use.view == view for use in spec.views))
    return [_measure(settings, model, only=view) for model in users]


def keep(settings: Settings, report: ParityReport, made_us: int) -> None:
    """Write the report into the lake, under its digest, once."""
    lake, table = open_lake(settings), table_of(report.model)
    if lake.exists(table) and lake.read(table, ["digest"], f"digest = '{report.digest}'").num_rows:
        return
    row = {
        "made": from_us(made_us),
        "rollout_id": report.rollout_id,
        "stage": report.stage,
        "digest": report.digest,
        "verdict": report.verdict,
        "document": report.to_json(),
    }
    lake.append(table, pa.Table.from_pylist([row], schema=REPORT))


def kept(settings: Settings, model: str, rollout_id: str) -> list[ParityReport]:
    """The kept reports of a rollout, oldest first."""
    lake, table = open_lake(settings), table_of(model)
    if not lake.exists(table):
        return []
    rows = lake.read(table, where=f"rollout_id = '{rollout_id}'").sort_by("made")
    return [parity.from_json(text) for text in rows.column("document").to_pylist()]


def load(settings: Settings, model: str, digest: str) -> ParityReport:
    """A kept report by digest. Raises NotFoundError; ContractError when it is not what its digest names."""
    lake, table = open_lake(settings), table_of(model)
    rows = lake.read(table, ["document"], f"digest = '{digest}'") if lake.exists(table) else None
    if rows is None or not rows.num_rows:
        raise NotFoundError("parity report", got=f"{model} {digest[:12]}", expected=f"one in {table}")
    report = parity.from_json(rows.column("document")[0].as_py())
    if report.digest != digest:
        raise ContractError("parity report", got=report.digest[:12], expected=digest[:12], hint="It was changed.")
    return report


def _measure(
    settings: Settings,
    model: str,
    rollout_id: str = "",
    stage: str = "",
    *,
    only: str | None = None,
    terms: FeatureTerms | None = None,
) -> ParityReport:
    lake = open_lake(settings)
    gate = terms or feature_terms.of_now(settings, model, ())
    manifests: dict[str, Manifest] = {}
    asked, unlogged = _read_log(settings, lake, model, rollout_id, stage, gate.sample, manifests)
    pins: dict[str, ViewPin] = {}
    for manifest in manifests.values():
        for pin in manifest.views:
            pins[pin.view] = _joined(pins.get(pin.view), pin)
    views, versions = [], {}
    terms = terms or feature_terms.of_now(settings, model, pins)
    for name in sorted(pins):
        if only is not None and view_name(name) != only:
            continue
        table = features.table_of(name)
        if lake.exists(table):
            versions[name] = lake.version(table) or 0
        views.append(_view(lake, pins[name], asked, versions.get(name), terms.bars(name)))
    if gate.inputs and only is None:
        views += _inputs(settings, model, asked)
    times = [one.asked_us for one in asked.values()]
    return ParityReport(
        model=model,
        rollout_id=rollout_id,
        stage=stage,
        releases=sorted(manifests),
        from_us=min(times, default=0),
        until_us=max(times, default=0),
        requests=len(asked),
        unlogged=unlogged,
        lake=versions,
        views=views,
    )


def _joined(one: ViewPin | None, other: ViewPin) -> ViewPin:
    """A view as two releases read it: the features of both."""
    if one is None:
        return other
    return msgspec.structs.replace(one, features=list(dict.fromkeys([*one.features, *other.features])))


def _read_log(
    settings: Settings,
    lake: DeltaLake,
    model: str,
    rollout_id: str,
    stage: str,
    most: int,
    manifests: dict[str, Manifest],
) -> tuple[dict[str, Logged], int]:
    """Requests by id with what their answers read, and how many have no features logged. Fills in the manifests."""
    if not (lake.exists("inference/assignment") and lake.exists("inference/response")):
        return {}, 0
    given = {"model": model, "rollout": rollout_id, "stage": stage, "most": most}
    # A stage is sampled by the ids, so that the sample is the same whenever it is taken; else the newest count.
    order = "md5(request_id)" if rollout_id else "seq DESC"
    with connect() as connection:
        for kind in ("assignment", "response"):
            lake.bind(connection, kind, f"inference/{kind}")
        rows = connection.execute(_ASKED.format(order=order), given).fetchall()
        asked = {"request_id": [row[0] for row in rows], "challenger": [row[3] for row in rows]}
        connection.register("asked", pa.table({name: pa.array(column, pa.string()) for name, column in asked.items()}))
        answers = connection.execute(_ANSWERED, {"model": model, "rollout": rollout_id}).fetchall()
    decode = msgspec.json.decode
    found = {request_id: Logged(at, decode(inputs) if inputs else {}, {}) for request_id, at, inputs, _ in rows}
    read: set[str] = set()
    for request_id, release, logged, degraded in answers:
        if release not in manifests:
            manifests[release] = load_release(settings, release).manifest
        reads = decode(logged) if logged else []
        if not reads and manifests[release].views:
            continue
        read.add(request_id)
        troubles = dict(text.partition(": ")[::2] for text in decode(degraded or "[]"))
        for view, names, stamps, values in reads:
            kept = found[request_id].reads.setdefault(view, _ViewRead([], stamps, [], troubles.get(view, "")))
            for name, of_feature in zip(names, values, strict=True):
                if name not in kept.names:  # both arms see the same moment, and may take other features of it
                    kept.names.append(name)
                    kept.values.append(of_feature)
    answered = {row[0] for row in answers}
    return {name: one for name, one in found.items() if name in read}, len(answered - read)


def _view(lake: DeltaLake, pin: ViewPin, asked: Mapping[str, Logged], version: int | None, bars: Bars) -> ViewParity:
    """One view over every row of every request that read it."""
    keys: dict[str, list[Value]] = {name: [] for name in pin.entity.values()}
    rows: list[Read] = []
    for request_id, one in asked.items():
        if (logged := one.reads.get(pin.view)) is None:
            continue
        places = [logged.names.index(name) if name in logged.names else None for name in pin.features]
        for row, stamp_us in enumerate(logged.stamps):
            values = [None if at is None else logged.values[at][row] for at in places]
            # Without the lake's rows: everything that was found online is one that it does not have.
            rows.append(Read(request_id, one.asked_us, stamp_us, values, logged.why, expected_us=stamp_us))
            for name, column in keys.items():
                column.append(_at(one.inputs.get(name), row))
    if not rows or version is None:
        return parity.compare(pin.view, pin.features, bars, rows)
    types = {pin.entity[key]: _KEY_TYPES[kind] for key, kind in pin.join_key_types.items()}
    frame = pa.table(
        {name: pa.array(column, types[name]) for name, column in keys.items()}
        | {
            "at_us": pa.array([read.asked_us for read in rows], pa.int64()),
            "stamp_us": pa.array([read.stamp_us for read in rows], pa.int64()),
        }
    )
    with connect() as connection:
        lake.bind(connection, pin.view, features.table_of(pin.view), version)
        there = around(connection, pin.view, frame, pin.entity, pin.features, pin.ttl_us)
    lists = {name: there.column(name).to_pylist() for name in there.column_names}
    held = []
    for at, read in enumerate(rows):
        same = [lists[name][at] for name in pin.features] if lists["same_us"][at] is not None else None
        held.append(read._replace(expected_us=lists["expected_us"][at], same=same, due_us=lists["due_us"][at]))
    return parity.compare(pin.view, pin.features, bars, held)


_KEY_TYPES = {"string": pa.string(), "int64": pa.int64(), "int32": pa.int32()}


def _inputs(settings: Settings, model: str, asked: Mapping[str, Logged]) -> list[ViewParity]:
    """The inputs as sent against those of the `requests` transform, where it knows the request's id."""
    if not asked:
        return []
    try:
        table = requests_and_labels.requests(settings, model, max(one.asked_us for one in asked.values()))
    except (NotFoundError, NotYetError):  # no such datasets here: clients alone know what they ask
        return []
    spec = load_model(settings.include_dir, model)
    sent_names = {name for one in asked.values() for name in one.inputs}
    names = [name for name in spec.inputs if name in table.column_names and name in sent_names]
    ids = pa.array(list(asked), pa.string())
    known = table.filter(pc.is_in(table.column("request_id"), value_set=ids)).select(["request_id", *names])
    by_id = {row["request_id"]: [row[name] for name in names] for row in known.to_pylist()}
    sent = {key: [_at(one.inputs.get(name), 0) for name in names] for key, one in asked.items() if one.inputs}
    return [parity.compare_inputs(names, Bars(tolerance_rel=1e-6, wrong_share=0.001), sent, by_id)] if by_id else []


def _at(column: Sequence[Value] | None, row: int) -> Any:
    """A row's value; None for an input that was not sent."""
    return column[row] if column is not None and row < len(column) else None
