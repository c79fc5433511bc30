"""One DAG a feature view: build from the datasets, check, publish to the lake, make readable online."""

from airflow.sdk import DAG, XComArg
from slipway_dags import as_of_param, common, dataset_asset, include_dir, schedule, spec_names, view_asset
from slipway_operators import AS_OF, JobOperator

from pipelines.spec.loading import load_view

JOBS = "pipelines.wiring.features"

for name in spec_names("features"):
    spec = load_view(include_dir(), name)
    with DAG(
        f"features.{name}",
        description=spec.description,
        schedule=schedule(spec.schedule, [dataset_asset(dataset) for dataset in spec.datasets]),
        params={"as_of": as_of_param()},
        **common("features", spec.owner, view=name),
    ):
        build = JobOperator(task_id="build", job=f"{JOBS}:build", arguments={"view": name}, as_of="run")
        check = JobOperator(task_id="check", job=f"{JOBS}:check", arguments={"ref": build.output})
        publish = JobOperator(task_id="publish", job=f"{JOBS}:publish", arguments={"ref": build.output})
        materialise = JobOperator(
            task_id="materialise",
            job=f"{JOBS}:materialise",
            arguments={"view": name},
            as_of=XComArg(build, AS_OF),
            asset=view_asset(name),
        )

        build >> check >> publish >> materialise
