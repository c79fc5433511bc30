"""Jobs of the monitor: measure the champion's last days, show them to people, ask for a retraining after drift."""

from __future__ import annotations

import tempfile
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa

from pipelines.adapters import inference_log
from pipelines.adapters.control_db import control_db
from pipelines.adapters.delta_lake import DeltaLake, open_lake
from pipelines.adapters.inference_log import Served
from pipelines.contracts.clocks import from_us
from pipelines.contracts.errors import NotFoundError, SpecError
from pipelines.monitoring import performance, triggers, verdicts
from pipelines.monitoring.columns import Column, Numbers, Windows, windows
from pipelines.monitoring.report import MonitorReport, from_json
from pipelines.monitoring.triggers import Ask, RetrainRule
from pipelines.monitoring.verdicts import Bars, Verdict
from pipelines.settings import Settings
from pipelines.spec.loading import load_model
from pipelines.spec.model import ModelSpec, Monitor

ASKED, REFUSED = "asked", "refused"


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What a look found. Without a champion nothing is measured, and that is no error: `measured` is false."""

    measured: bool
    digest: str = ""
    champion: str = ""
    drifted: bool = False
    failed: list[str] = []
    sentences: list[str] = []


class Asked(Ask, frozen=True, kw_only=True):
    """The decision about a retraining, with the digest of the report that it rests on."""

    digest: str


class Monitored(msgspec.Struct, frozen=True, kw_only=True):
    """A whole look: the report's name, what it found, and whether a retraining was asked for."""

    measured: Measured
    ask: Asked


def table_of(model: str) -> str:
    """The lake table of a model's monitor reports."""
    return f"monitoring/{model}"


def measure(settings: Settings, model: str, as_of_us: int) -> Measured:
    """Compare the two windows of the champion at `as_of_us` and keep the report in the lake."""
    spec, monitor_spec = _specs(settings, model)
    champion = control_db(settings).champion(model)
    if champion is None:
        return Measured(measured=False)
    lake = open_lake(settings)
    reference_us, current_us = monitor_spec.reference.us, monitor_spec.current.us
    inputs = windows(as_of_us, reference_us, current_us)
    labels = windows(as_of_us, reference_us, current_us, spec.labels.maturity.us)
    found = [
        *_distributions(monitor_spec, *_rows(lake, model, champion, inputs, as_of_us)),
        *_truths(spec, monitor_spec, *_rows(lake, model, champion, labels, as_of_us)),
    ]
    report = MonitorReport(
        model=model, champion=champion, as_of_us=as_of_us, inputs=inputs, labels=labels, verdicts=found
    )
    _keep(lake, report)
    return Measured(
        measured=True,
        digest=report.digest,
        champion=champion,
        drifted=bool(report.failed),
        failed=report.failed,
        sentences=[f"{verdict.name}: {verdict.verdict}, {verdict.sentence}" for verdict in found],
    )


def report(settings: Settings, model: str, report: str, as_of_us: int) -> str:
    """Evidently's page of the report's windows as an artifact in MLflow. Returns the run's id."""
    from pipelines.adapters import evidently_reports, mlflow_monitoring

    found = load(settings, model, report, as_of_us)
    reference, current = _rows(open_lake(settings), model, found.champion, found.inputs, as_of_us)
    if not (reference.sampled.any() and current.sampled.any()):
        return mlflow_monitoring.log(settings.mlflow_url, found, [])
    score = Column("score", reference.score[reference.sampled], current.score[current.sampled])
    columns = [*inference_log.columns(reference, current), score]
    with tempfile.TemporaryDirectory() as folder:
        page = evidently_reports.write(columns, Path(folder) / "drift.html")
        return mlflow_monitoring.log(settings.mlflow_url, found, [page])


def retrain(settings: Settings, model: str, report: str, as_of_us: int) -> Asked:
    """Decide whether the report asks for a retraining, and write down what was decided, once for an `as_of_us`."""
    _, monitor_spec = _specs(settings, model)
    found = load(settings, model, report, as_of_us)
    database = control_db(settings)
    earlier = [row.as_of_us for row in database.retrains(model) if row.status != REFUSED]
    ask = triggers.decide(found.verdicts, earlier, as_of_us, _rule(monitor_spec))
    if ask.drifted:
        database.add_retrain(model, as_of_us, ask.reason, ASKED if ask.asked else REFUSED)
    if ask.asked:
        extra = {"as_of_us": as_of_us, "digest": report, "reason": ask.reason}
        database.emit_asset(f"drift/{model}/{as_of_us}", f"drift://{model}", extra)
    return Asked(drifted=ask.drifted, asked=ask.asked, reason=ask.reason, digest=report)


