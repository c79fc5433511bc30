"""The gate sensor: waits in the triggerer, and only there, until its rollout has left a stage.

A gate never takes a worker: the scheduler hands it straight to the triggerer (`start_from_trigger`), and the trigger
ends the task itself. What it returns means nothing to a rollout: decisions are read from and written to the control
database, so a gate that is marked a success by hand lets nothing pass; the next gate says so. A killed triggerer loses
nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from airflow.sdk import BaseSensorOperator
from airflow.triggers.base import BaseTrigger, StartTriggerArgs, TaskFailedEvent, TaskSuccessEvent, TriggerEvent

POLL_S = 0.5
SLOWEST_POLL_S = 30.0
TRIGGER = "slipway_gates.GateTrigger"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a gate ends: whether the rollout may go on behind it, and why."""

    passed: bool
    status: str
    reason: str


def outcome(rollout_id: str, status: str, stages: Sequence[str], at: str, gate: str) -> Outcome | None:
    """How the gate of stage `gate` ends for a rollout of this status that is `at` a stage; None while it has to wait.

    `stages` are the rollout's own, in order, as frozen into it. Pure.
    """
    if status == "waiting":
        return None
    if gate not in stages:
        return Outcome(False, status, f"rollout {rollout_id} has no stage {gate}: its own are {', '.join(stages)}")
    if status == "promoted" or (status in ("running", "held") and stages.index(at) > stages.index(gate)):
        return Outcome(True, status, f"rollout {rollout_id} has left {gate}")
    if status == "held" and at == gate:
        return Outcome(False, status, f"rollout {rollout_id} is held in {gate}: a person decides")
    if status not in ("running", "held"):
        return Outcome(False, status, f"rollout {rollout_id} is {status} (at {at})")
    if at != gate:
        return Outcome(
            False,
            status,
            f"rollout {rollout_id} is still in {at}: nothing has decided to leave it, whatever its task says. "
            f"Clear gate_{at} to wait for its decision.",
        )
    return None


class GateTrigger(BaseTrigger):
    """Judge (rollout, stage) every `poll_s` seconds, in a thread, until the rollout has left the stage.

    Errors that may pass are waited out, ever slower; others fail the task with their text.
    """

    def __init__(self, rollout_id: str, stage: str, poll_s: float = POLL_S) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # Airflow's base has no types
        self.rollout_id = rollout_id
        self.stage = stage
        self.poll_s = poll_s

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return TRIGGER, {"rollout_id": self.rollout_id, "stage": self.stage, "poll_s": self.poll_s}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        from pipelines.contracts.errors import SlipwayError

        pause, said = self.poll_s, ""
        while True:
            try:
                ended, text = await asyncio.to_thread(look, self.rollout_id, self.stage)
                pause = self.poll_s
            except SlipwayError as error:
                if not error.retryable:
                    yield self._end(Outcome(False, "error", f"{type(error).__name__}: {error}"))
                    return
                ended, text, pause = None, str(error), min(pause * 2, SLOWEST_POLL_S)
            except Exception as error:  # noqa: BLE001  # a trigger that dies without an event is started again for ever
                yield self._end(Outcome(False, "error", f"{type(error).__name__}: {error}"))
                return
            if ended is not None:
                yield self._end(ended)
                return
            if text != said:
                self.log.info("%s", text)
                said = text
            await asyncio.sleep(pause)  # evidence tells nobody that it has grown

    def _end(self, ended: Outcome) -> TriggerEvent:
        self.log.info("%s", ended.reason)
        value = {"rollout_id": self.rollout_id, "stage": self.stage, "status": ended.status, "reason": ended.reason}
        kind = TaskSuccessEvent if ended.passed else TaskFailedEvent
        return kind(xcoms={"return_value": value})


def look(rollout_id: str, stage: str) -> tuple[Outcome | None, str]:
    """Have the rollout's evidence judged if `stage` is current, then tell how the gate ends and what was seen.

    A route that was decided here is set here: the task behind the gate may be seconds away, or its scheduler gone.
    """
    from pipelines.settings import Settings
    from pipelines.wiring import rollouts

    settings = Settings()
    ended = _ended(rollouts.load(settings, rollout_id), stage)
    if ended is not None:
        return ended, ended.reason
    seen = rollouts.look(settings, rollout_id, stage)
    rollout = rollouts.load(settings, rollout_id)
    if seen.decision is not None:
        rollouts.set_routes(settings, rollout.model)
    return _ended(rollout, stage), describe(seen.verdicts)


def describe(verdicts: Sequence[Mapping[str, Any]]) -> str:
    """One line that says where every metric stands."""
    return ", ".join(f"{v['metric']}: {v['verdict']}" for v in verdicts) or "no evidence yet"


def _ended(rollout: Any, stage: str) -> Outcome | None:
    names = [each.name for each in rollout.stages]
    return outcome(rollout.id, rollout.status, names, rollout.stage, stage)


class GateSensor(BaseSensorOperator):
    """Waits until the rollout that `start` began (or took up) has left `stage`. Fails when it may not go on.

    timeout: a net under the gate (the stage's own `max_wait` is decided by the rollout, as a hold).
    """

    template_fields = ("rollout_id",)
    start_from_trigger = True
    ui_color = "#fdf3d8"

    def __init__(
        self, *, stage: str, start: str = "start", timeout: timedelta = timedelta(days=90), **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.stage = stage
        # In the triggerer only an XCom of one map index can be pulled; without it the trigger would wait for ever.
        self.rollout_id = f"{{{{ ti.xcom_pull(task_ids='{start}', map_indexes=-1)['id'] }}}}"
        self.start_trigger_args = StartTriggerArgs(
            trigger_cls=TRIGGER,
            next_method="resumed",
            trigger_kwargs={"rollout_id": self.rollout_id, "stage": stage, "poll_s": POLL_S},
            timeout=timeout,
        )

    def execute(self, context: Any) -> None:  # noqa: ARG002 - Airflow's signature
        raise AssertionError("a gate is started by its trigger")

    def resumed(self, context: Any, event: Mapping[str, Any] | None = None) -> None:  # noqa: ARG002 - Airflow's signature
        raise AssertionError("a gate is ended by its trigger")
