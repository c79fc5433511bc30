"""`slipway stream` and `slipway push`: messages into the datasets and views whose specs say `stream`."""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines.contracts.service_process import begin_service


def stream(
    view: Annotated[str, typer.Argument(help="A view; every stream of the project when it is not given.")] = "",
    trigger_ms: Annotated[int, typer.Option(min=0, help="Least time between two batches.")] = 200,
) -> None:
    """Take messages from Kafka into the lake and the online store, until SIGTERM or SIGINT. Needs Spark.

    Example: slipway stream card_spend
    """
    stop = begin_service()
    from pipelines.settings import Settings
    from pipelines.wiring import stream_service

    settings = Settings()
    settings.run_dir.mkdir(parents=True, exist_ok=True)
    beat = settings.run_dir / "stream.beat"  # touched while it runs: what `slipway status` looks at
    stream_service.run(settings, stop, view=view, trigger_ms=trigger_ms, alive=beat.touch)


def push(
    view: Annotated[str, typer.Argument(help="A view with `stream`.")],
    file: Annotated[typer.FileText, typer.Argument(help="A JSON object a line; `-`: standard input.")],
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Take rows from a file, as the view's stream would from Kafka. Exit 1 when any is refused.

    Example: slipway push card_spend - < swipes.jsonl
    """
    import msgspec

    from pipelines.contracts.clocks import from_us
    from pipelines.settings import Settings
    from pipelines.wiring.pushing import push as push_rows

    pushed = push_rows(Settings(), view, file)
    if json:
        print(msgspec.json.encode(pushed).decode())
    else:
        print(f"{pushed.rows} rows taken, {pushed.refused} refused")
        for reason, count in pushed.reasons.items():
            print(f"  {count} x {reason}")
        if pushed.refused:
            print(f"The refused ones are in the lake: {pushed.quarantine}")
        if pushed.due_us is not None:
            print(f"In the lake; readable online by the first run of features.{view} from {from_us(pushed.due_us)} on")
    if pushed.refused:
        raise typer.Exit(1)
