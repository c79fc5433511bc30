"""Feast's Redis online store, read without the SDK: one HMGET an entity key, for all of the entity's views together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from time import perf_counter_ns
from typing import Any
from weakref import WeakKeyDictionary

import hiredis

from pipelines.contracts.errors import ContractError
from serving.online_features import feast_values
from serving.online_features.plan import EntityFetch, Found, ReadPlan, Reads, Row, Wanted, time_budget_s
from serving.online_features.redis_layout import feature_field, stamp_field, stamp_us
from serving.online_features.redis_link import RedisDown, RedisLink, pack


class RedisStore:
    """Reads over one connection. `budget_ms` is wall time for each started hundred rows of a request."""

    is_local = False

    def __init__(self, url: str, budget_ms: float = 5.0, project: str = "slipway") -> None:
        self._link = RedisLink(url)
        self._budget_s = budget_ms / 1000
        self._project = project.encode()
        self._commands: WeakKeyDictionary[ReadPlan, list[tuple[bytes, bytes]]] = WeakKeyDictionary()

    async def start(self) -> None:
        """Connect; a server that is not there is looked for in the background."""
        await self._link.start()

    async def stop(self) -> None:
        """Close the connection."""
        await self._link.stop()

    def read(self, plan: ReadPlan, requests: Sequence[Wanted]) -> Awaitable[list[Reads]]:
        """Every view of the plan for every row of each request. Never raises for the store's condition.

        It is asked for now, whenever the result is awaited.
        """
        started = perf_counter_ns()
        keys = [plan.keys(columns, rows) for columns, rows, _ in requests]
        distinct = plan.distinct(keys)
        budget_s = time_budget_s(self._budget_s, sum(rows for _, rows, _ in requests))
        try:
            asked: asyncio.Future[list[Any]] | RedisDown = self._ask(plan, distinct, budget_s)
        except RedisDown as error:
            asked = error

        async def reads() -> list[Reads]:
            try:
                if isinstance(asked, RedisDown):
                    raise asked
                found = _rows(plan, distinct, await asked)
            except RedisDown as error:
                took_us = (perf_counter_ns() - started) // 1000
                return [plan.without_store(of_request, str(error), took_us) for of_request in keys]
            took_us = (perf_counter_ns() - started) // 1000
            return [
                plan.reads(of_request, found, event_us, took_us)
                for of_request, (_, _, event_us) in zip(keys, requests, strict=True)
            ]

        return reads()

    async def readable_through(self, views: Sequence[str]) -> dict[str, int]:
        """Event time in microseconds up to which each view is materialised. Empty when the server does not answer."""
        command = pack("HMGET", f"slipway:materialised:{self._project.decode()}", *views)
        try:
            (reply,) = await self._link.call(command, 1, self._budget_s)
        except RedisDown:
            return {}
        if not isinstance(reply, list):
            return {}
        return {view: int(through) for view, through in zip(views, reply, strict=True) if through is not None}

    def _ask(self, plan: ReadPlan, keys: list[list[bytes]], budget_s: float) -> asyncio.Future[list[Any]]:
        """One reply an entity and key. Raises RedisDown, at once or from the future."""
        commands = self._commands.get(plan)
        if commands is None:
            commands = self._commands[plan] = [_command(entity) for entity in plan.entities]
        project = self._project
        parts = [
            b"%b$%d\r\n%b%b\r\n%b" % (head, len(key) + len(project), key, project, tail)
            for (head, tail), of_entity in zip(commands, keys, strict=True)
            for key in of_entity
        ]
        if not parts:
            nothing: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
            nothing.set_result([])
            return nothing
        return self._link.call(b"".join(parts), len(parts), budget_s)


def _rows(plan: ReadPlan, keys: list[list[bytes]], replies: list[Any]) -> list[list[Found]]:
    """The rows of the keys of each entity, a view each."""
    found, at = [], 0
    for entity, of_entity in zip(plan.entities, keys, strict=True):
        found.append(_found(entity, of_entity, replies[at : at + len(of_entity)]))
        at += len(of_entity)
    return found


def _command(entity: EntityFetch) -> tuple[bytes, bytes]:
    """The bytes of the entity's HMGET before and after its key: every feature of every view, each view's stamp last."""
    fields = [
        field
        for view in entity.views
        for field in (*(feature_field(view.view, name) for name in view.features), stamp_field(view.view))
    ]
    tail = b"".join(b"$%d\r\n%b\r\n" % (len(field), field) for field in fields)
    return b"*%d\r\n$5\r\nHMGET\r\n" % (2 + len(fields)), tail


def _found(entity: EntityFetch, keys: list[bytes], replies: list[Any]) -> list[Found]:
    found = []
    first = 0
    for view in entity.views:
        stamp_at = first + len(view.features)
        rows: dict[bytes, Row] = {}
        unavailable = ""
        try:
            for key, reply in zip(keys, replies, strict=True):
                if isinstance(reply, hiredis.ReplyError):
                    raise RedisDown(str(reply))
                if (stamp := reply[stamp_at]) is not None:
                    values = [None if data is None else feast_values.decode(data) for data in reply[first:stamp_at]]
                    rows[key] = (stamp_us(stamp), values)
        except (ContractError, ValueError, IndexError, TypeError) as error:
            rows, unavailable = {}, str(error)
        found.append(Found(rows, unavailable))
        first = stamp_at + 1
    return found
