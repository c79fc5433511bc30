"""One DAG a dataset: take what is new, check it, set bad rows aside, publish the rest."""

from airflow.sdk import DAG, XComArg
from slipway_dags import as_of_param, common, dataset_asset, include_dir, schedule, spec_names
from slipway_operators import AS_OF, JobOperator

from pipelines.spec.loading import load_dataset

JOBS = "pipelines.wiring.datasets"

for name in spec_names("datasets"):
    spec = load_dataset(include_dir(), name)
    with DAG(
        f"dataset.{name}",
        description=spec.description,
        schedule=schedule(spec.schedule),
        params={"as_of": as_of_param()},
        **common("dataset", spec.owner, dataset=name),
    ):
        stage = JobOperator(task_id="stage", job=f"{JOBS}:stage", arguments={"name": name}, as_of="run")
        check = JobOperator(task_id="check", job=f"{JOBS}:check", arguments={"ref": stage.output})
        quarantine = JobOperator(task_id="quarantine", job=f"{JOBS}:quarantine", arguments={"ref": stage.output})
        publish = JobOperator(
            task_id="publish",
            job=f"{JOBS}:publish",
            arguments={"ref": stage.output},
            as_of=XComArg(stage, AS_OF),
            asset=dataset_asset(name),
        )

        stage >> check >> quarantine >> publish
