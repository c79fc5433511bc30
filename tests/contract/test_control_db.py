"""Rules that the control database itself keeps, whoever writes, on SQLite and on Postgres."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, IntegrityError
from typer.testing import CliRunner

from pipelines.adapters import control_schema as schema
from pipelines.adapters.control_db import ControlDb, ReleaseRow, control_db, insert_route
from pipelines.cli import audit
from pipelines.contracts.errors import NotFoundError, StaleDecisionError, TerminalError, TransientError
from pipelines.contracts.routes import CHANNEL, Route
from pipelines.rollout import record
from pipelines.rollout.decide import Standing, begin, decide
from pipelines.rollout.state import Rollout
from pipelines.settings import Settings
from pipelines.wiring import rollouts
from tests.postgres import PostgresServer, running_postgres
from tests.unit.rollout.examples import NOW, OLD, PLAN, rollout


@pytest.fixture
def db(settings: Settings) -> Iterator[ControlDb]:
    opened = control_db(settings)
    yield opened
    opened.engine.dispose()


def behind_the_triggers(settings: Settings, statement: str, *, drop: str) -> None:
    """Change a record as somebody with all rights could."""
    on = " ON decision" if settings.control_url else ""
    with control_db(settings).write() as connection:
        connection.exec_driver_sql(f"DROP TRIGGER {drop}{on}")
        connection.exec_driver_sql(statement)


def queued(settings: Settings, number: int) -> Rollout:
    store = rollouts.rollout_store(settings)
    return store.insert("m", lambda n, champion: rollout("", id=f"m-r{n}", status="waiting", champion=champion))


def started(settings: Settings) -> Rollout:
    """A rollout against champion `OLD`, in its first stage, its actions done."""
    db = control_db(settings)
    with db.write() as connection:
        connection.execute(sa.insert(schema.champion).values(model="m", release=OLD, decision_id="m:0"))
    state = queued(settings, 1)
    _, after = rollouts.rollout_store(settings).commit(state, begin(state, NOW, "test"))
    rollouts.advance(settings, after.id)
    return after


@pytest.mark.parametrize("table", ["decision", "decision_effect", "route"])
@pytest.mark.parametrize("verb", ["update", "delete"])
def test_what_was_recorded_cannot_be_changed_or_removed(settings: Settings, table: str, verb: str) -> None:
    state = started(settings)
    store = rollouts.rollout_store(settings)
    store.commit(state, decide(state, Standing(), NOW))
    rollouts.advance(settings, state.id)

    where = schema.metadata.tables[table]
    statement = sa.delete(where) if verb == "delete" else sa.update(where).values(model="x")
    with pytest.raises(DBAPIError, match=f"{table} is append-only"), store.db.write() as connection:
        connection.execute(statement)


@pytest.mark.parametrize("table", ["decision", "decision_effect", "route"])
def test_nor_by_the_ways_round_updates_and_deletes(settings: Settings, table: str) -> None:
    state = started(settings)
    store = rollouts.rollout_store(settings)
    store.commit(state, decide(state, Standing(), NOW))

    store.db.set_route(Route(model="m", version=0, mode="single", champion=OLD))
    statement = f"TRUNCATE {table}" if settings.control_url else f"INSERT OR REPLACE INTO {table} SELECT * FROM {table}"
    with pytest.raises(DBAPIError, match=f"{table} is append-only"), store.db.write() as connection:
        connection.exec_driver_sql(statement)


def test_a_row_changed_behind_the_triggers_is_found_by_the_audit(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = started(settings)
    rollouts.rollout_store(settings).commit(state, decide(state, Standing(), NOW))
    monkeypatch.setenv("SLIPWAY_HOME", str(settings.home))
    monkeypatch.setenv("SLIPWAY_CONTROL_URL", settings.control_url)
    assert CliRunner().invoke(audit.app, ["verify"]).exit_code == 0
    changed = "UPDATE decision SET body = replace(body, 'continue', 'rollback') WHERE n = 2"
    behind_the_triggers(settings, changed, drop="decision_no_update")
    result = CliRunner().invoke(audit.app, ["verify"])
    assert result.exit_code == 1
    assert "m:2: its body or number is not what its hash was taken of" in result.output


def test_a_record_cut_behind_the_triggers_is_found_by_its_anchor(settings: Settings) -> None:
    state = started(settings)
    store = rollouts.rollout_store(settings)
    store.commit(state, decide(state, Standing(), NOW))
    assert store.anchor("2026-01-01") == 1
    assert store.anchor("2026-01-01") == 0, "once a day"
    assert store.anchor("2026-01-02") == 1
    behind_the_triggers(settings, "DELETE FROM decision WHERE model = 'm' AND n = 2", drop="decision_no_delete")
    (fault,) = rollouts.audit(settings)["m"]
    assert "entry 2: anchored hash" in fault


def test_the_days_of_the_global_record_are_a_chain_themselves(settings: Settings) -> None:
    started(settings)
    store = rollouts.rollout_store(settings)
    for day in ("2026-01-01", "2026-01-02", "2026-01-03"):
        store.anchor(day)
    assert rollouts.audit(settings)[record.ANCHORS] == []
    behind_the_triggers(settings, "DELETE FROM decision WHERE model = '*' AND n = 2", drop="decision_no_delete")
    assert any("entry 2 is missing" in fault for fault in rollouts.audit(settings)[record.ANCHORS])


def test_a_second_running_or_waiting_rollout_is_refused_by_the_database(db: ControlDb, settings: Settings) -> None:
    started(settings)
    queued(settings, 2)
    with pytest.raises(TerminalError, match="waits already"):
        queued(settings, 3)
    for slot in ("running", "waiting"):
        values = {"model": "m", "n": 9, "status": slot, "challenger": "c", "revision": 0, "document": "{}"}
        with pytest.raises(IntegrityError), db.write() as connection:
            connection.execute(sa.insert(schema.rollout).values(id="x", slot=slot, **values))


def test_a_decision_on_an_old_state_is_refused_and_leaves_nothing(settings: Settings) -> None:
    state = started(settings)
    store = rollouts.rollout_store(settings)
    store.commit(state, decide(state, Standing(), NOW))
    lines = store.entries("m")
    with pytest.raises(StaleDecisionError, match="taken on revision"):
        store.commit(state, decide(state, Standing(word="rollback", sentence="harm"), NOW))
    assert store.entries("m") == lines


def test_a_rollout_does_not_begin_against_a_champion_that_is_gone(settings: Settings) -> None:
    state = queued(settings, 1)
    with control_db(settings).write() as connection:
        connection.execute(sa.insert(schema.champion).values(model="m", release=OLD, decision_id="m:0"))
    with pytest.raises(StaleDecisionError, match="got champion a"):
        rollouts.rollout_store(settings).commit(state, begin(state, NOW, "test"))


def test_two_writers_at_once_both_get_their_route_version(db: ControlDb) -> None:
    def write(name: str) -> None:
        for _ in range(20):
            db.set_route(Route(model="m", version=0, mode="single", champion=name))

    threads = [threading.Thread(target=write, args=(str(n),)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    route = db.route("m")
    assert route is not None
    assert route.version == 60


def test_what_a_writer_has_read_cannot_change_before_it_commits(db: ControlDb) -> None:
    """Two that both see a free place would else both take it."""
    both_ready = threading.Barrier(2)
    taken = []

    def take(name: str) -> None:
        both_ready.wait()
        with db.write() as connection:
            table = schema.champion
            if connection.execute(sa.select(table.c.release).where(table.c.model == "m")).scalar() is None:
                time.sleep(0.05)  # long enough for the other to look, if it could
                connection.execute(sa.insert(table).values(model="m", release=name, decision_id="m:1"))
                taken.append(name)

    threads = [threading.Thread(target=take, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [db.champion("m")] == taken


def test_a_reader_sees_one_moment_whatever_is_committed_meanwhile(db: ControlDb) -> None:
    db.set_route(Route(model="m", version=0, mode="single", champion="x"))
    count = sa.select(sa.func.count()).select_from(schema.route)
    with db.read() as connection:
        before = connection.execute(count).scalar()
        db.set_route(Route(model="m", version=0, mode="single", champion="y"))
        assert connection.execute(count).scalar() == before == 1
    with db.read() as connection:
        assert connection.execute(count).scalar() == 2


def test_a_reader_cannot_write_on_postgres(postgres: PostgresServer) -> None:
    """On SQLite it is a plain transaction that nobody commits."""
    db = ControlDb(postgres.new_database())
    with pytest.raises(DBAPIError, match="read-only"), db.read() as connection:
        connection.execute(sa.insert(schema.champion).values(model="m", release="x", decision_id="m:1"))
    db.engine.dispose()


def test_text_is_ordered_by_its_bytes(db: ControlDb) -> None:
    """The same overrides are chained in the same order on every server, whatever language it was set up in."""
    names = ["gw0/0-1/9", "gw0/0-1/10", "GW1/0-1/1", "gw-1/0-1/1", "gé/0-1/1"]
    for name in names:
        db.emit_asset(name, "u", {})
    with db.read() as connection:
        found = connection.execute(sa.select(schema.asset_event.c.key).order_by(schema.asset_event.c.key)).scalars()
        assert list(found) == sorted(names)


def test_a_lock_that_is_never_released_is_a_transient_error(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.adapters.control_engine.BUSY_MS", 50)
    holder, other = ControlDb(settings.control), ControlDb(settings.control)
    with holder.write(), pytest.raises(TransientError, match="write lock"):
        other.set_route(Route(model="m", version=0, mode="single", champion="x"))
    assert other.set_route(Route(model="m", version=0, mode="single", champion="x")).version == 1
    for db in (holder, other):
        db.engine.dispose()


def test_many_processes_may_open_a_new_database_at_once(settings: Settings) -> None:
    opened: list[ControlDb] = []
    threads = [threading.Thread(target=lambda: opened.append(ControlDb(settings.control))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 4
    for db in opened:
        db.engine.dispose()


def test_a_turn_is_one_process_at_a_time(db: ControlDb) -> None:
    with db.turn("t") as first, db.turn("t", patience_s=0.1) as second:
        assert (first, second) == (True, False)
    with db.turn("t", patience_s=0.1) as third:
        assert third


def test_an_asset_event_is_claimed_by_each_consumer_once(db: ControlDb) -> None:
    assert db.emit_asset("m:1/0", "drift://m", {"psi": 0.3})
    assert not db.emit_asset("m:1/0", "drift://m", {"psi": 0.9})
    (event,) = db.asset_events("drift://m", consumer="train")
    assert event["extra"] == {"psi": 0.3}
    assert [db.claim("train", "m:1/0"), db.claim("train", "m:1/0"), db.claim("other", "m:1/0")] == [True, False, True]
    assert db.asset_events("drift://m", consumer="train") == []


def test_a_release_is_found_by_digest_its_beginning_or_its_version(db: ControlDb) -> None:
    for digest, semver in (("ab" * 32, "1.0.0"), ("abababff" * 8, "1.1.0")):
        db.put_release(ReleaseRow(model="m", digest=digest, semver=semver, metrics={"auc": 0.7}))
    assert db.release("1.1.0", "m").digest == "abababff" * 8
    assert db.release("abababff").semver == "1.1.0"
    assert db.release("ab" * 32).metrics == {"auc": 0.7}
    with pytest.raises(NotFoundError, match="2 matches"):
        db.release("ababab")
    with pytest.raises(NotFoundError, match=r"1\.0\.0"):
        db.release("2.0.0")


def test_a_retraining_is_asked_for_once_a_moment(db: ControlDb) -> None:
    first = db.add_retrain("m", 1_000, "drift of temp")
    assert db.add_retrain("m", 1_000, "again") == first
    assert db.add_retrain("m", 2_000, "later").n == 2
    db.set_retrain_status("m", 2, "done")
    assert [row.status for row in db.retrains("m")] == ["asked", "done"]


def test_the_plan_is_frozen_into_the_rollout(settings: Settings) -> None:
    state = started(settings)
    assert rollouts.load(settings, state.id).plan.digest() == PLAN.digest()


def test_a_server_that_goes_away_is_a_transient_error_and_is_found_again(tmp_path: Path) -> None:
    with running_postgres() as server:
        db = ControlDb(server.url())
        db.set_route(Route(model="m", version=0, mode="single", champion="x"))
        with db.turn("t") as mine:
            assert mine
            server.kill()
        with pytest.raises(TransientError, match="a server that answers"):
            db.route("m")
        with pytest.raises(TransientError, match="a server that answers"):
            ControlDb(server.url())
        server.start()
        assert db.set_route(Route(model="m", version=0, mode="single", champion="y")).version == 2
        with db.turn("t", patience_s=0.1) as mine:
            assert mine, "the lock went with the connection"
        with pytest.raises(TerminalError, match="SLIPWAY_CONTROL_URL"):
            ControlDb(server.url("nowhere"))
        db.engine.dispose()


def test_a_database_that_is_neither_is_refused() -> None:
    with pytest.raises(TerminalError, match="got mysql; expected sqlite:/// or postgresql://"):
        ControlDb("mysql://localhost/slipway")


def test_a_new_route_is_told_when_its_transaction_commits(postgres: PostgresServer) -> None:
    url = postgres.new_database()
    db = ControlDb(url)
    with psycopg.connect(url, autocommit=True) as listener:
        listener.execute(f"LISTEN {CHANNEL}")
        with db.write() as connection:
            insert_route(connection, Route(model="m", version=0, mode="single", champion="x"))
            assert list(listener.notifies(timeout=0.1)) == []
        (told,) = listener.notifies(timeout=5, stop_after=1)
        assert told.payload == "m"
    db.engine.dispose()


def test_of_releases_made_as_of_one_moment_the_higher_version_is_the_newer(db: ControlDb) -> None:
    for digest, semver, created_us in (("a", "1.10.0", 5), ("b", "1.9.0", 5), ("c", "1.0.0", 5), ("0", "3.0.0", 4)):
        db.put_release(ReleaseRow(model="m", digest=digest, semver=semver, created_us=created_us))
    assert [row.semver for row in db.releases("m")] == ["3.0.0", "1.0.0", "1.9.0", "1.10.0"]
