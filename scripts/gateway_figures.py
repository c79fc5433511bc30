"""The figures about the gateway: beside its peers, under load, under kills."""

from __future__ import annotations

from typing import Any


def gateway_lines(found: dict[str, Any]) -> list[str]:
    """The gateway beside its peers."""
    lines = [
        (
            f"One row a request, 16 connections, one worker on one core, load from the other (`make bench`, commit "
            f"`{found['commit'][:12]}`; the gateway routes, checks, and writes both events before it answers; "
            "second arms are scored by a process of their own, and shed where the core has no time for them):"
        ),
        "",
        "| server | requests/s | p99, ms | CPU a request, us | of the bare server, by CPU |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, rows in found["one_row"].items():
        row, ratio = rows[-1], found["bare_cpu_over_theirs"][name]
        cells = (f"{row['requests_per_s']:,}", f"{row['p99_ms']:.1f}", f"{row['cpu_us_per_request']:.0f}")
        lines.append(f"| {name} | {' | '.join(cells)} | {ratio:.2f} |")
    return lines


def claim_lines(found: dict[str, Any]) -> list[str]:
    """Batches, second arms, memory."""
    lines = []
    if batch := found.get("batch"):
        ours = batch["gateway, binary"]
        lines.append(
            f"{batch['rows']} rows a request, binary: {ours['rows_per_cpu_s']:,} rows a second of CPU, "
            f"{ours['of_model']:.2f} of the model alone, {batch['binary_to_bare_server']:.2f} of the bare server.\n"
        )
    if shadow := found.get("shadow"):
        lines.append(
            "Shadow on all requests: the champion's latencies over those without, in rounds by turns (95 % interval). "
            "Medians of slices of 0.2 s (the host takes the core away about once a second), and of rounds of 1 s:\n"
        )
        lines.append(
            "| load | requests/s | p50 | p99 | p99, rounds | second arms shed |\n|---|---:|---:|---:|---:|---:|"
        )
        for share, load in shadow["loads"].items():
            p50, p99 = (_interval(load["on_over_off"][name]) for name in ("p50_ms", "p99_ms"))
            rounds = _interval(load["on_over_off_of_rounds"]["p99_ms"])
            lines.append(
                f"| {float(share):.0%} of saturation | {load['rate']:,.0f} | {p50} | {p99} | {rounds} "
                f"| {load['shed_share']:.1%} |"
            )
        lines.append("")
    if memory := found.get("memory"):
        low, high = memory["interval"]
        lines.append(
            f"Memory of a worker over {memory['samples'][-1][0]:,} requests: {memory['slope_bytes_per_request']:.2f} "
            f"bytes a request (95 % interval {low:.2f} to {high:.2f})."
        )
    return lines


def feature_lines(found: dict[str, Any]) -> list[str]:
    """The gateway with online features."""
    return [
        "One row with three feature views, 16 connections: "
        + "; ".join(
            f"{name} {rows[-1]['requests_per_s']:,} requests/s, p99 {rows[-1]['p99_ms']:.1f} ms"
            for name, rows in found["gateway"].items()
        )
        + "."
    ]


def rollback_lines(found: dict[str, Any]) -> list[str]:
    """How long a challenger goes on answering after it was decided that it must not."""
    every = found["results"]["all"]
    ways = "; ".join(
        f"{way} {result['median_ms']:.0f} / {result['p99_ms']:.0f} ms"
        for way, result in found["results"].items()
        if way != "all"
    )
    return [
        (
            f"From a decision to the challenger's last answer, over {found['workers']} workers and {every['trials']} "
            f"trials: median {every['median_ms']:.0f} ms, p99 {every['p99_ms']:.0f} ms, "
            f"longest {every['max_ms']:.0f} ms (median / p99: {ways})."
        )
    ]


def overload_lines(found: dict[str, Any]) -> list[str]:
    """What is accepted and what is refused past capacity."""
    loads = "; ".join(
        f"{name}: {line['refused_share']:.0%} refused with 429, what is accepted p50 {line['accepted_p50_ms']:.0f} ms, "
        f"p99 {line['accepted_p99_ms']:.0f} ms"
        for name, line in found["loads"].items()
    )
    return [f"Load past capacity ({found['max_queue_ms']:g} ms is the longest wait for a turn): {loads}."]


def kill_lines(found: dict[str, Any]) -> list[str]:
    """What was acknowledged and what was found after kills."""
    counted = found["results"]
    return [
        (
            f"{sum(found['kills'].values())} `kill -9` ({', '.join(sorted(found['kills']))}) under load, seed "
            f"{found['seed']}: {counted['acknowledged']:,} requests acknowledged of {counted['sent']:,} sent, "
            f"{counted['found']:,} of them found exactly once."
        )
    ]


def gateway_headlines(results: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    """README's rows about the gateway."""
    rows = []
    if gateway := results.get("gateway"):
        ours, ratio = gateway["one_row"]["gateway, champion"][-1], gateway["bare_cpu_over_theirs"]["gateway, champion"]
        bare = gateway["one_row"]["bare ASGI + ONNX Runtime"][-1]
        speed = (
            f"{ours['requests_per_s']:,} requests/s, p99 {ours['p99_ms']:.1f} ms; by CPU {ratio:.2f} of bare ASGI + "
        )
        speed += f"ONNX Runtime, which makes {bare['requests_per_s']:,} here"
        rows.append(("One row a request, one core: routed, checked, both events in the log before the answer", speed))
    if features := results.get("online_features"):
        redis = features["gateway"]["redis"][-1]
        rows.append(
            (
                "The same with three feature views in Redis",
                f"{redis['requests_per_s']:,} requests/s, p99 {redis['p99_ms']:.1f} ms",
            )
        )
    if kills := results.get("kills"):
        counted = kills["results"]
        rows.append(
            (
                f"{sum(kills['kills'].values())} `kill -9` under load",
                f"{counted['acknowledged']:,} requests acknowledged, {counted['found']:,} found exactly once",
            )
        )
    if rollback := results.get("rollback"):
        every = rollback["results"]["all"]
        rows.append(
            (
                f"Rollback: decision to the last answer over {rollback['workers']} workers",
                f"median {every['median_ms']:.0f} ms, p99 {every['p99_ms']:.0f} ms of {every['trials']}",
            )
        )
    return rows


GATEWAY_SECTIONS = {
    "gateway": gateway_lines,
    "gateway_claims": claim_lines,
    "online_features": feature_lines,
    "rollback": rollback_lines,
    "overload": overload_lines,
    "kills": kill_lines,
}


def _interval(found: dict[str, Any]) -> str:
    low, high = found["interval"]
    return f"{found['ratio']:.2f} ({low:.2f} to {high:.2f})"
