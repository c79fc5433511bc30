"""What is no event is set aside whole, is counted, and stops nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from pipelines.adapters.delta_lake import DeltaLake
from pipelines.cli.main import app
from pipelines.collect import numbering, quarantine, quarantine_table
from pipelines.collect.case import Case
from pipelines.collect.numbering import Counters
from pipelines.collect.tables import to_tables
from pipelines.contracts import events, segments
from pipelines.contracts.clocks import EARLIEST_US, LATEST_US
from pipelines.contracts.events import Assignment, EventId, Kpi, Label, Response
from pipelines.contracts.segments import Frame
from pipelines.contracts.streams import StreamKey
from pipelines.stats.evidence import Evidence
from pipelines.wiring import rollouts
from pipelines.wiring.collect import Collector, collect_all, verify_log
from pipelines.wiring.rollout_replay import replay
from tests.unit.collect.installation import Installation, copied
from tests.unit.collect.traffic import Worker


def label(n: int, **fields: Any) -> bytes:
    """A label's payload as event `n` of the worker, with some fields otherwise."""
    whole = {
        "kind": "label", "id": ["gw0", 0, 1, n], "model": "m", "request_id": "q0", "value": 1.0,
        "event_us": 1_700_000_000_000_000, "wall_us": 1_700_000_000_000_000,
    }  # fmt: skip
    return msgspec.msgpack.encode(whole | fields)


NO_EVENTS: dict[str, tuple[Any, str]] = {
    "text": (lambda n: b"no event", "no event: "),
    "nothing": (lambda n: b"", "no event: Input data was truncated"),
    "cut short": (lambda n: label(n)[:-9], "no event: "),
    "not a map": (lambda n: msgspec.msgpack.encode([1, 2]), "no event: Expected `object`, got `array`"),
    "nested without end": (lambda n: label(n)[:-1] + b"\x91" * 100_000, "no event: "),
    "text that is none": (lambda n: label(n).replace(b"q0", b"\xff\xfe"), "no event: 'utf-8' codec"),
    "an unknown kind": (lambda n: label(n, kind="weather"), "no event: Invalid value 'weather' - at `$.kind`"),
    "a newer version": (lambda n: label(n, schema=2), "schema 2, and this collector reads 1: upgrade it"),
    "without a model": (lambda n: label(n, model=""), "no event: Expected `str` matching regex"),
    "a model for no folder": (lambda n: label(n, model="m" * 300), "no event: Expected `str` matching regex"),
    "a row past its column": (lambda n: label(n, row=2**31), "no event: Expected `int` <= 2147483647 - at `$.row`"),
    "a time past its column": (lambda n: label(n, event_us=2**63), "no event: Expected `int` <= "),
    "another event's id": (lambda n: label(n, id=["gw0", 0, 1, 0]), "it says that it is event gw0/0/1/0"),
}


