"""The shipper as a command: what it refuses. What it sends is tested with the bus, against a real broker."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from pipelines.contracts.errors import TerminalError
from pipelines.settings import Settings
from serving import shipper


def test_without_a_broker_to_send_to_it_ends_and_says_which_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLIPWAY_HOME", str(tmp_path))
    monkeypatch.delenv("SLIPWAY_KAFKA", raising=False)
    assert shipper.main([]) == 1
    assert "SLIPWAY_KAFKA" in capsys.readouterr().err


def test_two_shippers_of_one_home_would_move_each_others_positions_so_the_second_is_refused(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, kafka="127.0.0.1:1")
    folder = tmp_path / "shipper"
    folder.mkdir()
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(TerminalError, match="a second one"):
            shipper.run(settings, lambda: True)


def test_an_idle_shipper_beats_without_a_broker_and_again_forgets_its_positions(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, kafka="127.0.0.1:1")
    positions = tmp_path / "shipper" / "positions.json"
    positions.parent.mkdir()
    positions.write_text("[]")
    turns = iter([False, True])
    shipper.run(settings, lambda: next(turns), poll_s=0.0, again=True)
    assert not positions.exists()
    assert (tmp_path / "run" / "shipper.beat").exists()
