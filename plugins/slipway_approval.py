"""A person's decision about a rollout: asked in Airflow, bound to the evidence shown, and recorded in the rollout.

The task's own state decides nothing: it is the record that counts, and only an answer given here (or by
`slipway rollout approve|reject`) is written there, with the name of the one who gave it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.hitl import HITLOperator
from airflow.sdk import Param
from airflow.sdk.exceptions import AirflowFailException

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

    Airflow 3.3 may take a task for lost whose answer comes within a second or two of the question; it is then tried
    again, and a rollout whose answer has been recorded (here or by another way) is not asked about twice.
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
