"""From rollouts to the report: decisions, verdicts, charts, exposures counted twice, and checks of the whole."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.adapters.control_db import control_db
from pipelines.adapters.delta_lake import open_lake
from pipelines.demo.rehearsal import Told
from pipelines.rollout.charts import Series, evidence_chart
from pipelines.rollout.page import environment
from pipelines.settings import PROJECT, Settings
from pipelines.wiring import rollouts


def exposed_in_log(settings: Settings, rollout_id: str) -> int:
    """Requests that drew the challenger, counted in the lake's inference log and nowhere else.

    Where the challenger was too slow, or the log could not take its answer, the champion has answered in its place.
    """
    lake = open_lake(settings)
    if not lake.exists("inference/assignment"):
        return 0
    where = f"rollout_id = '{rollout_id}' AND arm = 'challenger'"
    drawn = lake.read("inference/assignment", ["request_id"], where)
    return len(set(drawn.column("request_id").to_pylist()))


def lost_answers(settings: Settings, model: str, logged: int) -> dict[str, Any]:
    """Whether every answer the application got, and that said it is logged, is in the lake exactly once."""
    lake = open_lake(settings)
    served = lake.read("inference/response", ["request_id"], f"model = '{model}' AND served").column("request_id")
    found, distinct = len(served), len(served.unique())
    return check(
        "answers that said they are logged, in the lake exactly once",
        f"{found:,} rows, {distinct:,} ids",
        f"{logged:,}",
        found == distinct == logged,
    )


def check(name: str, got: object, expected: object, ok: bool) -> dict[str, Any]:
    """One line of the report's checks."""
    return {"name": name, "got": str(got), "expected": str(expected), "ok": bool(ok)}


def rollout_summary(settings: Settings, rollout_id: str, history: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A rollout as the report shows it. `history`: verdicts by number of requests, as the driver saw them."""
    shown = rollouts.show(settings, rollout_id)
    db = control_db(settings)
    return {
        "rollout_id": rollout_id,
        "model": shown["model"],
        "status": shown["status"],
        "stage": shown["stage"],
        "challenger": shown["challenger"],
        "champion": shown["champion"],
        "semver": db.release(shown["challenger"], shown["model"]).semver,
        "exposed": shown["exposed"],
        "exposed_in_log": exposed_in_log(settings, rollout_id),
        "counts": shown["counts"],
        "backtest": shown["backtest"],
        "decisions": [
            {
                key: line.get(key)
                for key in (
                    "id",
                    "kind",
                    "stage",
                    "next_stage",
                    "cause",
                    "reason",
                    "actor",
                    "at",
                    "event_time",
                    "hash",
                    "metrics",
                )
            }
            | {"route_seconds": line.get("seconds_to_route")}
            for line in shown["decisions"]
        ],
        "verdicts": [_verdict(verdict, shown["stage"]) for verdict in shown["verdicts"]],
        "history": [
            {
                "requests": look["requests"],
                "stage": look["stage"],
                "e_values": {_name(verdict): verdict["e_value"] for verdict in look["verdicts"]},
            }
            for look in history
        ],
        "charts": _charts(rollout_id, history),
    }


def _name(verdict: dict[str, Any]) -> str:
    return str(verdict["metric"]) + (f"/{verdict['slice']}" if verdict.get("slice") else "")


def _verdict(verdict: dict[str, Any], stage: str) -> dict[str, Any]:
    return {
        "metric": verdict["metric"],
        "slice": verdict.get("slice"),
        "stage": verdict.get("stage") or stage,
        "kind": verdict["verdict"],
        "e_value": verdict.get("e_value"),
        "threshold": verdict.get("threshold"),
        "estimate": verdict.get("estimate"),
        "lower": verdict.get("lower"),
        "upper": verdict.get("upper"),
        "n": verdict.get("n"),
        "better": verdict.get("better"),
        "sentence": verdict["reason"],
    }


def _charts(rollout_id: str, history: Sequence[dict[str, Any]]) -> list[str]:
    """E-values against their bars over requests, harm first."""
    stages: list[tuple[int, str]] = []
    points: dict[str, list[tuple[int, float]]] = {}
    bars: dict[str, float | None] = {}
    for look in history:
        if not stages or stages[-1][1] != look["stage"]:
            stages.append((look["requests"], look["stage"]))
        for verdict in look["verdicts"]:
            e_value = verdict.get("e_value")
            if verdict.get("slice") or e_value is None:
                continue
            name = _name(verdict)
            points.setdefault(name, []).append((look["requests"], math.log(max(float(e_value), 1e-6))))
            bars[name] = math.log(verdict["threshold"]) if verdict.get("threshold") else None
    series = [Series(name, line, bars[name]) for name, line in points.items()]
    chart = evidence_chart(f"Evidence of rollout {rollout_id}", series, stages)
    return [chart] if chart else []


def act_summary(settings: Settings, told: Told) -> dict[str, Any]:
    """An act as the report shows it, with whether it went as the story expects."""
    act = told.act
    found = [
        rollout_summary(settings, rollout_id, told.evidence.get(rollout_id, [])) for rollout_id in told.rollout_ids
    ]
    stopped = [rollout["stage"] for rollout in found if rollout["status"] == "rolled_back"]
    ok = told.outcome == act.expect and all(stage in act.stopped_in for stage in stopped)
    return {
        "key": act.key,
        "title": act.title,
        "story": act.story,
        "expected": act.expect,
        "outcome": told.outcome,
        "ok": ok,
        "rollouts": found,
        "facts": [list(fact) for fact in told.facts],
        "dag_runs": told.dag_runs,
        "requests": told.requests,
        "seconds": round(told.seconds, 2),
    }


def commit() -> str:
    """The repository's commit; empty outside a checkout."""
    found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=PROJECT, capture_output=True, text=True, check=False)
    return found.stdout.strip()


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {"cores": os.cpu_count(), "python": platform.python_version(), "system": platform.platform()}


def write(folder: Path, report: dict[str, Any]) -> tuple[Path, Path]:
    """`report.json` and `report.html`; returns both paths."""
    folder.mkdir(parents=True, exist_ok=True)
    requests = sum(act["requests"] for act in report["acts"])
    decisions = [d for act in report["acts"] for rollout in act["rollouts"] for d in rollout["decisions"]]
    routed = sorted(d["route_seconds"] for d in decisions if d["route_seconds"] is not None)
    tiles = [
        ("wall time", f"{report['seconds'] / 60:.1f} min"),
        ("requests through the gateway", f"{requests:,}"),
        ("DAG runs", f"{sum(len(act['dag_runs']) for act in report['acts']):,}"),
        ("decisions", f"{len(decisions):,}"),
        ("decision to route, median", f"{routed[len(routed) // 2]:.2f} s" if routed else "-"),
        ("checks", f"{sum(c['ok'] for c in report['checks'])} of {len(report['checks'])} ok"),
    ]
    html = environment(Path(__file__).parent).get_template("report.html.j2").render(report=report, tiles=tiles)
    json_path, html_path = folder / "report.json", folder / "report.html"
    html_path.write_text(html)
    stripped = json.loads(json.dumps(report, default=str))
    for act in stripped["acts"]:
        for rollout in act["rollouts"]:
            del rollout["charts"]
    json_path.write_text(json.dumps(stripped, indent=1, default=str))
    return html_path, json_path
