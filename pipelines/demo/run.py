"""`slipway demo`: the stack, the acts of a variant, the report."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pipelines.adapters.airflow_rest import AirflowRest
from pipelines.adapters.control_db import control_db
from pipelines.demo import summary
from pipelines.demo.application import Application
from pipelines.demo.dag_runs import DagRuns
from pipelines.demo.driver import Replay, moment
from pipelines.demo.kpi import cost_function
from pipelines.demo.progress import Show
from pipelines.demo.rehearsal import (
    MODEL,
    Rehearsal,
    Told,
    first_champion,
    load_lake,
    monitored,
    play,
    quiet,
    replay_of,
    telling,
    train,
)
from pipelines.demo.specs import calm_december, copy_include, edit_model
from pipelines.demo.story import Act, acts
from pipelines.demo.world import World, of_the_year
from pipelines.settings import Settings
from pipelines.stack import airflow_password, down, up
from pipelines.wiring import features, monitoring, rollouts
from pipelines.wiring.features import Publisher
from pipelines.wiring.rollout_replay import replay

DAY_US = 86_400_000_000
AHEAD_US = 10 * DAY_US
_DATABASES = frozenset({"control_url", "airflow_db", "mlflow_db", "feast_registry"})
OWN = _DATABASES | {"home", "clock", "include_dir", "gateway_workers", "token", "client_token", "pii_key"}
WIDEST_SPEC = "late_arrival.v3.yaml"  # asks for every input that any act sends


def demo_settings(settings: Settings) -> Settings:
    """The rehearsal's own installation: home `<home>/demo`, replayed clock, its own copy of the specs."""
    home = settings.root / "demo"
    same = {name: getattr(settings, name) for name in type(settings).model_fields if name not in OWN}
    # One worker: its driver asks who answers now, and another worker may be a poll behind the one that says so.
    return Settings(**same, home=home, clock="replay", include_dir=home / "include", gateway_workers=1)


def run(settings: Settings, *, variant: str, seed: int, size: float, console: Console) -> tuple[bool, Path]:
    """Play the story of `variant`, stages `size` times as long; whether all went as expected, and the report's path.

    A rehearsal begins anew: what an earlier one has left in its home is removed.
    """
    installation = demo_settings(settings)
    show = Show(console)
    begun = time.monotonic()
    started = datetime.now(UTC).isoformat(timespec="seconds")
    told: list[Told] = []
    world = _prepare(settings, installation, variant, seed, size, show)
    logged = asyncio.run(_acts(installation, world, variant, seed, size, show, told))
    found = [summary.act_summary(installation, each) for each in told]
    checks = _checks(installation, found, logged)
    ok = all(line["ok"] for line in checks)
    report: dict[str, Any] = {
        "schema": "slipway-rehearsal/1",
        "variant": variant,
        "seed": seed,
        "size": size,
        "commit": summary.commit(),
        "machine": summary.machine(),
        "started": started,
        "seconds": round(time.monotonic() - begun, 1),
        "ok": ok,
        "outcome": "as expected" if ok else "NOT as expected",
        "links": _links(installation),
        "acts": found,
        "checks": checks,
        "parts": show.parts,
    }
    html, _ = summary.write(installation.root, report)
    _tell(console, report, html)
    return ok, html


def _prepare(settings: Settings, installation: Settings, variant: str, seed: int, size: float, show: Show) -> World:
    """A clean home with its specs, the stack up, and the year's truth; the last two side by side."""
    show.title(f"Slipway rehearsal: {variant}, seed {seed}, size {size:g}")
    with show.part("a clean home"):
        down(installation)
        _empty(installation.root)
        copy_include(settings.include_dir, installation.include_dir)
        if variant == "calm-december":
            calm_december(installation.include_dir)
        first = acts(variant)[0]
        edit_model(installation.include_dir, MODEL, first.spec, size=size, seed=seed)
        installation.event_clock().tick(moment(first.train_at))
        # A year's requests come within minutes, and no client minds: every second arm is to be scored.
        os.environ.setdefault("SLIPWAY_GATEWAY_SHADOW_SHARE", "1")
    with show.part("stack up, and the year's flights read"), ThreadPoolExecutor(2) as pool:
        stack = pool.submit(up, installation, None, lambda part, what: show.line(f"{part}: {what}"))
        truth = pool.submit(of_the_year, installation, MODEL, WIDEST_SPEC)
        features.apply(installation)
        stack.result()
        return truth.result()


def _empty(home: Path) -> None:
    if home.exists():
        shutil.rmtree(home)
    home.mkdir(parents=True)


async def _acts(
    installation: Settings, world: World, variant: str, seed: int, size: float, show: Show, told: list[Told]
) -> int:
    """Play every act; returns the number of answers for the flights model that said they are logged."""
    admin = AirflowRest(installation.airflow_url, "admin", airflow_password(installation, "admin"))
    approver = AirflowRest(installation.airflow_url, "approver", airflow_password(installation, "approver"))
    runs = DagRuns(admin, approver, f"rehearsal-{variant}-{seed}")
    with show.part("DAGs parsed"):
        await asyncio.to_thread(admin.wait_for_dags, [f"model.{MODEL}.train", f"model.{MODEL}.rollout"])
    story = acts(variant)
    async with Application(installation.gateway_url, replay=True) as application:
        with Publisher(installation, ahead_us=AHEAD_US) as publisher:
            cost, began_us = cost_function(installation.include_dir), moment(story[0].train_at)
            rehearsal = Rehearsal(installation, runs, application, publisher, world, show, cost, began_us)
            for act in story:
                edit_model(installation.include_dir, MODEL, act.spec, size=size, seed=seed)
                with telling(rehearsal, act) as one:
                    told.append(one)
                    await _play(rehearsal, one)
    return application.tally.logged