def monitor(settings: Settings, model: str, as_of_us: int) -> Monitored:
    """Measure, show and decide. Raises NotFoundError without a champion."""
    measured = measure(settings, model, as_of_us)
    if not measured.measured:
        raise NotFoundError(f"champion of {model}", hint="Roll a release out first.")
    report(settings, model, measured.digest, as_of_us)
    return Monitored(measured=measured, ask=retrain(settings, model, measured.digest, as_of_us))


def load(settings: Settings, model: str, report: str, as_of_us: int) -> MonitorReport:
    """A kept report by digest. Raises NotFoundError."""
    where = f"as_of = TIMESTAMPTZ '{from_us(as_of_us).isoformat()}' AND digest = '{report}'"
    rows = open_lake(settings).read(table_of(model), ["document"], where)
    if rows.num_rows == 0:
        got, table = f"{model} {from_us(as_of_us).isoformat()} {report[:12]}", table_of(model)
        raise NotFoundError("monitor report", got=got, expected=f"one in {table}", hint=f"Run model.{model}.monitor.")
    return from_json(rows.column("document")[0].as_py())


def _specs(settings: Settings, model: str) -> tuple[ModelSpec, Monitor]:
    spec = load_model(settings.include_dir, model)
    if spec.monitor is None:
        raise SpecError(f"model {model}", expected="a key `monitor`")
    return spec, spec.monitor


def _rule(spec: Monitor) -> RetrainRule | None:
    if spec.retrain is None:
        return None
    return RetrainRule(cooldown_us=spec.retrain.cooldown.us, limit=spec.retrain.limit, per_us=spec.retrain.per.us)


def _bars(spec: Monitor) -> Bars:
    return Bars(psi=spec.drift.psi, p_value=spec.drift.p_value, min_rows=spec.drift.min_rows)


def _rows(lake: DeltaLake, model: str, champion: str, days: Windows, as_of_us: int) -> tuple[Served, Served]:
    return (
        inference_log.served(lake, model, champion, days.reference, as_of_us),
        inference_log.served(lake, model, champion, days.current, as_of_us),
    )


def _distributions(spec: Monitor, reference: Served, current: Served) -> list[Verdict]:
    """Inputs and features as served, and the scores. `report_only` names a column with or without its view.

    Where payloads are sampled, the verdicts about inputs and features say of how many rows they were there.
    """
    bars = _bars(spec)
    quiet = set(spec.report_only)
    found = [
        verdicts.of_column(column, bars, report_only=bool(quiet & {column.name, column.name.rpartition(".")[2]}))
        for column in inference_log.columns(reference, current)
    ]
    if (shares := (reference.sampled_share, current.sampled_share)) != (1.0, 1.0):
        said = "payloads of {:.1%} of the reference's rows and {:.1%} of the current ones are logged".format(*shares)
        found = [msgspec.structs.replace(one, sentence=f"{one.sentence}; {said}") for one in found]
    return [*found, verdicts.of_column(Column("score", reference.score, current.score), bars, kind="score")]


def _truths(spec: ModelSpec, monitor_spec: Monitor, reference: Served, current: Served) -> list[Verdict]:
    """Labels and performance, over the rows whose truth has arrived."""
    bars = _bars(monitor_spec)
    (before, truth_before), (now, truth_now) = _known(reference), _known(current)
    found = [verdicts.of_label(truth_before, truth_now, spec.task, bars)]
    if (bar := monitor_spec.performance) is not None:
        losses_before = performance.losses(bar.metric, before, truth_before)
        losses_now = performance.losses(bar.metric, now, truth_now)
        found.append(verdicts.of_performance(bar.metric, losses_before, losses_now, bar.max_worse_rel, bars))
    return found


def _known(rows: Served) -> tuple[Numbers, Numbers]:
    """Scores and labels of the rows that have both."""
    mask = ~np.isnan(rows.label) & ~np.isnan(rows.score)
    return rows.score[mask], rows.label[mask]


def _keep(lake: DeltaLake, found: MonitorReport) -> None:
    as_of = from_us(found.as_of_us)
    rows = pa.table(
        {
            "as_of": pa.array([as_of], pa.timestamp("us", tz="UTC")),
            "champion": [found.champion],
            "digest": [found.digest],
            "drifted": [bool(found.failed)],
            "document": [found.to_json()],
        }
    )
    where = f"as_of = '{as_of.isoformat()}'" if lake.exists(table_of(found.model)) else None
    lake.replace(table_of(found.model), rows, where=where)
