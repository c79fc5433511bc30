"""Tables in a pipe: names and numbers stand whole."""

from __future__ import annotations

import pytest

from pipelines.cli.tables import WIDE, open_console, table_of


def test_a_table_of_a_pipe_is_wide(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    table = table_of("view", "feature")
    table.add_row("congestion_at_origin__a4a1", "x" * (WIDE // 2))
    open_console().print(table)
    assert f"│ congestion_at_origin__a4a1 │ {'x' * (WIDE // 2)} │" in capsys.readouterr().out


def test_on_a_narrow_terminal_a_name_goes_on_in_the_next_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    console = open_console()
    console.width = 20
    table = table_of("view", "feature")
    table.add_row("congestion_at_origin__a4a1", "late_rate_24h")
    with console.capture() as told:
        console.print(table)
    cells = [line.split("│")[1:3] for line in told.get().splitlines() if "│" in line]
    assert "".join(view.strip() for view, _ in cells) == "congestion_at_origin__a4a1"
    assert "…" not in told.get()
