"""Jobs of a feature view: build its rows, check them, publish them to the lake, make them readable online.

Every job may be repeated and interrupted anywhere: a build covers the stamps after the last published one, and enters
the lake by a Delta transaction numbered with its last stamp.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.adapters.delta_lake import MICROS_UTC, connect, open_lake
from pipelines.adapters.feast_online import open_online
from pipelines.contracts.canonical import file_digest
from pipelines.contracts.clocks import from_us
from pipelines.contracts.errors import DataError, NotYetError
from pipelines.features import engine
from pipelines.features.engine import Span
from pipelines.features.publishing import Pending
from pipelines.settings import Settings
from pipelines.spec.loading import load_view, names
from pipelines.spec.view import ViewSpec
from pipelines.wiring import datasets, on_spark, view_checks

BUILD = "build"
CORRECTED = "corrected"
"""Keeps when rows that had been published were last made anew, in microseconds."""
STREAM = "stream"
"""Marks a table to which a stream has added: several rows may share keys and time, and the one created last counts. Its
number is the stamp up to which the stream had made the view readable online when it added rows last."""


class BuildRef(msgspec.Struct, frozen=True, kw_only=True):
    """Rows of one view by reference: `version` is its Feast name; the span of stamps is (after_us, until_us]."""

    view: str
    version: str
    as_of_us: int
    after_us: int | None
    until_us: int
    rows: int
    path: str
    digest: str
    empty: bool = False
    read: dict[str, int] = {}
    """The version of each dataset's table from which the rows were made."""


class PublishedView(msgspec.Struct, frozen=True, kw_only=True):
    """What a publication did; `delta_version` is the lake table's."""

    view: str
    version: str
    through_us: int
    rows: int
    delta_version: int
    digest: str


class Materialised(msgspec.Struct, frozen=True, kw_only=True):
    """What a materialisation did: values written, and up to which event time the view can now be read."""

    view: str
    version: str
    through_us: int
    values: int


def table_of(version: str) -> str:
    """The lake table of a view's Feast name."""
    return f"features/{version}"


def built_through(settings: Settings, version: str) -> int | None:
    """The stamp up to which a view is complete in the lake; None before its first publication."""
    return open_lake(settings).applied(table_of(version), BUILD)


def apply(settings: Settings) -> list[str]:
    """Enter the project's views into the Feast registry and fix where the sample lies. Returns their Feast names."""
    from pipelines.adapters import feast_registry

    datasets.sample_shift(settings)
    views = [load_view(settings.include_dir, name) for name in names(settings.include_dir, "features")]
    made = feast_registry.apply(settings, views)
    with open_online(settings) as online:
        for version in made:
            online.create(version)
    return made


def build(settings: Settings, view: str, as_of_us: int) -> BuildRef:
    """Compute the rows whose stamps lie after the last published one, up to `as_of_us` or as far as the data reach.

    Raises NotYetError when a dataset was never published.
    """
    spec = load_view(settings.include_dir, view)
    version = spec.feast_name(settings.include_dir)
    complete = []
    for name in spec.datasets:
        through = datasets.published_through(settings, name)
        if through is None:
            raise NotYetError(f"view {view}: dataset {name}", got="never published", hint=f"Run dataset.{name} first.")
        complete.append(through)
    until_us = engine.horizon_us(spec, as_of_us, complete)
    if spec.stream is not None:  # its rows are made as messages come: `pipelines.wiring.streams`
        until_us = built_through(settings, version) or 0
    span = Span(built_through(settings, version), until_us)
    read = dataset_versions(settings, spec)
    folder = settings.root / "stage" / version
    path = folder / f"{until_us}.parquet"
    if span.empty:
        return _ref(spec, version, as_of_us, span, path)
    rows = compute(settings, spec, span, created_us=as_of_us)
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows, path, compression="zstd")
    return msgspec.structs.replace(_ref(spec, version, as_of_us, span, path, rows.num_rows), read=read)


