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

    Approval ends the task as a success, rejection as a failure. An answer to evidence that has changed since the
    question is not recorded and fails the task: clear it, and the person is asked again about what is true now.

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
        shown = _show(self.rollout_id)
        if (answered := already_answered(shown)) is not None:
            return answered
        self.body = text(shown)
        context["ti"].xcom_push("evidence_digest", shown["evidence_digest"])
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
    """Write the answer into the rollout. Raises AirflowFailException when it is refused there, or is a rejection."""
    from pipelines.contracts.errors import SlipwayError
    from pipelines.settings import Settings
    from pipelines.wiring import rollouts

    user = answer["responded_by_user"] or {}
    actor = str(user.get("id") or user.get("name") or "unknown")
    approved = answer["chosen_options"] == [APPROVE]
    reason = str((answer["params_input"] or {}).get("reason") or "answered in Airflow")
    verb = rollouts.approve if approved else rollouts.reject
    try:
        verb(Settings(), rollout_id, actor, reason, evidence_digest=evidence_digest)
    except SlipwayError as error:
        raise AirflowFailException(f"Not recorded: {error} Clear this task to be asked again.") from error
    if not approved:
        raise AirflowFailException(f"{actor} rejected rollout {rollout_id}: {reason}")
    return {"rollout_id": rollout_id, "actor": actor, "reason": reason}


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
        f"Evidence `{(shown['evidence_digest'] or 'none')[:12]}`. More: `slipway rollout show {shown['id']}`.",
    ]
    return "\n".join(lines)


def _show(rollout_id: str) -> dict[str, Any]:
    from pipelines.settings import Settings
    from pipelines.wiring import rollouts

    return rollouts.show(Settings(), rollout_id)
