"""A person's decision about a rollout: asked in Airflow, bound to the evidence shown, and recorded in the rollout.

The task's own state decides nothing: it is the record that counts, and only an answer given here (or by
`slipway rollout approve|reject`) is written there, with the name of the one who gave it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from airflow.providers.standard.operators.hitl import HITLOperator
from airflow.sdk import Param
from airflow.sdk.exceptions import AirflowFailException
from airflow.triggers.base import BaseTrigger, TaskFailedEvent, TaskSuccessEvent, TriggerEvent
from asgiref.sync import sync_to_async

APPROVE = "Approve"
REJECT = "Reject"
REASON = {"reason": Param("", type="string", title="Why")}
"""The form of the question: `params=REASON` on the task (Airflow tells a task's params from its DAG's by that)."""


class RolloutApproval(HITLOperator):
    """Ask the approvers whether a rollout may go on; record the answer with its author.

    Rejection ends the task as a failure, any other answer as a success: the rollout says what became of it. It is held
    still when the evidence has come to read otherwise since the question was put (the answer is void), and when the
    plan wants more people to agree; then the next run asks again. The question of a task cannot be put twice: Airflow
    keeps its text and its respondents from try to try.

    Airflow 3.3 may take a task for lost whose answer comes within seconds of the question, and tries it again. Then the
    answer that it was given counts, and a rollout whose answer has been recorded (here or by another way) is not asked
    about twice. Who clears the task wants to be asked again.
    """

    template_fields = ("subject", "body", "rollout_id")
    ui_color = "#fbe3d6"

    def __init__(self, *, approvers: Sequence[str], question: str, start: str = "start", **kwargs: Any) -> None:
        self.rollout_id = f"{{{{ ti.xcom_pull(task_ids='{start}', map_indexes=-1)['id'] }}}}"
        super().__init__(
            subject=question,
            body="",
            options=[APPROVE, REJECT],
            assigned_users=[{"id": name, "name": name} for name in approvers],
            **{"retries": 2, "retry_delay": timedelta(seconds=3), **kwargs},
        )

    def execute(self, context: Any) -> Any:
        if tried_again(context["ti"], self.retries or 0):
            self.defer(trigger=LostAnswerTrigger(str(context["ti"].id), self.rollout_id), method_name="ask")
        return self.ask(context)

    def ask(self, context: Any, event: object = None) -> Any:  # noqa: ARG002  # the trigger's, which says nothing
        """Put the question, unless it is answered."""
        from pipelines.settings import Settings
        from pipelines.wiring import rollouts

        shown = rollouts.question(Settings(), self.rollout_id)
        if (answered := already_answered(shown)) is not None:
            return answered
        self.body = text(shown)
        agreed = (shown["question"] or {}).get("approvals", ())
        self.assigned_users = [user for user in self.assigned_users or [] if user["id"] not in agreed]
        context["ti"].xcom_push("evidence_digest", asked_about(shown))
        return super().execute(context)

    def execute_complete(self, context: Any, event: dict[str, Any]) -> Any:
        answer = super().execute_complete(context, event)
        shown = context["ti"].xcom_pull(task_ids=self.task_id, key="evidence_digest", map_indexes=-1)
        return record(self.rollout_id, answer, str(shown or ""))


class LostAnswerTrigger(BaseTrigger):
    """Record the answer that the try before was given and did not live to record, and end the task; else go on asking.

    Only a trigger may read an answer that stands already: to ask again is to delete it.
    """

    def __init__(self, ti_id: str, rollout_id: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # Airflow's base has no types
        self.ti_id = ti_id
        self.rollout_id = rollout_id

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return "slipway_approval.LostAnswerTrigger", {"ti_id": self.ti_id, "rollout_id": self.rollout_id}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        from airflow.sdk.execution_time.hitl import get_hitl_detail_content_detail

        ended: TriggerEvent = TriggerEvent({})  # type: ignore[no-untyped-call] # Airflow's event has no types
        given = await sync_to_async(get_hitl_detail_content_detail)(ti_id=UUID(self.ti_id))
        if given.response_received:
            try:
                recorded = await asyncio.to_thread(take_up, self.rollout_id, given.model_dump())
                if recorded is not None:
                    ended = TaskSuccessEvent(xcoms={"return_value": recorded})
            except AirflowFailException as error:
                ended = TaskFailedEvent(xcoms={"return_value": {"rollout_id": self.rollout_id, "reason": str(error)}})
        yield ended


def take_up(rollout_id: str, answer: Mapping[str, Any]) -> dict[str, Any] | None:
    """Record an answer that was lost on its way; None when it was not about the question that stands.

    Raises AirflowFailException as `record` does.
    """
    from pipelines.settings import Settings
    from pipelines.wiring import rollouts

    shown = rollouts.show(Settings(), rollout_id)
    if already_answered(shown) is None and stands(shown, answer["responded_at"]):
        return record(rollout_id, answer, asked_about(shown))
    return None


def tried_again(ti: Any, retries: int) -> bool:
    """Whether it is Airflow that tries again; a task that a person has cleared begins anew."""
    return bool(ti.try_number > ti.max_tries - retries + 1)


def stands(shown: Mapping[str, Any], answered_at: datetime) -> bool:
    """Whether nothing has been decided about the rollout since: it was this question that was answered."""
    at = [datetime.fromisoformat(each["at"]) for each in shown["decisions"] if "at" in each]
    return max(at) < answered_at


def already_answered(shown: Mapping[str, Any]) -> dict[str, Any] | None:
    """What to return without asking: the rollout goes on already. None when the question is open.

    Raises AirflowFailException when the rollout has ended against its challenger.
    """
    if shown["status"] == "held" or (shown["status"] == "running" and shown["stage"] == "approval"):
        return None
    if shown["status"] in ("running", "promoted"):
        return {"rollout_id": shown["id"], "status": shown["status"]}
    raise AirflowFailException(f"rollout {shown['id']} is {shown['status']}")


def record(rollout_id: str, answer: Mapping[str, Any], evidence_digest: str) -> dict[str, Any]:
    """Write the answer into the rollout; returns where it stands then, and why the answer is void if it is.

    Raises AirflowFailException for a rejection, and for an answer that the rollout refuses.
    """
    from pipelines.contracts.errors import SlipwayError, StaleDecisionError
    from pipelines.settings import Settings
    from pipelines.wiring import rollouts

    user = answer["responded_by_user"] or {}
    actor = str(user.get("id") or user.get("name") or "unknown")
    approved = answer["chosen_options"] == [APPROVE]
    reason = str((answer["params_input"] or {}).get("reason") or "answered in Airflow")
    settings = Settings()
    verb = rollouts.approve if approved else rollouts.reject
    try:
        after = verb(settings, rollout_id, actor, reason, evidence_digest=evidence_digest)
    except StaleDecisionError as error:
        return {"rollout_id": rollout_id, "status": "held", "void": str(error)}
    except SlipwayError as error:
        if approved and (answered := already_answered(rollouts.show(settings, rollout_id))) is not None:
            return answered
        raise AirflowFailException(f"Not recorded: {error} Clear this task to be asked again.") from error
    if not approved:
        raise AirflowFailException(f"{actor} rejected rollout {rollout_id}: {reason}")
    return {"rollout_id": rollout_id, "status": after.status, "actor": actor, "reason": reason}


def asked_about(shown: Mapping[str, Any]) -> str:
    """Digest of the evidence that an answer counts for."""
    return str((shown["question"] or {}).get("evidence") or shown["evidence_digest"])


def text(shown: Mapping[str, Any]) -> str:
    """What the person is shown, as Markdown."""
    rows = [f"| {v['metric']} | {v['verdict']} | {v.get('reason', '')} |" for v in shown.get("verdicts", [])]
    table = ["| metric | verdict | why |", "|---|---|---|", *rows] if rows else []
    lines = [
        f"Model **{shown['model']}**, stage **{shown['stage']}**.",
        f"Challenger `{shown['challenger'][:12]}`, champion `{(shown['champion'] or 'none')[:12]}`.",
        "",
        *table,
        "",
        f"Evidence `{(asked_about(shown) or 'none')[:12]}`. More: `slipway rollout show {shown['id']}`.",
        *_agreement(shown),
    ]
    return "\n".join(lines)


def _agreement(shown: Mapping[str, Any]) -> list[str]:
    """How many have to agree, when one is not enough."""
    if shown["approvals"] == 1:
        return []
    agreed = (shown["question"] or {}).get("approvals") or ["nobody"]
    return ["", f"{shown['approvals']} different people have to agree; so far: {', '.join(agreed)}."]