async def _play(rehearsal: Rehearsal, told: Told) -> None:
    act = told.act
    train_us = moment(act.train_at)
    if act.key == "1":
        load_lake(rehearsal, train_us, "act-1")
        digest = train(rehearsal, told, train_us)
        first_champion(rehearsal, told, MODEL, digest, train_us)
        other = train(rehearsal, told, train_us, "air_time")
        first_champion(rehearsal, told, "air_time", other, train_us)
        return
    replay = replay_of(rehearsal, act, act.payload)
    if act.key == "4":
        await _drift(rehearsal, told, act, replay)
        return
    if train_us <= moment(act.quiet_from):
        digest = train(rehearsal, told, train_us)
    await quiet(rehearsal, act, replay)
    await play(rehearsal, told, replay, digest)


async def _drift(rehearsal: Rehearsal, told: Told, act: Act, replay: Replay) -> None:
    """Weeks of the champion alone, then the monitor's DAG; what it asks for is what happens."""
    await quiet(rehearsal, act, replay)
    as_of_us = replay.now_us
    load_lake(rehearsal, as_of_us, "act-4")
    trainings = rehearsal.runs.counts([f"model.{MODEL}.train"])
    with rehearsal.show.part(f"model.{MODEL}.monitor"):
        rehearsal.runs.run(f"model.{MODEL}.monitor", "act-4", as_of_us)
    for name, sentence in monitored(rehearsal.settings, as_of_us):
        told.facts.append((f"monitor: {name}", sentence))
    database = control_db(rehearsal.settings)
    asked = [row for row in database.retrains(MODEL) if row.status == monitoring.ASKED]
    if not asked:
        told.facts.append(("retraining", "not asked for"))
        return
    told.facts.append(("retraining asked for", asked[-1].reason))
    with rehearsal.show.part(f"model.{MODEL}.train, started by drift://{MODEL}"):
        run = rehearsal.runs.started_by_assets([f"model.{MODEL}.train"], trainings)[-1]
    made = rehearsal.runs.result(run, "registered")
    told.facts.append(("retrained release", f"{made['semver']}, {made['digest'][:12]}"))
    await play(rehearsal, told, replay, made["digest"])
    with rehearsal.show.part(f"model.{MODEL}.score"):
        rehearsal.runs.run(f"model.{MODEL}.score", "act-4", replay.now_us)


def _checks(installation: Settings, found: list[dict[str, Any]], logged: int) -> list[dict[str, Any]]:
    checks = [summary.check(f"act {act['key']} ends in", act["outcome"], act["expected"], act["ok"]) for act in found]
    named = [(one["rollout_id"], one["challenger"], one["champion"]) for act in found for one in act["rollouts"]]
    itself = [rollout_id for rollout_id, challenger, champion in named if challenger == champion]
    checks.append(summary.check("rollouts of a champion against itself", ", ".join(itself) or 0, 0, not itself))
    checks += [
        summary.check(
            f"exposed by {rollout['rollout_id']}, counted in the log",
            rollout["exposed_in_log"],
            rollout["exposed"],
            rollout["exposed_in_log"] == rollout["exposed"],
        )
        for act in found
        for rollout in act["rollouts"]
    ]
    checks.append(summary.lost_answers(installation, MODEL, logged))
    faults = [fault for lines in rollouts.audit(installation).values() for fault in lines]
    checks.append(summary.check("faults in the decision record", len(faults), 0, not faults))
    differing = [text for one in replay(installation) for text in one.differences]
    what = "differences when evidence is folded and verdicts are judged again from the log"
    checks.append(summary.check(what, len(differing), 0, not differing))
    return checks


def _links(installation: Settings) -> list[dict[str, str]]:
    return [
        {
            "name": "Airflow",
            "url": installation.airflow_url,
            "note": f"user admin, password {airflow_password(installation, 'admin')}",
        },
        {"name": "MLflow", "url": installation.mlflow_url, "note": "experiments, registry, model cards"},
        {"name": "Gateway", "url": f"{installation.gateway_url}/v1/routes", "note": "routes; /metrics for Prometheus"},
    ]


def _tell(console: Console, report: dict[str, Any], html: Path) -> None:
    table = Table("act", "outcome", "expected", "exposed", "requests", "seconds", title="The rehearsal")
    for act in report["acts"]:
        exposed = sum(rollout["exposed"] for rollout in act["rollouts"])
        mark = "[green]" if act["ok"] else "[red]"
        table.add_row(
            act["title"],
            f"{mark}{act['outcome']}",
            act["expected"],
            f"{exposed:,}",
            f"{act['requests']:,}",
            f"{act['seconds']:.0f}",
        )
    console.print(table)
    links = Table("where", "link", "note", title="Links (the stack stays up until `make down`)")
    for link in report["links"]:
        links.add_row(link["name"], link["url"], link["note"])
    links.add_row("Report", html.as_uri(), "evidence, exposures, times")
    console.print(links)
    for line in report["checks"]:
        if not line["ok"]:
            console.print(
                f"[red]failed[/red] {line['name']}: got {line['got']}, expected {line['expected']}", highlight=False
            )
    console.print(f"{report['outcome']}, {report['seconds'] / 60:.1f} min", highlight=False)
