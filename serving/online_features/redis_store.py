"""Feast's Redis online store, read without the SDK: one HMGET an entity key, for all of the entity's views together."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter_ns
from typing import Any
from weakref import WeakKeyDictionary

import hiredis

from pipelines.contracts.errors import ContractError
from pipelines.contracts.release import Columns
from serving.online_features import feast_values
from serving.online_features.plan import EntityFetch, Found, Keys, ReadPlan, Reads, Row, time_budget_s
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

    async def read(self, plan: ReadPlan, columns: Columns, rows: int, event_us: int) -> Reads:
        """Every view of the plan for every row of a request at `event_us`. Never raises for the store's condition."""
        started = perf_counter_ns()
        keys = plan.keys(columns, rows)
        try:
            replies = await self._ask(plan, keys, time_budget_s(self._budget_s, rows))
            found, at = [], 0
            for entity, of_entity in zip(plan.entities, keys, strict=True):
                found.append(_found(entity, of_entity.unique, replies[at : at + len(of_entity.unique)]))
                at += len(of_entity.unique)
        except RedisDown as error:
            return plan.without_store(keys, str(error), (perf_counter_ns() - started) // 1000)
        return plan.reads(keys, found, event_us, (perf_counter_ns() - started) // 1000)

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

    async def _ask(self, plan: ReadPlan, keys: list[Keys], budget_s: float) -> list[Any]:
        """One reply an entity and unique key. Raises RedisDown."""
        commands = self._commands.get(plan)
        if commands is None:
            commands = self._commands[plan] = [_command(entity) for entity in plan.entities]
        project = self._project
        parts = [
            b"%b$%d\r\n%b%b\r\n%b" % (head, len(key) + len(project), key, project, tail)
            for (head, tail), of_entity in zip(commands, keys, strict=True)
            for key in of_entity.unique
        ]
        if not parts:
            return []
        return await self._link.call(b"".join(parts), len(parts), budget_s)


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
