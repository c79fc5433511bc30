"""The measured section of docs/gates.md, from the numbers alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.proof.rules import RULES

HEADING = "## Measured"


def write_into(page: Path, result: dict[str, Any]) -> None:
    """Replaces the page's last section."""
    text = page.read_text(encoding="utf-8").partition(HEADING)[0]
    page.write_text(text + markdown(result), encoding="utf-8")


def percent(value: float) -> str:
    """`0.0123` as `1.23 %`."""
    return f"{100 * value:.3g} %"


def exposed(found: dict[str, Any]) -> str:
    """Median and 90 % of exposed requests; a dash where it was never stopped."""
    values = [found.get("exposed_median"), found.get("exposed_90")]
    return " / ".join("-" if value is None else f"{value:,.0f}" for value in values)


def markdown(result: dict[str, Any]) -> str:
    """The whole section."""
    lines = [HEADING, *_played(result)]
    if "healthy" in result or "healthy_small" in result:
        lines += _healthy(result)
    if "margins" in result:
        lines += _margins(result["margins"])
    if "traps" in result:
        lines += _traps(result)
    if "faults" in result:
        lines += _faults(result)
    if "power" in result:
        lines += _power(result["power"])
    if "plans" in result:
        lines += _plans(result["plans"])
    return "\n".join(lines) + "\n"


def _played(result: dict[str, Any]) -> list[str]:
    head = next(iter(result["played"].values()))
    machine = head["machine"]
    speed = result.get("healthy", {}).get("requests_per_s_per_core")
    fast = f" The judge replayed {speed:,.0f} requests/s of processor time on one core." if speed else ""
    return [
        (
            f"`python -m benchmarks.gates`, seed {head['asked']['seed']}, commit `{head['commit'][:12]}`, "
            f"{machine['platform']}, Python {machine['python']}; looked at after every row, over all metrics, slices"
        ),
        f"and stages together. Bounds are exact (Clopper and Pearson 1934), one-sided, at 95 %.{fast}",
        *_played_again(result.get("played_again")),
    ]


def _played_again(found: dict[str, Any] | None) -> list[str]:
    if found is None:
        return []
    claims = found["claims"].values()
    otherwise = [key for one in claims for key in one["otherwise"]]
    came = f"{len(otherwise)} came out otherwise: {', '.join(otherwise)}" if otherwise else "all came out as they did"
    number, by = sum(one["rollouts"] for one in claims), found["commit"][:12]
    return [f"Of these rollouts {number}, spread over all claims, were played again by later code (`{by}`): {came}."]


def _healthy(result: dict[str, Any]) -> list[str]:
    lines = ["", "| healthy rollouts | requests of a stage | rolled back | held | promoted |", "|---|---|---|---|---|"]
    for name in ("healthy", "healthy_small"):
        if name in result:
            found, size = result[name], result["played"][name]["asked"]["requests_per_stage"]
            words = ("rollback", "hold")
            stops = [f"{percent(found[word])} (at most {percent(found[word + '_upper_95'])})" for word in words]
            lines.append(f"| {found['runs']:,} | {size:,} | {stops[0]} | {stops[1]} | {percent(found['promote'])} |")
    return lines


def _margins(found: dict[str, Any]) -> list[str]:
    lines = [
        "",
        "| challenger worse by exactly the margin | rollouts | promoted (goal: at most 5 %) |",
        "|---|---|---|",
    ]
    for name, row in found.items():
        share = f"{percent(row['promoted'])} (at most {percent(row['promoted_upper_95'])})"
        lines.append(f"| {name} | {row['runs']} | {share} |")
    return lines


def _traps(result: dict[str, Any]) -> list[str]:
    rules = [rule for rule in RULES if any(rule in row["rules"] for row in result["traps"].values())]
    lines = [
        "",
        "Healthy traps: stopped by these gates, and by the rules in use today with thresholds that stop 1 % of healthy",
        "rollouts (emulated on the same rows, `benchmarks/proof/rules.py`). With sticky units the last stage goes on,",
        "as live, until the proofs are in, at most to twice its length.",
        "",
        "| trap (rollouts) | stopped | promoted | paused on the way |" + "".join(f" {rule} |" for rule in rules),
        "|---|---|---|---|" + "---|" * len(rules),
    ]
    for name, row in result["traps"].items():
        shares = [f"{percent(row['stopped'])} (at most {percent(row['stopped_upper_95'])})"]
        shares += [percent(row["promote"]), percent(row["paused"])]
        shares += [percent(row["rules"][rule]["stopped"]) if rule in row["rules"] else "-" for rule in rules]
        lines.append(f"| {name} ({row['runs']}) | " + " | ".join(shares) + " |")
    return lines


def _faults(result: dict[str, Any]) -> list[str]:
    kept = result.get("survivors", [])
    said = ", ".join(kept) if kept else "none"
    lines = [
        "",
        f"Faults, and the requests they expose (median / 90 %). Rules that survive every trap: {said}.",
        "",
        "| fault (rollouts) | stopped | by | exposed |" + "".join(f" {rule} |" for rule in kept),
        "|---|---|---|---|" + "---|" * len(kept),
    ]
    feasible = {name: row for name, row in result["faults"].items() if row["why"] is None}
    for name, row in feasible.items():
        by = ", ".join(sorted(row["by"], key=lambda metric: -row["by"][metric]))
        cells = [f"{percent(row['stopped'])} (at least {percent(row['stopped_lower_95'])})", by, exposed(row)]
        cells += [_rule(row["rules"].get(rule)) for rule in kept]
        lines.append(f"| {name} ({row['runs']}) | " + " | ".join(cells) + " |")
    lines += ["", "What these stages cannot promise:", "", "| fault (rollouts) | stopped | why |", "|---|---|---|"]
    for name, row in result["faults"].items():
        if row["why"] is not None:
            stopped = f"{percent(row['stopped'])} (at least {percent(row['stopped_lower_95'])})"
            lines.append(f"| {name} ({row['runs']}) | {stopped} | {row['why']} |")
    return lines


def _rule(found: dict[str, Any] | None) -> str:
    if found is None:
        return "-"
    if found["stopped"] < 0.99:
        return f"finds {percent(found['stopped'])}"
    return exposed(found)


def _plans(found: dict[str, Any]) -> list[str]:
    lines = [
        "",
        "The planner beside rollouts played until they say it, in requests (`benchmarks/proof/plans.py` has the",
        "traffic of each; goal: within a factor 2):",
        "",
        "| question (rollouts) | planned | median of rollouts | planned / median |",
        "|---|---|---|---|",
    ]
    for name, row in found.items():
        middle = "never" if row["median"] is None else f"{row['median']:,.0f}"
        lines.append(f"| {name} ({row['runs']}) | {row['planned']:,} | {middle} | {row['ratio']:.2f} |")
    return lines


def _power(found: dict[str, Any]) -> list[str]:
    lines = [
        "",
        "Without a shadow stage, in one long canary at 5 %:",
        "",
        "| fault (rollouts) | stopped | exposed, median / 90 % | a prototype of the same design |",
        "|---|---|---|---|",
    ]
    for name, row in found.items():
        middle, most = row["prototype"]
        stopped = percent(row["rollback"] + row["hold"])
        lines.append(f"| {name} ({row['runs']}) | {stopped} | {exposed(row)} | {middle:,} / {most:,} |")
    return lines
