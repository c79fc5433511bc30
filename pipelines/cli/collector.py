"""`slipway collector run|once`: the process that carries the inference log from the bus to the lake."""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines.contracts.service_process import begin_service

app = typer.Typer(help="Carries the inference log from the bus to the lake, and folds it.", no_args_is_help=True)
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def run(
    poll_ms: Annotated[int, typer.Option(min=10, help="How often to look at the bus.")] = 200,
    commit_ms: Annotated[int, typer.Option(min=0, help="Least time between two batches.")] = 600,
) -> None:
    """Collect until SIGTERM or SIGINT; the batch in work is finished first.

    Example: slipway collector run --poll-ms 500
    """
    stop = begin_service()
    from threading import Thread

    from pipelines.settings import Settings
    from pipelines.wiring import collect, rollout_messages

    settings = Settings()
    Thread(target=rollout_messages.run, args=(settings, stop), daemon=True, name="messages").start()
    settings.run_dir.mkdir(parents=True, exist_ok=True)
    beat = settings.run_dir / "collector.beat"  # touched after every pass: what `slipway status` looks at
    collect.run(settings, stop, poll_s=poll_ms / 1000, commit_s=commit_ms / 1000, on_report=lambda _: beat.touch())


@app.command()
def once(json: Json = False) -> None:
    """Collect what is on the bus now and stop; exit 1 when a stream stands still.

    Example: slipway collector once
    """
    import msgspec

    from pipelines.settings import Settings
    from pipelines.wiring.collect import Collector

    collector = Collector(Settings())
    batches = events = quarantined = 0
    while (report := collector.once()).batch:
        batches, events, quarantined = batches + 1, events + report.events, quarantined + report.quarantined
    collector.close()
    problems = collector.problems()
    if json:
        told = {"batches": batches, "events": events, "quarantined": quarantined, "problems": problems}
        print(msgspec.json.encode(told).decode())
    else:
        print(f"{events} events in {batches} batches" + (f", {quarantined} in quarantine" if quarantined else ""))
        for stream, problem in problems.items():
            print(f"{stream} stands still: {problem}")
    if problems:
        raise typer.Exit(1)
