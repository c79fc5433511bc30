"""`slipway gate`: judge files of `slipway-gate/1`, plan what a policy needs, simulate how it behaves."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import pyarrow as pa

app = typer.Typer(help="Judge recorded rollouts and plan new ones.", no_args_is_help=True)

_NEEDED = ("assignments", "responses")
_OPTIONAL = ("labels", "kpi")


def _mapping(path: Path, what: str) -> dict[str, Any]:
    from pipelines.contracts.errors import NotFoundError, SpecError
    from pipelines.spec.documents import mapping_of

    if not path.is_file():
        raise NotFoundError(what, got=str(path), expected="a YAML or JSON file")
    try:
        return mapping_of(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}:1: not UTF-8 text at byte {error.start}; expected YAML or JSON.") from error


@contextmanager
def _lines_of(path: Path) -> Iterator[None]:
    """What is wrong with the policy in `path` is told with its line."""
    from pipelines.contracts.errors import SpecError
    from pipelines.rollout.policy_values import PolicyError
    from pipelines.spec.documents import render
    from pipelines.spec.problems import Problem

    try:
        yield
    except PolicyError as error:
        problem = Problem(error.location, str(error))
        raise SpecError("\n".join(render(path.read_text(encoding="utf-8"), str(path), [problem]))) from error


def _tables(files: dict[str, Path]) -> dict[str, pa.Table]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from pipelines.contracts.errors import DataError, NotFoundError

    tables = {}
    for kind, path in files.items():
        if path.exists():
            try:
                tables[kind] = pq.read_table(path)
            except (pa.ArrowException, OSError) as error:
                raise DataError(str(path), got=" ".join(str(error).split()), expected="a Parquet file") from error
        elif kind in _NEEDED:
            raise NotFoundError(
                f"case {path.parent}", got=f"no {path.name}", expected="assignments.parquet and responses.parquet"
            )
    return tables


def _write(out: Path | None, text: str) -> None:
    from pipelines.contracts.errors import TerminalError

    if out is None:
        sys.stdout.write(text)
        return
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise TerminalError(f"--out {out}", got=error.strerror, expected="a file that can be written") from error


@app.command()
def judge(
    case: Annotated[Path, typer.Option(help="Folder with policy.yaml and the four Parquet files of slipway-gate/1.")],
    out: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Where the verdicts go (JSON lines); default: standard output.")
    ] = None,
) -> None:
    """Judge every rollout of a case and write its verdicts, one JSON object a line.

    Example: slipway gate judge --case rollout-2024-05 --out verdicts.jsonl
    """
    from pipelines.rollout.offline import judge as replay

    policy, files = case / "policy.yaml", {kind: case / f"{kind}.parquet" for kind in (*_NEEDED, *_OPTIONAL)}
    body, tables = _mapping(policy, "policy of the case"), _tables(files)
    with _lines_of(policy):
        lines = replay(body, tables, names={kind: str(path) for kind, path in files.items()})
    _write(out, "".join(json.dumps(line, separators=(",", ":"), allow_nan=False) + "\n" for line in lines))


@app.command()
def simulate(
    model: Annotated[str | None, typer.Option(help="Play rollouts of this model's policy on its own traffic.")] = None,
    policy: Annotated[
        Path | None, typer.Option(help="Or: a policy in the format of slipway-gate/1 (YAML), on made-up traffic.")
    ] = None,
    fault: Annotated[
        str,
        typer.Option("--fault", "--what", help="`healthy`, the name of a fault or of a healthy trap, or `list`."),
    ] = "healthy",
    runs: Annotated[int, typer.Option(min=1, help="Rollouts to simulate.")] = 50,
    seed: Annotated[int, typer.Option(help="Seed of the first rollout; the others follow.")] = 1,
    out: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Where the shares go (JSON); default: standard output.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON with --model too.")] = False,
) -> None:
    """Say how a policy behaves: false stops, detection, exposure, time.

    Example: slipway gate simulate --model late_arrival --fault "errors .1 -> 5 %" --runs 50
    """
    from pipelines.cli import gate_simulate

    if fault == "list":
        print("\n".join(gate_simulate.names()))
        return
    if (model is None) == (policy is None):
        raise typer.BadParameter("give --model, or --policy")
    if model is not None:
        told = gate_simulate.of_model(model, fault, runs, seed)
        if not json_ and out is None:
            gate_simulate.show(model, told)
            return
    else:
        assert policy is not None  # one of both, as checked above
        body = _mapping(policy, "policy")
        with _lines_of(policy):
            told = gate_simulate.of_policy(body, fault, runs, seed)
    _write(out, json.dumps(told, indent=2, allow_nan=False) + "\n")


@app.command()
def plan(
    model: Annotated[str | None, typer.Option(help="Plan this model's rollout at its own traffic.")] = None,
    policy: Annotated[
        Path | None, typer.Option(help="Or: a policy in the format of slipway-gate/1 (YAML), with --rates.")
    ] = None,
    rates: Annotated[
        Path | None,
        typer.Option(help="Base rates: requests_per_hour, labelled, metrics.<name>.rate|mean|sd|paired_sd|sigma."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Where the plan goes (JSON); default: standard output.")
    ] = None,
    json_: Annotated[
        bool, typer.Option("--json", help="Print JSON (with --model; a policy's plan always is).")
    ] = False,
) -> None:
    """Say what every question of a policy needs; exit 1 when a required proof does not fit into the stages.

    Example: slipway gate plan --model late_arrival
    """
    if (model is None) == (policy is None and rates is None) or (policy is None) != (rates is None):
        raise typer.BadParameter("give --model, or --policy and --rates")
    if model is not None:
        _plan_model(model, out, json_)
        return
    from pipelines.rollout.planner import plan as planned
    from pipelines.rollout.policy import Policy
    from pipelines.rollout.rates import Rates
    from pipelines.rollout.stage_lengths import settle

    assert policy is not None
    assert rates is not None  # both, as checked above
    known = Rates.parse(_mapping(rates, "base rates"))
    body = _mapping(policy, "policy")
    with _lines_of(policy):
        body, settled = settle(body, known)
        result = planned(Policy.parse(body), known)
    told = result.to_mapping() | ({"stages": settled} if settled else {})
    _write(out, json.dumps(told, indent=2, allow_nan=False) + "\n")
    for need in result.needs:
        if not need.feasible:
            print(need.sentence, file=sys.stderr)
    for metric, missing in result.unknown.items():
        print(f"{metric}: not planned; base rate {missing} is not given", file=sys.stderr)
    if not result.feasible:
        raise typer.Exit(1)


def _plan_model(model: str, out: Path | None, json_: bool) -> None:
    from pipelines.cli.gate_plan import show
    from pipelines.settings import Settings
    from pipelines.wiring.gate_plan import plan_model

    found = plan_model(Settings(), model)
    if json_ or out is not None:
        _write(out, json.dumps(found.to_mapping(), indent=2, allow_nan=False) + "\n")
    else:
        show(found)
    if not found.feasible:
        raise typer.Exit(1)
