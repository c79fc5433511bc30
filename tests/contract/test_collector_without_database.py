"""The collector while its Postgres is away: it waits, and what came meanwhile is there once."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from pipelines.wiring import collect
from tests.postgres import running_postgres
from tests.unit.collect.installation import Installation
from tests.unit.collect.traffic import Worker
from tests.waiting import wait_until


def test_a_collector_outlives_its_database(tmp_path: Path) -> None:
    with running_postgres() as server:
        made = Installation(tmp_path, server.url())
        worker, route = Worker(made.bus), made.route
        passes: list[collect.Report] = []
        stop = threading.Event()
        collector = threading.Thread(
            target=collect.run,
            args=(made.settings, stop.is_set),
            kwargs={"poll_s": 0.02, "commit_s": 0.0, "on_report": passes.append},
        )
        collector.start()
        try:
            worker.request(route, "before")
            wait_until(lambda: sum(one.events for one in passes) == worker.n, "all is collected")
            server.kill()
            worker.request(route, "meanwhile")
            time.sleep(2.5)  # longer than it waits before it looks again
            assert collector.is_alive()
            server.start()
            wait_until(lambda: sum(one.events for one in passes) == worker.n, "all is collected")
        finally:
            stop.set()
            collector.join(30)
        assert [n for *_, n in made.stored()] == list(range(worker.n))
        made.db.engine.dispose()
