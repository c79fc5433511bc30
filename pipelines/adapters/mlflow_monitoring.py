"""Monitor reports in MLflow: one run a look, its numbers as metrics, Evidently's page as an artifact."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from pipelines.contracts.clocks import from_us
from pipelines.contracts.errors import TransientError
from pipelines.monitoring.report import MonitorReport


def log(url: str, report: MonitorReport, pages: list[Path]) -> str:
    """Log the report and its pages; a second call for the same report writes into the same run. Returns its run id.

    Raises TransientError when the server does not answer.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    try:
        return _log(MlflowClient(tracking_uri=url), report, pages)
    except MlflowException as error:
        raise TransientError(
            f"MLflow at {url}", got=str(error)[:300], hint="`slipway status` shows what runs."
        ) from error


def _log(client: Any, report: MonitorReport, pages: list[Path]) -> str:
    name = f"{report.model}.monitor"
    experiment = client.get_experiment_by_name(name)
    experiment_id = experiment.experiment_id if experiment else client.create_experiment(name)
    found = client.search_runs([experiment_id], f"tags.`slipway.digest` = '{report.digest}'", max_results=1)
    run_id = str(found[0].info.run_id if found else _started(client, experiment_id, report))
    for verdict in report.verdicts:
        key = f"{verdict.kind}.{verdict.name}"
        for part in ("psi", "p_value", "reference", "current"):
            value = getattr(verdict, part)
            if value is not None and math.isfinite(value):
                client.log_metric(run_id, f"{key}.{part}", value, timestamp=report.as_of_us // 1000)
    client.log_text(run_id, report.to_json(), "report.json")
    for page in pages:
        client.log_artifact(run_id, str(page))
    client.set_terminated(run_id)
    return run_id


def _started(client: Any, experiment_id: str, report: MonitorReport) -> str:
    tags = {
        "slipway.digest": report.digest,
        "slipway.model": report.model,
        "slipway.champion": report.champion,
        "slipway.as_of": from_us(report.as_of_us).isoformat(),
        "slipway.failed": ", ".join(report.failed),
        "mlflow.runName": f"{from_us(report.as_of_us):%Y-%m-%d %H:%M}",
    }
    return str(client.create_run(experiment_id, tags=tags).info.run_id)
