"""Four DAGs a model: train a release, roll it out, monitor the champion, score in batch."""

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import DAG, TriggerRule, XComArg, chain
from slipway_approval import REASON, RolloutApproval
from slipway_dags import (
    as_of_param,
    common,
    drift_asset,
    include_dir,
    release_asset,
    schedule,
    scores_asset,
    spec_names,
    text_param,
)
from slipway_gates import GateSensor
from slipway_operators import AS_OF, BranchJobOperator, JobOperator

from pipelines.spec.loading import load_model
from pipelines.spec.model import ModelSpec

TRAINING = "pipelines.wiring.training"
ROLLOUTS = "pipelines.wiring.rollout_runs"
MONITORING = "pipelines.wiring.monitoring"
SCORING = "pipelines.wiring.batch_scores"


def train(spec: ModelSpec) -> None:
    """Data to a registered release. It ends there: what happens to the release is a rollout's business."""
    model = {"model": spec.name}
    with DAG(
        f"model.{spec.name}.train",
        description=f"Train and register a release of {spec.name}: {spec.description}",
        schedule=schedule(spec.schedule, [drift_asset(spec.name)], every=False),
        params={"as_of": as_of_param()},
        **common("train", spec.owner, model=spec.name),
    ):
        data = JobOperator(task_id="training_set", job=f"{TRAINING}:make_training_set", arguments=model, as_of="run")
        as_of = XComArg(data, AS_OF)
        fit = JobOperator(
            task_id="fit", job=f"{TRAINING}:fit", arguments=model | {"training": data.output}, as_of=as_of
        )
        candidate = {"candidate": fit.output}
        evaluate = JobOperator(task_id="evaluate", job=f"{TRAINING}:evaluate", arguments=candidate)
        export = JobOperator(task_id="export", job=f"{TRAINING}:export", arguments=candidate)
        release = {"release": export.output}
        gates = JobOperator(task_id="offline_gates", job=f"{TRAINING}:offline_gates", arguments=release)
        registered = JobOperator(
            task_id="registered",
            job=f"{TRAINING}:register",
            arguments=release,
            as_of=as_of,
            asset=release_asset(spec.name),
            fail_when=("status", "refused"),
        )

        chain(data, fit, evaluate, export, gates, registered)
        if spec.rollout.start == "auto":
            registered >> TriggerDagRunOperator(
                task_id="start_rollout",
                trigger_dag_id=f"model.{spec.name}.rollout",
                trigger_run_id=f"release__{_pulled('export')}",
                conf={"challenger": _pulled("export")},
                logical_date=None,
                skip_when_already_exists=True,
            )


