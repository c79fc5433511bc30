"""The figures about the gates: how often they are wrong, how soon they are obeyed, what kills do to them."""

from __future__ import annotations

from typing import Any


def gate_lines(found: dict[str, Any]) -> list[str]:
    """How often the gates were wrong."""
    lines = []
    for name in ("healthy", "healthy_small"):
        if name in found:
            healthy, stage = found[name], found["played"][name]["asked"]["requests_per_stage"]
            lines.append(
                f"Gates, {healthy['runs']:,} healthy rollouts of {4 * stage:,} requests: "
                f"{healthy['rollback']:.2%} rolled back (95 % upper bound {healthy['rollback_upper_95']:.2%}), "
                f"{healthy['hold']:.2%} held ({healthy['hold_upper_95']:.2%}), {healthy['promote']:.1%} promoted"
                + ("; for the others this was not enough evidence." if healthy["promote"] < 0.5 else ".")
            )
    lines.append("Margins, faults and traps, beside the rules in use today: [gates](gates.md).")
    return ["\n".join(lines)]


def _high(result: dict[str, Any]) -> str:
    """The 99th percentile where there are enough trials for one, else the longest."""
    return f"{'p99' if result['trials'] >= 100 else 'longest'} {result['p99_s']:.2f} s of {result['trials']}"


def decision_lines(found: dict[str, Any]) -> list[str]:
    """From the deciding event to the challenger's silence."""
    results = found["results"]
    ways = "; ".join(
        f"{way} median {result['median_s']:.2f} s, {_high(result)} (goal {result['goal_p99_s']:g} s)"
        for way, result in results.items()
        if isinstance(result, dict)
    )
    low, high = results.get("load_average", (0, 0))
    shared = f", on a machine that others used too (load average {low:.0f} to {high:.0f})" if high else ""
    return [
        (
            f"From the deciding event to the challenger's last answer, the whole system under "
            f"{results['requests_per_s']} requests/s{shared}: {ways}."
        )
    ]


def rollout_kill_lines(found: dict[str, Any]) -> list[str]:
    """Rollouts whose processes were killed."""
    total = found["results"]
    killed = ", ".join(f"{name} {count}" for name, count in total["kills"].items())
    return [
        (
            f"{sum(total['kills'].values())} `kill -9` in {total['rollouts']} live rollouts ({killed}), seed "
            f"{found['seed']}: {len(total['wrong']) or 'none'} ended wrong; chains and replays hold."
        )
    ]


def live_lines(found: dict[str, Any]) -> list[str]:
    """Live judgements against the lake alone."""
    results = found["results"]
    return [
        (
            f"Live judgements judged again from the lake alone, without the control database, seed {found['seed']}: "
            f"{results['compared'] - results['differences']:,} of {results['compared']:,} are the same bytes."
        )
    ]


def gate_headlines(results: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    """README's rows about the gates."""
    rows = []
    if gates := results.get("gates"):
        healthy = gates["healthy"]
        faults = [fault for fault in gates["faults"].values() if fault["why"] is None]
        stopped = sum(round(fault["stopped"] * fault["runs"]) for fault in faults)
        wrong = f"{healthy['rollback']:.2%} rolled back (95 % upper bound {healthy['rollback_upper_95']:.2%}), "
        wrong += f"{healthy['hold']:.2%} held ({healthy['hold_upper_95']:.2%})"
        others = len(gates["faults"]) - len(faults)
        rows += [
            (f"{healthy['runs']:,} healthy rollouts, looked at after every row, all metrics together", wrong),
            (
                f"{len(faults)} kinds of harm (another {others} lie within the margins, or need more traffic)",
                f"{stopped:,} of {sum(fault['runs'] for fault in faults):,} rollouts stopped",
            ),
        ]
    if latency := results.get("decision_latency"):
        of = latency["results"]
        ways = "; ".join(f"{way} median {of[way]['median_s']:.2f} s, {_high(of[way])}" for way in ("gate", "breaker"))
        what = f"From the deciding event to silence, the whole system at {of['requests_per_s']} requests/s"
        rows.append((what, ways))
    return rows


GATE_SECTIONS = {
    "gates": gate_lines,
    "decision_latency": decision_lines,
    "rollout_kills": rollout_kill_lines,
    "live_offline": live_lines,
}
