"""The rows that a stream's views are made of, in memory: what their datasets hold, as far back as is needed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.adapters.delta_lake import connect, open_lake
from pipelines.datasets.conform import SQL_TYPES, key_sql
from pipelines.datasets.messages import NUMBER
from pipelines.features import engine
from pipelines.features.engine import Span
from pipelines.settings import Settings
from pipelines.spec.dataset import DatasetSpec
from pipelines.spec.view import ViewSpec
from pipelines.wiring import datasets

FAR_US = 253_370_764_800_000_000
"""The year 9999: no row is known later."""
SLACK_US = 3_600_000_000
"""How much longer than needed rows are kept, so that late partitions do not send for older ones each time."""


class StreamState:
    """`raw`: the stream's dataset. Times are naive UTC there, as transforms see them."""

    def __init__(self, settings: Settings, spec: DatasetSpec, views: Sequence[ViewSpec], watermark_us: int) -> None:
        self.settings = settings
        self.spec = spec
        self._watermark_us = watermark_us
        self._times = {"known_at", *(name for name, column in spec.columns.items() if column.type == "timestamp")}
        self._reach_us = max(view.look_back.us + 4 * view.publish_every.us for view in views) + watermark_us + SLACK_US
        self.connection = connect()
        self._lake = open_lake(settings)
        self._others: dict[str, int | None] = {}
        self._from_us: int | None = None
        self._load(None)

    def close(self) -> None:
        """Let go of the rows."""
        self.connection.close()

    @property
    def newest_us(self) -> int | None:
        """The newest time of knowledge; None for no row."""
        found = self.connection.execute("SELECT epoch_us(max(known_at)) FROM raw").fetchone()
        return None if found is None else found[0]

    def repeated(self, rows: pa.Table) -> set[int]:
        """Numbers of the rows whose key is published, or came before in the same rows."""
        oldest = pc.min(rows.column("known_at")).cast(pa.int64()).as_py()
        # Sent again, a row may be known later by the watermark than it was the first time.
        if self._from_us is not None and oldest is not None and oldest - self._watermark_us <= self._from_us:
            self._load(oldest - self._watermark_us - SLACK_US)
        self.connection.register("__rows", rows)
        key = key_sql(self.spec)
        found = self.connection.execute(
            f"SELECT {NUMBER} FROM (SELECT {NUMBER}, {key} AS key, row_number() OVER (PARTITION BY {key} "
            f"ORDER BY {NUMBER}) AS nth FROM __rows) WHERE nth > 1 OR key IN (SELECT {key} FROM raw)"
        ).fetchall()
        self.connection.unregister("__rows")
        return {number for (number,) in found}

    def add(self, rows: pa.Table) -> None:
        """Take up rows that are published now."""
        self.connection.register("__rows", rows)
        columns = ", ".join(
            f'CAST("{name}" AS TIMESTAMP)' if name in self._times else f'"{name}"'
            for name in [*self.spec.columns, "known_at", "day"]
        )
        self.connection.execute(f"INSERT INTO raw SELECT {columns} FROM __rows")
        self.connection.unregister("__rows")

    def prune(self) -> None:
        """Forget rows that no new row can touch any more."""
        if (newest := self.newest_us) is not None:
            self._from_us = max(self._from_us or 0, newest - self._reach_us)
            self.connection.execute(f"DELETE FROM raw WHERE epoch_us(known_at) <= {self._from_us}")

    def expose(self, view: ViewSpec, span: Span, keys: pa.Table | None) -> None:
        """The view's datasets by their names, as a build of this span sees them; of `raw` these keys' rows alone."""
        for name in view.datasets:
            after_us, known_us = engine.known_span_us(view, name, span)
            if name == self.spec.name:
                if after_us is not None and self._from_us is not None and after_us < self._from_us:
                    self._load(after_us - SLACK_US)
                relation = "raw"
            else:
                relation = self._other(name)
            where = [f"epoch_us(known_at) <= {known_us}"]
            if after_us is not None:
                where.append(f"epoch_us(known_at) > {after_us}")
            if keys is not None and name == self.spec.name:
                listed = ", ".join(f'"{key}"' for key in keys.column_names)
                self.connection.register("__keys", keys)
                where.append(f"({listed}) IN (SELECT ({listed}) FROM __keys)")
            self.connection.execute(
                f'CREATE OR REPLACE VIEW "known {name}" AS SELECT * FROM "{relation}" WHERE {" AND ".join(where)}'
            )
            engine.bind_available(self.connection, view, f"known {name}", name, span)

    def rows_of(self, view: ViewSpec) -> dict[str, pa.Table]:
        """What `expose` has made visible, for an engine elsewhere."""
        return {
            name: self.connection.execute(f'SELECT * FROM "known {name}"').fetch_arrow_table() for name in view.datasets
        }

    def _load(self, from_us: int | None) -> None:
        """Rows known after `from_us`; None: as many as a new row can touch."""
        name = datasets.table_of(self.spec.name)
        if not self._lake.exists(name):
            types = {column: SQL_TYPES[declared.type] for column, declared in self.spec.columns.items()}
            types |= dict.fromkeys(self._times, "TIMESTAMP") | {"day": "DATE"}
            empty = ", ".join(f'"{column}" {kind}' for column, kind in types.items())
            self.connection.execute(f"CREATE OR REPLACE TABLE raw ({empty})")
            return
        if from_us is None:
            newest = self._lake.applied(name, datasets.INGEST)
            from_us = None if newest is None else newest - self._reach_us
        datasets.bind(self.settings, self.connection, self.spec.name, FAR_US, from_us, as_name="__stored")
        self.connection.execute("CREATE OR REPLACE TABLE raw AS SELECT * FROM __stored")
        self.connection.execute("DROP VIEW __stored")
        self._from_us = from_us

    def _other(self, name: str) -> str:
        """A table of another dataset's rows, read again when the lake has a newer version."""
        version = self._lake.version(datasets.table_of(name))
        if name not in self._others or self._others[name] != version:
            datasets.bind(self.settings, self.connection, name, FAR_US, as_name="__stored")
            self.connection.execute(f'CREATE OR REPLACE TABLE "other {name}" AS SELECT * FROM __stored')
            self.connection.execute("DROP VIEW __stored")
            self._others[name] = version
        return f"other {name}"


def distinct_keys(rows: pa.Table, keys: Iterable[str]) -> pa.Table:
    """The keys of the rows, each once, without those that have a null."""
    return rows.select(list(keys)).group_by(list(keys)).aggregate([]).drop_null()


def frontier_us(view: ViewSpec, known_us: int) -> int:
    """When a row known then can be read at the latest."""
    step = view.publish_every.us
    return -(-known_us // step) * step + step