def test_what_is_no_event_is_set_aside_whole_with_its_reason_and_everything_else_is_stored(
    installation: Installation, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    worker, payloads = Worker(installation.bus), {}
    for request, (make, _) in enumerate(NO_EVENTS.values()):
        worker.request(installation.route, f"q{request}")
        payloads[worker.n] = make(worker.n)
        worker.frame(payloads[worker.n])
    worker.request(installation.route, "the last", label=1.0)
    collector = Collector(installation.settings)
    assert collector.once().quarantined == len(NO_EVENTS)
    assert collector.problems() == {}

    ids = [("gw0", 0, 1, n) for n in range(worker.n)]
    aside = installation.quarantined()
    assert [event_id for event_id, _ in aside] == [("gw0", 0, 1, n) for n in payloads]
    for (_, reason), (name, (_, expected)) in zip(aside, NO_EVENTS.items(), strict=True):
        assert reason.startswith(expected), name
    assert sorted(installation.stored()) == [each for each in ids if each[3] not in payloads]
    rows = DeltaLake(installation.settings.lake).read(quarantine.TABLE).to_pylist()
    assert {row["n"]: row["payload"] for row in rows} == payloads
    assert json.loads(next(row["row"] for row in rows if "weather" in row["reason"]))["request_id"] == "q0"
    assert f"batch 1: {len(NO_EVENTS)} events are in quarantine (inference/quarantine)" in caplog.text

    (report,) = verify_log(installation.settings)
    assert report.whole
    assert (report.written, report.stored) == (worker.n, worker.n - len(payloads))
    assert sum(report.quarantined.values()) == len(payloads)
    monkeypatch.setenv("SLIPWAY_HOME", str(installation.settings.root))
    told = CliRunner().invoke(app, ["log", "verify"])
    assert told.exit_code == 0
    assert "gw0/0-1: 1 in quarantine: schema 2, and this collector reads 1" in told.output


def test_log_verify_misses_a_row_that_left_quarantine_and_sees_one_that_is_there_twice(
    installation: Installation,
) -> None:
    worker, lake = Worker(installation.bus), DeltaLake(installation.settings.lake)
    worker.frame(b"no event")
    worker.frame(b"none either")
    collect_all(installation.settings)
    rows = lake.read(quarantine.TABLE)
    lake.replace(quarantine.TABLE, pa.concat_tables([rows.slice(1), rows.slice(1)]))
    (report,) = verify_log(installation.settings)
    assert (report.missing, report.twice, report.whole) == (1, 1, False)


def test_a_batch_of_nothing_but_bad_frames_is_taken_like_any_other(installation: Installation) -> None:
    worker = Worker(installation.bus)
    worker.frame(b"no event")
    assert collect_all(installation.settings) == 0
    worker.request(installation.route, "q1")
    assert collect_all(installation.settings) == 3
    assert [n for (*_, n), _ in installation.quarantined()] == [0]


def spoiled(worker: Worker, kind: str) -> None:
    """Make the last event of a kind one whose wall time no column holds."""
    data = worker.path.read_bytes()
    frames = list(segments.read_frames(data))
    bad = max(one.n for one in frames if msgspec.msgpack.decode(one.payload)["kind"] == kind)
    made = segments.MAGIC
    for one in frames:
        said = msgspec.msgpack.decode(one.payload)
        made += segments.frame(
            one.n, msgspec.msgpack.encode(said | {"wall_us": 2**63}) if one.n == bad else one.payload
        )
    worker.path.write_bytes(made)


def pass_deadlines(worker: Worker, installation: Installation) -> None:
    """So many requests, so late, that nothing before them is waited for any more."""
    worker.now_us += 60_000_000
    for number in range(3):
        worker.request(installation.route, f"late{number}")


def counted(evidence: str, name: str) -> int:
    return Evidence.from_json(evidence).counted(name)


def test_an_answer_in_quarantine_is_a_lost_answer(template: Path, tmp_path: Path) -> None:
    documents = []
    for case in ("spoiled", "lost"):
        installation = copied(template, tmp_path / case)
        worker = Worker(installation.bus)
        for number in range(20):
            worker.request(installation.route, f"q{number}")
        if case == "spoiled":
            spoiled(worker, "response")
        else:  # its frame is the last one
            frames = list(segments.read_frames(worker.path.read_bytes()))
            worker.path.write_bytes(worker.path.read_bytes()[: frames[-2].end])
        pass_deadlines(worker, installation)
        collect_all(installation.settings)
        documents.append(installation.evidence())
        assert counted(documents[-1], "lost_responses") == 1
    assert documents[0] == documents[1]


def test_an_assignment_in_quarantine_is_a_lost_assignment_live_and_in_a_replay(installation: Installation) -> None:
    worker = Worker(installation.bus)
    for number in range(20):
        worker.request(installation.route, f"q{number}")
        if number == 10:
            spoiled(worker, "assignment")
    collect_all(installation.settings)
    pass_deadlines(worker, installation)
    collect_all(installation.settings)
    assert counted(installation.evidence(), "requests") == 22
    assert counted(installation.evidence(), "gaps") == 1
    assert [one.differences for one in replay(installation.settings)] == [[], []]


def test_a_rollout_whose_assignments_go_into_quarantine_is_held(installation: Installation) -> None:
    worker = Worker(installation.bus)
    for number in range(400):
        worker.request(installation.route, f"q{number}")
        if number and number % 16 == 0:
            bad = {"kind": "assignment", "request_id": f"bad{number}", "rollout_id": installation.rollout}
            worker.frame(msgspec.msgpack.encode(bad))
    pass_deadlines(worker, installation)
    collect_all(installation.settings)
    assert counted(installation.evidence(), "gaps") == 24
    decision = rollouts.look(installation.settings, installation.rollout).decision
    assert decision is not None
    assert (decision.kind, decision.metrics) == ("hold", ("lost_assignments",))
    assert "24 of 427 sequence numbers" in decision.reason


def test_only_a_new_request_of_a_rollout_that_has_begun_uses_up_a_number() -> None:
    def bad(**claims: object) -> quarantine.Refused:
        whole = {"kind": "assignment", "rollout_id": "m-r1", "request_id": "new"} | claims
        return quarantine.Refused(id=EventId("gw0", 0, 1, 0), payload=b"", reason="bad", claims=whole)

    counters = Counters(rollout_seq={"m-r1": 7})
    others = [
        bad(kind="response"),
        bad(rollout_id="m-r9"),
        bad(rollout_id=None),
        bad(rollout_id=["m-r1"]),
        bad(request_id="seen"),
        bad(retry=True),
        bad(kind=None),
    ]
    assert numbering.number(others, counters, {"m-r1": {"seen"}}) == ([], [])
    assert counters == Counters(rollout_seq={"m-r1": 7})
    numbering.number([bad()], counters, {"m-r1": {"seen"}})
    assert counters == Counters(rollout_seq={"m-r1": 8})


EDGES = [0, 1, -1, 2**31 - 1, 2**31, -(2**31), 2**53 + 1, EARLIEST_US, LATEST_US, LATEST_US + 1, 2**63 - 1, -(2**63)]
INTS = st.sampled_from([*EDGES, 2**63, 2**64 - 1]) | st.integers(-(2**63), 2**64 - 1)
REALS = st.floats() | st.sampled_from([1e308, -1e308, 5e-324])
TEXTS = st.sampled_from(["m", "m-r2", "", "\x00", "a/b", "é" * 90]) | st.text(max_size=5)
LISTS = st.lists(REALS, max_size=2)
MAPS = st.dictionaries(TEXTS, st.lists(REALS | TEXTS | INTS, max_size=2), max_size=2)
SOME: dict[str, st.SearchStrategy[Any]] = {
    "Assignment": st.fixed_dictionaries(
        {},
        optional={
            "model": TEXTS, "request_id": TEXTS, "event_us": INTS, "wall_us": INTS, "share_ppm": INTS, "salt": TEXTS,
            "unit": TEXTS, "mode": TEXTS, "rollout_id": TEXTS, "route_version": INTS, "rows": INTS, "inputs": MAPS,
            "slices": st.dictionaries(TEXTS, TEXTS, max_size=2), "paired": st.booleans(), "schema": INTS,
        },
    ),
    "Response": st.fixed_dictionaries(
        {},
        optional={
            "model": TEXTS, "event_us": INTS, "wall_us": INTS, "raw": LISTS, "score": LISTS, "outputs": MAPS,
            "latency_us": INTS, "beside_us": INTS, "features_us": INTS, "model_us": INTS, "error": TEXTS,
            "features": st.lists(st.tuples(TEXTS, st.lists(TEXTS), st.lists(INTS), st.just([])), max_size=1),
        },
    ),
    "Label": st.fixed_dictionaries({}, optional={"row": INTS, "value": REALS, "event_us": INTS, "request_id": TEXTS}),
    "Kpi": st.fixed_dictionaries({}, optional={"name": TEXTS, "value": REALS, "event_us": INTS}),
}  # fmt: skip
PLAIN: dict[str, dict[str, Any]] = {
    "Assignment": {
        "arm": "champion", "share_ppm": 0, "salt": "", "unit": "u", "mode": "shadow", "stage": "shadow",
        "rollout_id": "m-r2", "route_version": 1, "champion": "c",
    },
    "Response": {"arm": "champion", "release": "c", "rollout_id": "m-r2", "status": "ok", "served": True},
    "Label": {"value": 1.0},
    "Kpi": {"value": 1.0},
}  # fmt: skip
KIND = {"Assignment": Assignment, "Response": Response, "Label": Label, "Kpi": Kpi}


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from(sorted(SOME)).flatmap(lambda kind: st.tuples(st.just(kind), SOME[kind])), max_size=6))
def test_every_event_that_is_taken_fits_the_lakes_columns_and_the_tables_of_a_rollout(
    made: list[tuple[str, dict[str, Any]]],
) -> None:
    frames = []
    for n, (kind, fields) in enumerate(made):
        common = {"id": EventId("gw0", 0, 1, n), "model": "m", "request_id": "q", "event_us": n, "wall_us": n}
        frames.append(Frame(n, events.encode(KIND[kind](**(common | PLAIN[kind] | fields))), 0))
    (items,) = quarantine.decode([StreamKey("gw0", 0, 1)], [frames])
    numbered, _ = numbering.number(items, Counters(), {})
    tables = to_tables(numbered, 1)
    assert sum(table.num_rows for table in tables.values()) == len(numbered)
    for table in tables.values():
        table.to_pylist()
    Case("m-r2", "m", ("origin",), ("kpi",)).take(tables)
    refused = [item for item in items if isinstance(item, quarantine.Refused)]
    aside = quarantine_table.to_table(refused, 1, 0)
    assert len(numbered) + aside.num_rows == len(made)


@settings(deadline=None)
@given(st.binary(max_size=80))
def test_whatever_bytes_a_frame_holds_they_are_an_event_or_are_kept_as_they_were(payload: bytes) -> None:
    ((item,),) = quarantine.decode([StreamKey("gw0", 0, 1)], [[Frame(0, payload, 0)]])
    if isinstance(item, quarantine.Refused):
        assert quarantine_table.to_table([item], 1, 0)["payload"].to_pylist() == [payload]


def test_a_counter_that_no_writer_comes_to_is_damage_and_stops_its_stream_alone(installation: Installation) -> None:
    good, bad = Worker(installation.bus), Worker(installation.bus, worker=1)
    good.request(installation.route, "q1")
    with bad.path.open("ab") as handle:
        handle.write(segments.frame(2**64 - 1, b"no event"))
    collector = Collector(installation.settings)
    assert collector.once().events == 3
    assert list(collector.problems()) == ["gw0/1-1"]
    strange = installation.bus / "gw0" / "\u00b2-1"
    strange.mkdir()
    good.request(installation.route, "q2")
    assert collector.once().events == 3