def rollout(spec: ModelSpec) -> None:
    """A challenger's way. The stages are gates in a row; any of them may end the way, or call a person."""
    stages = [stage.name for stage in spec.rollout.stages]
    with DAG(
        f"model.{spec.name}.rollout",
        description=f"Carry a release of {spec.name} through {', '.join(stages)}",
        schedule=None,
        params={
            "as_of": as_of_param(),
            "challenger": text_param("Challenger", "Digest or version of the release. Empty: the newest registered."),
            "rollout_id": text_param("Rollout", "A rollout that is under way, to be taken up where it stands."),
            "actor": text_param("Started by", "Who asks for it; it is written into the record."),
        },
        **common("rollout", spec.owner, model=spec.name),
    ):
        start = BranchJobOperator(
            task_id="start",
            job=f"{ROLLOUTS}:begin",
            arguments={
                "model": spec.name,
                "challenger": "{{ params.challenger }}",
                "rollout_id": "{{ params.rollout_id }}",
                "actor": "{{ params.actor or dag_run.run_id }}",
            },
            as_of="run",
            by="way",
            branches={"first": ["approve"], "stages": ["backtest"]},
        )
        this = {"rollout_id": _pulled("start", "id")}
        # A task behind a failure: the failure may be that of the start itself, and then there is no rollout.
        begun = {"rollout_id": "{{ (ti.xcom_pull(task_ids='start') or {}).get('id', '') }}"}

        def advance(task_id: str) -> JobOperator:
            return JobOperator(task_id=task_id, job=f"{ROLLOUTS}:advance", arguments=this)

        promoted = EmptyOperator(task_id="promoted", trigger_rule=TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS)

        backtest = JobOperator(task_id="backtest", job=f"{ROLLOUTS}:backtest", arguments=this)
        gates = [GateSensor(task_id=f"gate_{stage}", stage=stage) for stage in stages]
        ways_on = [advance(f"advance_{stage}") for stage in stages]
        in_turn = [task for pair in zip(gates, ways_on, strict=True) for task in pair]
        chain(start, backtest, *in_turn, promoted)

        approve = RolloutApproval(
            task_id="approve",
            approvers=spec.rollout.approvers,
            params=REASON,
            question=f"First champion of {spec.name}: let this release answer all requests?",
        )
        approved = BranchJobOperator(
            task_id="advance_approved",
            job=f"{ROLLOUTS}:advance",
            arguments=this,
            by="status",
            branches={"promoted": ["promoted"], "held": ["go_on"]},
        )

        stopped = BranchJobOperator(
            task_id="stopped",
            job=f"{ROLLOUTS}:advance",
            arguments=begun,
            needs="rollout_id",
            by="status",
            branches={"held": ["decide"]},
            trigger_rule=TriggerRule.ONE_FAILED,
        )
        decide = RolloutApproval(
            task_id="decide",
            approvers=spec.rollout.approvers,
            params=REASON,
            question=f"Rollout of {spec.name} is held: go on with it?",
        )
        go_on = TriggerDagRunOperator(
            task_id="go_on",
            trigger_dag_id=f"model.{spec.name}.rollout",
            trigger_run_id=_pulled_of("run_id", "advance_decided", "advance_approved"),
            conf={"rollout_id": _pulled("start", "id")},
            logical_date=None,
            skip_when_already_exists=True,
            trigger_rule=TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS,
        )
        withdrawn = JobOperator(
            task_id="withdrawn",
            job=f"{ROLLOUTS}:advance",
            arguments=this,
            trigger_rule=TriggerRule.ONE_FAILED,
        )
        chain(start, approve, approved, [promoted, go_on])
        [*gates, approve] >> stopped
        chain(stopped, decide, advance("advance_decided"), go_on)
        decide >> withdrawn


def monitor(spec: ModelSpec) -> None:
    """Watch the champion's inputs, scores, labels and performance; ask for a retraining when it has drifted."""
    if spec.monitor is None:
        return
    with DAG(
        f"model.{spec.name}.monitor",
        description=f"Watch the champion of {spec.name} for drift",
        schedule=schedule(spec.monitor.schedule),
        params={"as_of": as_of_param()},
        **common("monitor", spec.owner, model=spec.name),
    ):
        measure = JobOperator(
            task_id="measure",
            job=f"{MONITORING}:measure",
            arguments={"model": spec.name},
            as_of="run",
            skip_unless="measured",
        )
        this = {"report": _pulled("measure", "digest"), "model": spec.name}
        as_of = XComArg(measure, AS_OF)
        report = JobOperator(task_id="report", job=f"{MONITORING}:report", arguments=this, as_of=as_of)
        retrain = JobOperator(
            task_id="retrain",
            job=f"{MONITORING}:retrain",
            arguments=this,
            as_of=as_of,
            asset=drift_asset(spec.name),
            skip_unless="asked",
        )

        measure >> [report, retrain]


def score(spec: ModelSpec) -> None:
    """Score every open request with the champion, into the lake."""
    if spec.score is None:
        return
    with DAG(
        f"model.{spec.name}.score",
        description=f"Batch scores of {spec.name} by its champion",
        schedule=schedule(spec.score.schedule),
        params={"as_of": as_of_param()},
        **common("score", spec.owner, model=spec.name),
    ):
        JobOperator(
            task_id="score",
            job=f"{SCORING}:score",
            arguments={"model": spec.name},
            as_of="run",
            asset=scores_asset(spec.name),
            skip_unless="scored",
        )


def _pulled(task_id: str, field: str = "") -> str:
    """Jinja for the result of a task, or for one field of it."""
    return f"{{{{ ti.xcom_pull(task_ids='{task_id}', map_indexes=-1){f'[{field!r}]' if field else ''} }}}}"


def _pulled_of(field: str, *task_ids: str) -> str:
    """Jinja for a field of the result of whichever of these tasks has run."""
    results = " or ".join(f"ti.xcom_pull(task_ids='{task_id}', map_indexes=-1)" for task_id in task_ids)
    return f"{{{{ ({results})[{field!r}] }}}}"


for name in spec_names("models"):
    model_spec = load_model(include_dir(), name)
    train(model_spec)
    rollout(model_spec)
    monitor(model_spec)
    score(model_spec)