def dataset_versions(settings: Settings, spec: ViewSpec) -> dict[str, int]:
    """The version of each of the view's datasets in the lake; 0 for one without a table."""
    lake = open_lake(settings)
    return {name: lake.version(datasets.table_of(name)) or 0 for name in spec.datasets}


def read_mark(dataset: str) -> str:
    """Under which application a view's table keeps the version of a dataset that its rows are made of."""
    return f"read {dataset}"


def compute(settings: Settings, spec: ViewSpec, span: Span, created_us: int) -> pa.Table:
    """The view's rows with stamps in a span, from the lake's datasets, by the view's engine. Writes nothing."""
    if (spec.engine or settings.engine) == "spark":
        return on_spark.compute(settings, spec, span, created_us)
    with connect() as connection:
        for name in spec.datasets:
            after_us, known_us = engine.known_span_us(spec, name, span)
            datasets.bind(settings, connection, name, known_us, after_us, as_name=f"known {name}")
            engine.bind_available(connection, spec, f"known {name}", name, span)
        return engine.rows(connection, settings.include_dir, spec, span, created_us)


def check(settings: Settings, ref: BuildRef) -> int:
    """Hold the rows against the view's expectations and against the days before. Returns how many were checked.

    Raises DataError when any fails: nothing is published then, what is online stays, and the reason is kept.
    """
    if ref.empty:
        return 0
    spec = load_view(settings.include_dir, ref.view)
    return view_checks.check(settings, spec, ref.version, pq.read_table(ref.path), ref.path, ref.as_of_us)


def publish(settings: Settings, ref: BuildRef) -> PublishedView:
    """Append the rows to the lake as one commit that also says how far the view is now complete; once."""
    lake = open_lake(settings)
    table = table_of(ref.version)
    appended = None
    if not ref.empty:

        def missing(last_us: int | None) -> pa.Table:
            # Another run may have published a part of this span since it was built.
            made = _built(ref)
            if last_us is None or last_us == ref.after_us:
                return made
            return made.filter(pc.greater(made.column("event_timestamp"), pa.scalar(from_us(last_us), MICROS_UTC)))

        marks = {read_mark(name): version for name, version in ref.read.items()}
        appended = lake.advance(table, BUILD, ref.until_us, missing, partition_by=["day"], first_marks=marks)
    Path(ref.path).unlink(missing_ok=True)
    return PublishedView(
        view=ref.view,
        version=ref.version,
        through_us=lake.applied(table, BUILD) or ref.until_us,
        rows=appended or 0,
        delta_version=lake.version(table) or 0,
        digest=ref.digest,
    )


def materialise(settings: Settings, view: str, as_of_us: int) -> Materialised:
    """Make readable online what the lake has of the view up to `as_of_us`. Repeating is a no-op."""
    with Publisher(settings, [view]) as publisher:
        return publisher.materialise(view, as_of_us)


def refresh(settings: Settings, view: str, as_of_us: int) -> Materialised:
    """Build, check, publish and materialise."""
    ref = build(settings, view, as_of_us)
    check(settings, ref)
    publish(settings, ref)
    return materialise(settings, view, as_of_us)


