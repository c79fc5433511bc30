"""Ports: whether one is free, and who has it when it is not."""

from __future__ import annotations

import socket

import psutil

from pipelines.contracts.errors import TerminalError


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def listeners(port: int) -> set[int]:
    """The pids that listen on a port, as far as this user may see them."""
    try:
        connections = psutil.net_connections("tcp")
    except psutil.AccessDenied:
        return set()
    return {c.pid for c in connections if c.status == psutil.CONN_LISTEN and c.laddr.port == port and c.pid}


def owner(port: int) -> str:
    """Who listens on a port, in words."""
    for pid in sorted(listeners(port)):
        try:
            return f"process {pid} ({' '.join(psutil.Process(pid).cmdline())[:100]})"
        except psutil.Error:
            return f"process {pid}"
    return "a process of another user"


def require_free(part: str, host: str, port: int, setting: str) -> None:
    """Raise `TerminalError`, naming the process that has the port and the setting to change."""
    if not is_free(host, port):
        raise TerminalError(
            f"port {port} of {part}",
            got=f"taken by {owner(port)}",
            expected="a free port",
            hint=f"Stop that process, or choose another port: {setting}=<port>.",
        )
