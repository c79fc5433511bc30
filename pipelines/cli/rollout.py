"""`slipway rollout`: start rollouts, see what they know, decide about them."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pipelines.rollout.commands import Verb

app = typer.Typer(help="Rollouts: how a release becomes champion.", no_args_is_help=True)
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Id = Annotated[str, typer.Argument(metavar="ROLLOUT", help="The rollout's id.")]
Actor = Annotated[str, typer.Option("--actor", help="Who decides; the user's name when not given.")]
Reason = Annotated[str, typer.Option("--reason", help="Why; it is written into the record.")]
Evidence = Annotated[str, typer.Option("--evidence", help="Digest of the evidence that was looked at.")]


@app.command("list")
def list_(model: Annotated[str | None, typer.Argument(help="Only this model's.")] = None, json: Json = False) -> None:
    """List rollouts, oldest first.

    Example: slipway rollout list late_arrival
    """
    from pipelines.settings import Settings
    from pipelines.wiring import rollouts

    unreadable: dict[str, str] = {}
    found = rollouts.list(Settings(), model, unreadable=unreadable)
    for why in unreadable.values():
        typer.echo(why, err=True)
    if json:
        names = ("id", "model", "status", "stage", "challenger", "champion", "provisional", "paused")
        _print_json([{name: getattr(rollout, name) for name in names} for rollout in found])
        return
    if not found:
        print(f"no rollouts{f' of {model}' if model else ''} yet: slipway rollout start MODEL")
        return
    from rich.table import Table

    from pipelines.cli.tables import open_console

    table = Table("rollout", "status", "stage", "challenger", "champion")
    for rollout in found:
        champion = (rollout.champion or "none")[:12]
        table.add_row(rollout.id, _coloured(rollout.status), rollout.stage, rollout.challenger[:12], champion)
    open_console().print(table)


@app.command()
def show(rollout: Id, json: Json = False) -> None:
    """Show a rollout: where it stands, each metric's verdict, every decision.

    Example: slipway rollout show late_arrival-r2
    """
    from pipelines.settings import Settings
    from pipelines.wiring import rollouts

    shown = rollouts.show(Settings(), rollout)
    if json:
        _print_json(shown)
        return
    _show(shown)


@app.command()
def explain(
    rollout: Id,
    verb: Annotated[
        str, typer.Option("--if", help="approve, reject, rollback, pause, resume or skip: what would follow.")
    ] = "",
    actor: Actor = "",
    html: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Write the rollout's page to this file instead.")
    ] = None,
    json: Json = False,
) -> None:
    """Say in words what was decided and done, and what would be now. Does nothing.

    Example: slipway rollout explain late_arrival-r2 --if approve
    """
    from pipelines.settings import Settings
    from pipelines.wiring import rollouts

    if html is not None:
        from pipelines.wiring.rollout_page import page

        html.parent.mkdir(parents=True, exist_ok=True)
        html.write_text(page(Settings(), rollout), encoding="utf-8")
        print(html)
        return
    lines = rollouts.explain(Settings(), rollout, _verb(verb) if verb else None, actor or getpass.getuser())
    if json:
        _print_json([*lines])
    else:
        print("\n".join(lines))


@app.command()
def start(
    model: Annotated[str, typer.Argument(help="The model.")],
    challenger: Annotated[
        str, typer.Argument(help="Digest or version of the release; the newest when not given.")
    ] = "",
    actor: Actor = "",
    json: Json = False,
) -> None:
    """Start a rollout, or queue it behind the running one.

    Example: slipway rollout start late_arrival 1.1.0
    """
    from pipelines.settings import Settings
    from pipelines.wiring import rollouts

    settings = Settings()
    started = rollouts.start(settings, model, challenger, actor=actor or getpass.getuser())
    effects = rollouts.advance(settings, started.id)
    _report(settings, started.id, effects, json)


@app.command()
def approve(rollout: Id, actor: Actor = "", reason: Reason = "", evidence: Evidence = "", json: Json = False) -> None:
    """Let a held rollout, or a first champion, go on.

    Example: slipway rollout approve late_arrival-r2 --actor anna --reason "slices looked at"
    """
    _command(rollout, "approve", actor, reason, evidence, "", json)


@app.command()
def reject(rollout: Id, actor: Actor = "", reason: Reason = "", evidence: Evidence = "", json: Json = False) -> None:
    """Refuse a rollout: it is rolled back, or never begins.

    Example: slipway rollout reject late_arrival-r2 --actor anna --reason "worse at JFK"
    """
    _command(rollout, "reject", actor, reason, evidence, "", json)


@app.command()
def rollback(rollout: Id, actor: Actor = "", reason: Reason = "", json: Json = False) -> None:
    """Withdraw the challenger, even after its promotion.

    Example: slipway rollout rollback late_arrival-r2 --reason "complaints since 02:40"
    """
    _command(rollout, "rollback", actor, reason, "", "", json)


@app.command()
def pause(rollout: Id, actor: Actor = "", reason: Reason = "", json: Json = False) -> None:
    """Stop the ramp where it stands; harm is still acted upon.

    Example: slipway rollout pause late_arrival-r2 --reason "release freeze"
    """
    _command(rollout, "pause", actor, reason, "", "", json)


@app.command()
def resume(rollout: Id, actor: Actor = "", reason: Reason = "", evidence: Evidence = "", json: Json = False) -> None:
    """Go on after a pause or a hold, in the same stage.

    Example: slipway rollout resume late_arrival-r2 --reason "freeze is over"
    """
    _command(rollout, "resume", actor, reason, evidence, "", json)


@app.command()
def skip(
    rollout: Id,
    reason: Annotated[str, typer.Option(help="Why.")],
    stage: Annotated[str, typer.Option(help="Only if it is in this stage: said twice, it skips once.")] = "",
    actor: Actor = "",
    json: Json = False,
) -> None:
    """Leave the current stage without its evidence, on an approver's word.

    Example: slipway rollout skip late_arrival-r2 --actor anna --reason "hotfix, seen in staging"
    """
    _command(rollout, "skip", actor, reason, "", stage, json)


@app.command()
def advance(rollout: Id, json: Json = False) -> None:
    """Judge now, and do what was decided and is not done yet (as the rollout's tasks do).

    Example: slipway rollout advance late_arrival-r2
    """
    from pipelines.settings import Settings
    from pipelines.wiring import rollouts

    settings = Settings()
    rollouts.look(settings, rollout)
    _report(settings, rollout, rollouts.advance(settings, rollout), json)


def _command(rollout: str, verb: Verb, actor: str, reason: str, evidence: str, stage: str, json: bool) -> None:
    from pipelines.cli import airflow_question
    from pipelines.settings import Settings
    from pipelines.wiring import rollouts

    settings = Settings()
    who = actor or getpass.getuser()
    rollouts.command(settings, rollout, verb, who, reason, evidence_digest=evidence, stage=stage)
    _report(settings, rollout, rollouts.advance(settings, rollout), json)
    if (run := airflow_question.close(settings, rollout)) and not json:
        print(f"  done  Airflow's question is closed: its run {run} goes on")


def _report(settings: Any, rollout: str, effects: Any, json: bool) -> None:
    import msgspec

    from pipelines.wiring import rollouts

    now = rollouts.load(settings, rollout)
    if json:
        _print_json({"id": now.id, "status": now.status, "stage": now.stage, "effects": msgspec.to_builtins(effects)})
        return
    paused = f", paused by {now.paused}" if now.paused else ""
    print(f"{now.id} is {now.status}" + (f" in {now.stage}" if now.stage else "") + paused)
    if now.question is not None and now.question.approvals:
        print(f"{len(now.question.approvals)} of {now.plan.approvals} approvals: {', '.join(now.question.approvals)}")
    for effect in effects:
        print(f"  {'done' if effect.done else 'NOT DONE'}  {effect.detail}")


def _verb(text: str) -> Verb:
    known: tuple[Verb, ...] = ("approve", "reject", "rollback", "pause", "resume", "skip")
    for verb in known:
        if text == verb:
            return verb
    raise typer.BadParameter(f"{text}; expected one of {', '.join(known)}")


def _print_json(value: Any) -> None:
    import msgspec

    print(msgspec.json.encode(value).decode())


_COLOUR = {"promoted": "green", "running": "cyan", "held": "yellow", "rolled_back": "red", "rejected": "red"}
_WORDS = {"pass": "green", "fail": "red", "inconclusive": "yellow"}


def _coloured(word: str) -> str:
    colour = _COLOUR.get(word) or _WORDS.get(word) or "dim"
    return f"[{colour}]{word}[/]"


def _show(shown: dict[str, Any]) -> None:
    from rich.markup import escape

    from pipelines.cli.tables import open_console

    console = open_console()
    where = f" in {shown['stage']}" if shown["stage"] else ""
    paused = f", paused by {shown['paused']}" if shown["paused"] else ""
    paused += f" for {shown['waits_for']}" if shown["waits_for"] else ""
    champion = (shown["champion"] or "no champion")[:12]
    console.print(f"[bold]{shown['id']}[/] is {_coloured(shown['status'])}{where}{paused}", highlight=False)
    console.print(
        f"challenger {shown['challenger'][:12]} against {champion}; {shown['exposed']} requests exposed",
        highlight=False,
    )
    if (asked := shown["question"]) is not None:
        evidence = (asked["evidence"] or "none")[:12]
        agreed = f"; agreed so far: {', '.join(asked['approvals'])}" if asked["approvals"] else ""
        console.print(f"a person is asked about evidence {evidence}{agreed}", highlight=False)
    if shown["verdicts"]:
        console.print("\n[bold]Verdicts[/]")
    for row in shown["verdicts"]:
        part = f" [dim]{escape(row['slice'])}[/]" if row["slice"] else ""
        console.print(f"  {_coloured(row['verdict'])}{part}  {escape(row['reason'])}", highlight=False)
    console.print("\n[bold]Decisions[/]")
    for each in shown["decisions"]:
        if each["kind"] == "observed":
            override = each["override"]
            console.print(f"  {each['id']}  observed  {escape(override['reason'])}", highlight=False)
            continue
        step = (each["stage"] or "queue") + (f" -> {each['next_stage']}" if each["next_stage"] else "")
        routed = "" if each["seconds_to_route"] is None else f"  (route set {each['seconds_to_route']:.3f} s later)"
        head = f"  {each['id']}  {each['at'][:19]}  [bold]{each['kind']}[/]  {step}  by {escape(each['actor'])}{routed}"
        console.print(head, highlight=False)
        console.print(f"      {escape(each['reason'])}", highlight=False)
