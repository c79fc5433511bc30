"""The log's writer, killed at every byte of its first segments: what it acknowledged is stored once, nothing half."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

from pipelines.contracts import segments
from pipelines.settings import PROJECT, Settings
from pipelines.wiring.collect import Collector, collect_all, verify_log
from tests.unit.collect.installation import stored_labels

BYTES = 250
"""More than two segments: their magics, headers and payloads of whole frames, and rotations lie within."""


def test_a_death_at_any_byte_of_a_write_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    book = tmp_path / "book"
    writer = [sys.executable, "-m", "tests.unit.collect.dying_writer", str(settings.bus), str(book), str(BYTES)]
    done = subprocess.run(writer, cwd=PROJECT, capture_output=True, text=True, check=True)
    assert int(done.stdout) == BYTES, "every life ended in a write"
    acknowledged = Counter(tuple(map(int, line.split())) for line in book.read_text().splitlines())
    assert max(acknowledged.values()) == 1
    lives = sorted({int(folder.name.split("-")[1]) for folder in (settings.bus / "gw0").iterdir()})
    assert len(lives) == BYTES
    halves = [path.stat().st_size % len(segments.MAGIC) for path in settings.bus.rglob("*.seg")]
    assert any(halves), "deaths left half frames behind"

    collect_all(settings)
    stored = Counter(stored_labels(settings))
    assert stored == acknowledged, "each once, and no event that was not acknowledged"
    reports = verify_log(settings)
    assert [str(report) for report in reports if not report.whole or report.waiting] == []
    assert sum(report.torn > 0 for report in reports) > BYTES / 2
    assert Collector(settings).problems() == {}
