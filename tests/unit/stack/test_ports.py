"""A taken port is refused before anything starts, naming who has it and what to set."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.contracts.errors import TerminalError
from pipelines.settings import Settings
from pipelines.stack import ports, up
from tests.free_ports import free_port


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", free_port())) as server:
        yield server.getsockname()[1]


def test_a_port_somebody_listens_on_is_not_free_until_they_leave():
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        assert not ports.is_free("127.0.0.1", port)
    assert ports.is_free("127.0.0.1", port)


def test_the_listeners_of_a_port_are_found(taken):
    assert ports.listeners(taken) == {os.getpid()}


def test_up_refuses_a_taken_port_before_starting_anything(tmp_path: Path, taken: int):
    settings = Settings(home=tmp_path, gateway_port=taken)
    with pytest.raises(TerminalError) as refused:
        up(settings, ["gateway"])
    message = str(refused.value)
    assert f"port {taken} of gateway" in message
    assert f"process {os.getpid()}" in message
    assert "SLIPWAY_GATEWAY_PORT=<port>" in message
    assert not list((tmp_path / "run").glob("*.json"))
