"""One DAG a feature view: make anew what changed facts touch, build what is new, check, publish, make readable online.

With `from` and `to` it first makes those days anew, a mapped task for each part of them.
"""

from airflow.sdk import DAG, TriggerRule, XComArg, chain
from slipway_dags import as_of_param, common, dataset_asset, include_dir, schedule, spec_names, text_param, view_asset
from slipway_operators import AS_OF, JobOperator

from pipelines.spec.loading import load_view

JOBS = "pipelines.wiring.features"
CORRECTIONS = "pipelines.wiring.corrections"
VERSIONS = "pipelines.wiring.view_versions"
AT_ONCE = 2

for name in spec_names("features"):
    spec = load_view(include_dir(), name)
    with DAG(
        f"features.{name}",
        description=spec.description,
        schedule=schedule(spec.schedule, [dataset_asset(dataset) for dataset in spec.datasets]),
        params={
            "as_of": as_of_param(),
            "from": text_param("From", "First day to make anew, like 2013-01-31. Empty: none but what facts ask for."),
            "to": text_param("To", "Last day to make anew. Empty: the first alone."),
        },
        **common("features", spec.owner, view=name),
    ):
        plan = JobOperator(
            task_id="plan_backfill",
            job=f"{CORRECTIONS}:plan_backfill",
            arguments={"view": name, "first": "{{ params['from'] }}", "last": "{{ params['to'] }}"},
            as_of="run",
        )
        as_of = XComArg(plan, AS_OF)
        backfill = JobOperator.partial(
            task_id="backfill", job=f"{CORRECTIONS}:backfill", as_of=as_of, max_active_tis_per_dagrun=AT_ONCE
        ).expand(arguments=plan.output)
        amend = JobOperator(
            task_id="amend",
            job=f"{CORRECTIONS}:amend",
            arguments={"view": name},
            as_of=as_of,
            trigger_rule=TriggerRule.NONE_FAILED,  # no part to make anew is a skipped task
        )
        build = JobOperator(task_id="build", job=f"{JOBS}:build", arguments={"view": name}, as_of=as_of)
        check = JobOperator(task_id="check", job=f"{JOBS}:check", arguments={"ref": build.output})
        publish = JobOperator(task_id="publish", job=f"{JOBS}:publish", arguments={"ref": build.output})
        materialise = JobOperator(
            task_id="materialise",
            job=f"{JOBS}:materialise",
            arguments={"view": name},
            as_of=as_of,
            asset=view_asset(name),
        )

        pinned = JobOperator(
            task_id="pinned_versions", job=f"{VERSIONS}:refresh_pinned", arguments={"view": name}, as_of=as_of
        )

        chain(plan, backfill, amend, build, check, publish, materialise, pinned)
