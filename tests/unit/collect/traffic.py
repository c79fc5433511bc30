"""Writes a bus as gateways do: real frames in real segment files, at the speed of a loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipelines.contracts import assignment, events, segments
from pipelines.contracts.events import Assignment, EventId, Kpi, Label, Override, Response
from pipelines.contracts.routes import Route

START_US = 1_700_000_000_000_000
STEP_US = 10_000


class Worker:
    """One worker epoch: appends events to a segment, and can be torn or closed."""

    def __init__(
        self, bus: Path, gateway: str = "gw0", worker: int = 0, epoch: int = 1, start_us: int = START_US
    ) -> None:
        self.bus, self.gateway, self.worker, self.epoch = bus, gateway, worker, epoch
        self.n = 0
        self.now_us = start_us
        self.path = Path()
        self._rotate()

    def _rotate(self) -> None:
        self.path = segments.segment_path(self.bus, self.gateway, self.worker, self.epoch, self.n)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_bytes(segments.MAGIC)

    def rotate(self) -> None:
        """Begin the next segment."""
        self._rotate()

    def append(self, kind: type, **fields: Any) -> EventId:
        """One event of `kind` at the worker's time."""
        event_id = EventId(self.gateway, self.worker, self.epoch, self.n)
        stamps = {"event_us": self.now_us, "wall_us": self.now_us}
        event = kind(id=event_id, **(stamps | fields))
        self.frame(events.encode(event))
        return event_id

    def frame(self, payload: bytes) -> None:
        """The next frame, whatever it holds."""
        with self.path.open("ab") as handle:
            handle.write(segments.frame(self.n, payload))
        self.n += 1

    def skip(self) -> None:
        """Use up a counter without writing its event: a lost event."""
        self.n += 1

    def tear(self) -> None:
        """Leave half a frame behind, as a killed writer does."""
        with self.path.open("ab") as handle:
            handle.write(segments.frame(self.n, b"x" * 100)[:40])

    def close(self) -> None:
        """Leave the mark of an orderly end."""
        (self.path.parent / "closed").write_text(str(self.n))

    def request(
        self,
        route: Route,
        request_id: str,
        *,
        x: float = 0.5,
        fails: frozenset[str] = frozenset(),
        score: float = 0.3,
        label: float | None = None,
        retry: bool = False,
        lose: bool = False,
        sampled: bool = True,
        beside_us: int | None = None,
    ) -> None:
        """A request as the gateway would answer it on `route`; `fails` are the arms that raise, `beside_us` what the
        answering arm took beside the other one.
        """
        self.now_us += STEP_US
        arm = "champion"
        if route.mode == "split":
            arm = assignment.draw(route.salt, request_id, route.share_ppm)
        both = route.shadow and route.challenger is not None
        self.append(
            Assignment,
            model=route.model,
            request_id=request_id,
            arm=arm,
            share_ppm=route.share_ppm,
            salt=route.salt,
            unit=request_id,
            mode=route.mode,
            stage=route.stage,
            rollout_id=route.rollout_id,
            route_version=route.version,
            champion=route.champion,
            challenger=route.challenger,
            slices={"origin": "JFK"},
            inputs={"x": [x]} if sampled else {},
            sampled=sampled,
            paired=both,
            retry=retry,
        )
        for each in ("champion", "challenger"):
            if (each != arm and not both) or (lose and each == arm):
                continue
            failed = each in fails
            self.append(
                Response,
                model=route.model,
                request_id=request_id,
                arm=each,
                release=(route.champion if each == "champion" else route.challenger) or "",
                rollout_id=route.rollout_id,
                status="error" if failed else "ok",
                served=each == arm and not failed,
                shadow=each != arm,
                score=[] if failed else [score],
                latency_us=3000,
                beside_us=None if each == arm or failed else beside_us,
                sampled=sampled,
            )
        if label is not None:
            self.append(Label, model=route.model, request_id=request_id, value=label)
            self.append(Kpi, model=route.model, request_id=request_id, value=label)

    def override(self, route: Route, action: str = "challenger_off") -> EventId:
        """The gateway's breaker trips."""
        return self.append(
            Override,
            model=route.model,
            rollout_id=route.rollout_id,
            route_version=route.version,
            reason="20 of 100 calls failed",
            actor="breaker",
            action=action,
        )
