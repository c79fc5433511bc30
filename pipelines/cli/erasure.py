"""`slipway lake erase|erasures`: what is known of a subject goes, and what has gone stays written down."""

from __future__ import annotations

import getpass
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pipelines.datasets.erasure import Erasure
    from pipelines.wiring.erasure import Found

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def erase(
    entity: Annotated[str, typer.Option("--entity", help="An entity of the views, or a dataset's personal column.")],
    key: Annotated[list[str], typer.Option("--key", help="The subject's key; `name=value` each where it has several.")],
    reason: Annotated[str, typer.Option("--reason", help="Why; kept for good, so without the key.")] = "",
    actor: Annotated[str, typer.Option("--actor", help="Who erases; the user's name when not given.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what there is, and change nothing.")] = False,
    json: Json = False,
) -> None:
    """Erase a subject: its rows in the lake, online and in training sets; done again, it finishes what was begun.

    Example: slipway lake erase --entity passenger --key 42 --dry-run
    """
    from pipelines.settings import Settings
    from pipelines.wiring import erasure

    settings = Settings()
    subject = erasure.subject_of(settings, entity, key)
    if dry_run:
        _show_found(erasure.find(settings, subject), json=json)
        return
    if not reason:
        raise typer.BadParameter("say why, as it shall stay in the record", param_hint="--reason")
    done = erasure.erase(settings, subject, reason, actor or getpass.getuser())
    if json:
        _print_json(done)
    elif done is None:
        print(f"Nothing of this {entity} is left; `slipway lake erasures` lists what was erased.")
    else:
        _show(done)


def erasures(json: Json = False) -> None:
    """List what was erased: when, why, how much, and the training sets and releases that it touched.

    Example: slipway lake erasures
    """
    from pipelines.settings import Settings
    from pipelines.wiring.erasure import erasures as all_of

    found = all_of(Settings())
    if json:
        _print_json([{"id": one.id, **_builtins(one)} for one in found])
        return
    for one in found:
        _show(one)
    if not found:
        print("Nobody was erased.")


def _show_found(found: Found, *, json: bool) -> None:
    if json:
        _print_json(found)
        return
    from pipelines.cli.tables import open_console, table_of

    table = table_of("where", "what", "happens")
    if found.online:
        table.add_row("online store", f"{found.online} entities", "removed")
    for name, rows in found.tables.items():
        table.add_row(name, f"{rows} rows", "removed, with all older versions")
    for model, rollouts in found.log.items():
        table.add_row("inference log", f"{sum(rollouts.values())} requests of {model}", "lose inputs and features")
    for one in found.training_sets:
        table.add_row(f"training set {one.digest[:12]}", f"{one.rows} rows of {one.model}", "blanked")
    for release in found.releases:
        table.add_row(f"release {release.semver}", f"of {release.model}", "stays, and is named in the record")
    if found.anything:
        open_console().print(table)
    else:
        print("There is nothing of it.")


def _show(one: Erasure) -> None:
    from pipelines.contracts.clocks import from_us

    what = one.decided
    state = "done" if one.done is not None else "not finished: ask for it again"
    when = from_us(what.at_us).isoformat(timespec="seconds")
    print(f"{one.id}  {when}  {what.entity}  by {what.actor}: {what.reason}  ({state})")
    for table, rows in what.tables.items():
        print(f"  {table}: {rows} rows")
    for model, rollouts in what.log.items():
        for rollout, rows in rollouts.items():
            print(f"  inference log of {model}, {rollout or 'outside a rollout'}: {rows} requests")
    if what.online:
        print(f"  online store: {what.online} entities")
    for sets in what.training_sets:
        print(f"  training set {sets.digest[:12]} of {sets.model}: {sets.rows} rows")
    for release in what.releases:
        by = f"was fitted on {release.training_set[:12]}"
        print(f"  release {release.model} {release.semver} {release.digest[:12]} {by}")
    for left in one.done.remaining if one.done is not None else ():
        print(f"  stays{f' until {left.until}' if left.until else ''}: {left.what} ({left.why})")


def _builtins(what: object) -> dict[str, object]:
    import msgspec

    made: dict[str, object] = msgspec.to_builtins(what)
    return made


def _print_json(what: object) -> None:
    import msgspec

    print(msgspec.json.encode(what).decode())