class Publisher:
    """Makes views readable online, tick by tick. The DAG's task makes one for one tick; a replay keeps one for weeks.

    views: names; None for all of the project. ahead_us: how far a tick beyond what the lake has may take up data and
    build features in advance (they stay invisible until their stamps are due); None: it never does.
    """

    def __init__(self, settings: Settings, views: Iterable[str] | None = None, *, ahead_us: int | None = None) -> None:
        self.settings = settings
        chosen = names(settings.include_dir, "features") if views is None else list(views)
        self._specs = {name: load_view(settings.include_dir, name) for name in chosen}
        self._versions = {name: spec.feast_name(settings.include_dir) for name, spec in self._specs.items()}
        self._pending: dict[str, tuple[Pending, int]] = {}
        self._shown: dict[str, int] = {}
        self._corrected: set[str] = set()
        self._ahead_us = ahead_us
        self._online = open_online(settings)
        for version in self._versions.values():
            self._online.create(version)

    def __enter__(self) -> Publisher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the online store."""
        self._online.close()

    def tick(self, as_of_us: int) -> int:
        """Every view becomes readable up to `as_of_us`. Returns the number of values written."""
        return sum(self.materialise(name, as_of_us).values for name in self._specs)

    def materialise(self, view: str, as_of_us: int) -> Materialised:
        """One view becomes readable up to `as_of_us`. Raises NotYetError when it was never built."""
        version = self._versions[view]
        held = self._pending.get(view)
        if held is None or held[1] < as_of_us:
            held = self._pending[view] = self._load(view, as_of_us, held)
        pending, complete_us = held
        through_us = min(as_of_us, complete_us)
        rows = pending.take(through_us)
        # Without a new row the view is as fresh all the same: nothing has happened that it would show.
        if rows or through_us > self._shown.get(view, -1):
            self._online.write(version, pending.features, rows, through_us, correct=view in self._corrected)
            self._shown[view] = through_us
        values = len(rows) * len(pending.features)
        return Materialised(view=view, version=version, through_us=through_us, values=values)

    def _load(self, view: str, as_of_us: int, held: tuple[Pending, int] | None) -> tuple[Pending, int]:
        """The rows of a view that are in the lake and not yet online, and up to which stamp the lake has it."""
        spec, version = self._specs[view], self._versions[view]
        through_us = built_through(self.settings, version)
        if self._ahead_us is not None and (through_us is None or through_us < as_of_us):
            self._prepare(spec, as_of_us + self._ahead_us)
            through_us = built_through(self.settings, version)
        if through_us is None:
            raise NotYetError(f"view {view} ({version})", got="never built", hint=f"Run features.{view} first.")
        if held is not None and held[1] == through_us:
            return held
        online_us = self._online.through_us(version)
        newer = None
        if online_us is not None:
            self._shown[spec.name] = online_us
            lake, table = open_lake(self.settings), table_of(version)
            if online_us < (lake.applied(table, STREAM) or 0):
                # A stream writes online first: this store has lost what it had, be it of older stamps than it tells.
                self._corrected.add(spec.name)
            else:
                newer = f"day >= DATE '{from_us(online_us).date()}' AND event_timestamp > make_timestamptz({online_us})"
                if (lake.applied(table, CORRECTED) or 0) > online_us:
                    newer = f"({newer}) OR created_timestamp > make_timestamptz({online_us})"
                    self._corrected.add(spec.name)
        rows = open_lake(self.settings).read(table_of(version), where=newer)
        return Pending(
            spec, rows.sort_by([("event_timestamp", "ascending"), ("created_timestamp", "ascending")])
        ), through_us

    def _prepare(self, spec: ViewSpec, until_us: int) -> None:
        """What the DAGs of the view and of its datasets do, up to a time that has not come yet."""
        from pipelines.wiring import corrections  # is built on this module

        for name in spec.datasets:
            datasets.ingest(self.settings, name, until_us)
        corrections.amend(self.settings, spec.name, until_us)
        ref = build(self.settings, spec.name, until_us)
        check(self.settings, ref)
        publish(self.settings, ref)


def _built(ref: BuildRef) -> pa.Table:
    try:
        return pq.read_table(ref.path)
    except FileNotFoundError:
        hint = "Another run has cleared it away; build again."
        raise DataError(f"view {ref.view}: built rows", got=f"no {ref.path}", hint=hint) from None


def _ref(spec: ViewSpec, version: str, as_of_us: int, span: Span, path: Path, rows: int | None = None) -> BuildRef:
    return BuildRef(
        view=spec.name,
        version=version,
        as_of_us=as_of_us,
        after_us=span.after_us,
        until_us=span.until_us,
        rows=rows or 0,
        path=str(path),
        digest="" if rows is None else file_digest(path),
        empty=rows is None,
    )
