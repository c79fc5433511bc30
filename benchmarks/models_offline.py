"""The rehearsal's models offline: each variant trained when its act trains it, then scored month by month.

    .venv/bin/python benchmarks/models_offline.py [--home DIR] [--write]

Uses its own home (made on the first run: the whole sample in a lake). `--write` renews the tables of docs/models.md and
`benchmarks/results/models_offline.json`. Everything goes through the jobs that DAGs call: training sets, fits and
bundles are the product's own, and scores are those of the bundles.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contracts.clocks import to_us
from pipelines.settings import PROJECT, Settings
from pipelines.training.metrics import auc, losses

YEAR_END = datetime(2014, 1, 3, tzinfo=UTC)
# (name, spec in include/demo, trained as of, payload mistake)
MODELS = [
    ("v1", "v1", "2013-07-01", False),
    ("v2", "v2", "2013-07-01", False),
    ("v3", "v3", "2013-08-10", False),
    ("v3, hours sent", "v3", "2013-08-10", True),
    ("v4", "v4", "2013-09-05", False),
    ("v4 repaired", "v4-repaired", "2013-09-05", False),
    ("v2 of December", "v2", "2013-12-10", False),
]
# (act, champion, challenger, first day, first day after)
ACTS = [
    ("2: promotion", "v1", "v2", "2013-07-04", "2013-08-01"),
    ("3a: unit mistake", "v2", "v3, hours sent", "2013-08-10", "2013-09-01"),
    ("3a repaired", "v2", "v3", "2013-08-10", "2013-09-01"),
    ("3b: decision", "v2", "v4", "2013-09-05", "2013-09-30"),
    ("3b repaired", "v2", "v4 repaired", "2013-09-05", "2013-09-30"),
    ("4: December", "v2", "v2 of December", "2013-12-10", "2013-12-31"),
]
MARK = "<!-- measured by benchmarks/models_offline.py -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, default=Path("var/models_offline"))
    parser.add_argument("--write", action="store_true")
    chosen = parser.parse_args()
    settings = Settings(home=chosen.home, clock="replay", mlflow_port=9)
    publish_year(settings)
    rows = labelled_requests(settings)
    scores, seconds = {}, {}
    for name, file, as_of, mistake in MODELS:
        start = time.perf_counter()
        scores[name] = outputs_of(settings, file, as_of, rows, mistake)
        seconds[name] = round(time.perf_counter() - start, 1)
        print(f"{name}: {seconds[name]} s", flush=True)
    text, data = report(rows, scores)
    print(text)
    if chosen.write:
        page = PROJECT / "docs" / "models.md"
        page.write_text(page.read_text().partition(MARK)[0] + MARK + "\n\n" + text)
        results = PROJECT / "benchmarks" / "results" / "models_offline.json"
        results.parent.mkdir(exist_ok=True)
        results.write_text(json.dumps(data, indent=1, sort_keys=True) + "\n")


def publish_year(settings: Settings) -> None:
    """All datasets and views of the sample, once."""
    from pipelines.spec.loading import names
    from pipelines.wiring import datasets, features

    end = to_us(YEAR_END)
    for name in names(settings.include_dir, "datasets"):
        if (datasets.published_through(settings, name) or 0) < end:
            datasets.ingest(settings, name, end)
    for view in names(settings.include_dir, "features"):
        ref = features.build(settings, view, end)
        features.check(settings, ref)
        features.publish(settings, ref)


def with_spec(settings: Settings, file: str) -> Settings:
    """The settings with a copy of `include` in which `include/demo/late_arrival.<file>.yaml` is the model's spec."""
    include = settings.root / "include" / file
    shutil.rmtree(include, ignore_errors=True)
    shutil.copytree(PROJECT / "include", include, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(include / "demo" / f"late_arrival.{file}.yaml", include / "models" / "late_arrival.yaml")
    return settings.model_copy(update={"include_dir": include})


def labelled_requests(settings: Settings) -> pa.Table:
    """July to December: what was asked (every input of every variant), with its label."""
    from pipelines.wiring import requests_and_labels

    end = to_us(YEAR_END)
    whole = with_spec(settings, "v3")
    requests = requests_and_labels.requests(whole, "late_arrival", end)
    labels = requests_and_labels.labels(whole, "late_arrival", end).select(["request_id", "label"])
    joined = requests.join(labels, "request_id", join_type="inner").sort_by("event_timestamp")
    first, after = (pa.scalar(datetime(*day, tzinfo=UTC)) for day in ((2013, 7, 1), (2014, 1, 1)))
    times = joined["event_timestamp"]
    return joined.filter(pc.and_(pc.greater_equal(times, first), pc.less(times, after)))


def outputs_of(settings: Settings, file: str, as_of: str, rows: pa.Table, mistake: bool) -> dict[str, np.ndarray]:
    """Scores and costs of the release that the variant's training makes, over all rows."""
    from pipelines.wiring import scoring, training

    own = with_spec(settings, file)
    as_of_us = to_us(datetime.fromisoformat(as_of))
    made = training.fit(own, "late_arrival", training.make_training_set(own, "late_arrival", as_of_us), as_of_us)
    training.evaluate(own, made)
    release = scoring.load_release(own, training.export(own, made))
    asked = rows
    if mistake:
        at = rows.column_names.index("sched_minutes")
        asked = rows.set_column(at, "sched_minutes", pc.divide(rows["sched_minutes"], 60.0))
    scored = scoring.score_table(own, release, asked)
    return {"score": scoring.score_of(release, scored), "cost": costs(scored.outputs, rows["label"].to_numpy())}


def costs(outputs: dict[str, np.ndarray], label: np.ndarray) -> np.ndarray:
    """The KPI of each row, by the rehearsal's own function."""
    path = PROJECT / "include" / "demo" / "late_arrival_cost.py"
    spec = importlib.util.spec_from_file_location("late_arrival_cost", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    decisions = outputs["decision"]
    pairs = zip(decisions, label, strict=True)
    return np.array([module.cost({"decision": bool(decision)}, truth) for decision, truth in pairs])


def report(rows: pa.Table, scores: dict[str, dict[str, np.ndarray]]) -> tuple[str, dict[str, Any]]:
    """The tables as Markdown and as data."""
    label = rows["label"].to_numpy()
    time_of = rows["event_timestamp"].cast(pa.timestamp("us")).to_numpy()
    month = time_of.astype("datetime64[M]")
    loss = {name: losses("binary", label, found["score"]) for name, found in scores.items()}
    lines = ["## Log loss by month", "", "| month | flights | late |" + "".join(f" {name} |" for name in scores)]
    lines.append("|---|---|---|" + "---|" * len(scores))
    data: dict[str, Any] = {"months": [], "acts": []}
    for value in np.unique(month):
        there = month == value
        row = {name: round(float(loss[name][there].mean()), 4) for name in scores}
        areas = {name: auc(label[there], scores[name]["score"][there]) for name in scores}
        data["months"].append({"month": str(value), "flights": int(there.sum()), "log_loss": row, "auc": areas})
        cells = "".join(f" {row[name]:.4f} |" for name in scores)
        lines.append(f"| {value} | {there.sum():,} | {label[there].mean():.3f} |{cells}")
    lines += ["", "## The acts: challenger beside champion on the same flights", ""]
    lines.append(
        "| act | days | pairs | loss, champion | loss, challenger | difference | sd of a pair | day means, sd |"
    )
    lines[-1] += " cost, champion (sd) | cost, challenger (sd) |"
    lines.append("|---|---|---|---|---|---|---|---|---|---|")
    for act, champion, challenger, first, after in ACTS:
        there = (time_of >= np.datetime64(first)) & (time_of < np.datetime64(after))
        one, other = loss[champion][there], loss[challenger][there]
        difference = other - one
        days = time_of[there].astype("datetime64[D]")
        daily = [float(difference[days == day].mean()) for day in np.unique(days)]
        cost = {name: scores[name]["cost"][there] for name in (champion, challenger)}
        found = {
            "act": act,
            "pairs": int(there.sum()),
            "champion_loss": float(one.mean()),
            "challenger_loss": float(other.mean()),
            "difference": float(difference.mean()),
            "sd": float(difference.std()),
            "daily_sd": float(np.std(daily)),
            "champion_cost": [float(cost[champion].mean()), float(cost[champion].std())],
            "challenger_cost": [float(cost[challenger].mean()), float(cost[challenger].std())],
        }
        data["acts"].append(found)
        spans = f"{first[5:]} to {after[5:]}"
        lines.append(
            f"| {act} | {spans} | {found['pairs']:,} | {found['champion_loss']:.4f} | {found['challenger_loss']:.4f} |"
            f" {found['difference']:+.4f} | {found['sd']:.3f} | {found['daily_sd']:.3f} |"
            f" {found['champion_cost'][0]:.3f} ({found['champion_cost'][1]:.2f}) |"
            f" {found['challenger_cost'][0]:.3f} ({found['challenger_cost'][1]:.2f}) |"
        )
    return "\n".join(lines) + "\n", data


if __name__ == "__main__":
    main()
