"""A subject's rows in the lake: found and removed, table by table.

Datasets, views, quarantine and batch scores lose the rows. Tables of the inference log, its own quarantine among them,
keep them without payload: ids, counters, scores and truths are what evidence is folded from and completeness is counted
by; nothing reads a blanked payload as anything but one that was not sampled.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipelines.adapters.delta_lake import DeltaLake, connect
from pipelines.adapters.lake_maintenance import delete, merge, update
from pipelines.collect import quarantine
from pipelines.datasets.subject import Subject, quoted

FOLDERS = ("datasets", "features", "quarantine", "scores")
"""The folders of the lake whose tables may hold a subject's rows, beside the inference log."""
ASSIGNMENT, RESPONSE = "inference/assignment", "inference/response"

_TELLING_CHARS = 6
"""A shorter text may stand in another one by chance."""
_CHUNK = 200
_EVENT = ("gateway", "worker", "epoch", "n")
_NULL = "CAST(NULL AS VARCHAR)"


def rows_of(lake: DeltaLake, table: str, subject: Subject) -> int:
    """How many rows of a table are the subject's."""
    found = _selected(lake, table, subject)
    return sum(lake.read(table, [_first_column(lake, table)], where).num_rows for where in found)


def remove(lake: DeltaLake, table: str, subject: Subject) -> int:
    """Delete the subject's rows from a table, or their payload; how many there were."""
    found = _selected(lake, table, subject)
    if table == quarantine.TABLE:
        nothing = {"row": _NULL, "payload": "CAST(NULL AS BYTEA)"}
        return sum(update(lake, table, where, nothing) for where in found)
    return sum(delete(lake, table, where) for where in found)


def tables(lake: DeltaLake) -> list[str]:
    """The lake's tables that `rows_of` and `remove` are for: all that may hold the subject, but the log's events."""
    found = [table for folder in FOLDERS for table in lake.tables(folder)]
    return [*found, quarantine.TABLE] if lake.exists(quarantine.TABLE) else found


def _first_column(lake: DeltaLake, table: str) -> str:
    return str(lake.schema(table).names[0])


def _selected(lake: DeltaLake, table: str, subject: Subject) -> list[str]:
    """Conditions that select the subject's rows, each row once."""
    folder = table.partition("/")[0]
    if table == quarantine.TABLE:
        return _one_of("row", [text for text in _texts(lake, table) if _worded(text, subject)])
    if folder == "quarantine":
        return _one_of("row", [text for text in _texts(lake, table) if _told(text, subject)])
    if folder == "scores":
        telling = [text for text in subject.texts if len(text) >= _TELLING_CHARS]
        ids = lake.read(table, ["request_id"]).column("request_id").to_pylist() if telling else []
        return _one_of("request_id", sorted({name for name in ids if any(text in name for text in telling)}))
    where = subject.where(lake.schema(table))
    return [where] if where else []


def _one_of(column: str, values: Sequence[str]) -> list[str]:
    parts = [values[at : at + _CHUNK] for at in range(0, len(values), _CHUNK)]
    return [f'"{column}" IN ({", ".join(map(quoted, part))})' for part in parts]


def _texts(lake: DeltaLake, table: str) -> list[str]:
    """The rows in a quarantine as text, each once."""
    return sorted(set(lake.read(table, ["row"]).column("row").drop_null().to_pylist()))


def _told(text: str, subject: Subject) -> bool:
    """Whether a row in quarantine is the subject's: by its columns, or, where it cannot be read, by a word of it."""
    try:
        row = json.loads(text)
    except ValueError:
        return _worded(text, subject)
    return isinstance(row, dict) and subject.marks({name: [value] for name, value in row.items()})[0]


def _worded(text: str, subject: Subject) -> bool:
    """Whether a text has the subject's keys among its words."""
    return all(any(_holds(text, one) for one in texts) for texts in subject.keys.values())


def _holds(text: str, word: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text) is not None


# --- the inference log ------------------------------------------------------------------------------------------------


def requests_of(lake: DeltaLake, model: str, inputs: Iterable[Mapping[str, str]], subject: Subject) -> pa.Table:
    """The model's requests about the subject that still tell of it: event id, `request_id`, `rollout_id`.

    inputs: the request inputs that carry the keys, by key; several where releases differ. A request is also the
    subject's when its randomisation unit is.
    """
    texts = sorted({text for texts in subject.keys.values() for text in texts})
    within = " OR ".join(f"contains(inputs, {quoted(json.dumps(text, ensure_ascii=False)[1:-1])})" for text in texts)
    units = f"unit IN ({', '.join(map(quoted, subject.texts))})" if subject.texts else "false"
    columns = ", ".join((*_EVENT, "request_id", "rollout_id"))
    with connect() as connection:
        lake.bind(connection, "assignment", ASSIGNMENT)
        found = connection.execute(
            f"SELECT {columns}, inputs, unit FROM assignment WHERE model = $model AND ({within} OR {units})",
            {"model": model},
        ).fetch_arrow_table()
    kept = []
    for text, unit in zip(found.column("inputs").to_pylist(), found.column("unit").to_pylist(), strict=True):
        told = text is not None and any(holds_subject(text, each, subject) for each in inputs)
        kept.append(told or unit in subject.texts)
    return found.filter(pa.array(kept, pa.bool_())).drop_columns(["inputs", "unit"])


def holds_subject(inputs: str, names: Mapping[str, str], subject: Subject) -> bool:
    """Whether any row of a request's logged inputs is the subject's."""
    columns: dict[str, list[Any]] = json.loads(inputs)
    return any(subject.marks(columns, names))


def blank_requests(lake: DeltaLake, model: str, requests: pa.Table, subject: Subject, erasure: str) -> None:
    """Take the payload from requests and their answers: inputs, features, outputs, trace, and the subject as a unit.

    A unit becomes the erasure's name: still one and the same. Answers go first: they are found by the requests.
    """
    if not requests.num_rows:
        return
    mine = f"t.model = {quoted(model)}"
    if lake.exists(RESPONSE):
        asked = pa.table({"request_id": requests.column("request_id").unique()})
        payload = "(t.features IS NOT NULL OR t.outputs IS NOT NULL)"
        on = f"{mine} AND t.request_id = s.request_id AND {payload}"
        merge(lake, RESPONSE, asked, on, {"features": _NULL, "outputs": _NULL})
    same = " AND ".join(f"t.{name} = s.{name}" for name in _EVENT)
    unit = "t.unit"
    if subject.texts:
        units = ", ".join(map(quoted, subject.texts))
        unit = f"CASE WHEN t.unit IN ({units}) THEN {quoted(erasure)} ELSE t.unit END"
    changes = {"inputs": _NULL, "traceparent": _NULL, "unit": unit}
    merge(lake, ASSIGNMENT, requests.select(list(_EVENT)), f"{mine} AND {same}", changes)
