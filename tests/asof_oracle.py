"""Feast's documented rules of the point-in-time join, by brute force."""

from __future__ import annotations

from typing import Any


def brute_force(
    entity: list[dict[str, Any]], rows: list[dict[str, Any]], ttl_minutes: int | None, cutoff: bool
) -> list[float | None]:
    """Feast's documented rules, one entity row at a time."""
    answer: list[float | None] = []
    for asked in entity:
        best = None
        for row in rows:
            if asked["k"] is None or row["k"] != asked["k"] or asked["t"] is None or row["t"] is None:
                continue
            if row["t"] > asked["t"] or (cutoff and (row["created"] is None or row["created"] > asked["t"])):
                continue
            if ttl_minutes and row["t"] < asked["t"] - ttl_minutes:
                continue
            if best is None or _order(row) > _order(best):
                best = row
        answer.append(None if best is None else best["value"])
    return answer


def _order(row: dict[str, Any]) -> tuple[int, int]:
    """A row without a creation time is the oldest of its time."""
    return row["t"], -1 if row["created"] is None else row["created"]
