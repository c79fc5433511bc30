"""The figures about features: the point-in-time join, materialisation, increments, Spark, streams."""

from __future__ import annotations

from typing import Any


def join_lines(found: dict[str, Any]) -> list[str]:
    """The point-in-time join beside plain DuckDB and Feast's own stores."""
    ours, plain, over = found["ours"], found["plain"], found["over_plain"]
    rows, over_rows = found["sizes"]["entity"], sum(found["sizes"]["views"])
    per_key = " / ".join(f"{count:,}" for count in found["sizes"].get("rows_per_key", (100, 10, 20)))
    line = (
        f"Point-in-time join of {rows:,} rows x 3 views over {over_rows:,} feature rows ({per_key} a key), through "
        "Feast's SDK: "
        f"{ours['wall_s']:.2f} s, peak {ours['peak_gb']:.2f} GB; three plain DuckDB ASOF joins {plain['wall_s']:.2f} s "
        f"({over['wall_s']:.2f} times plain)."
    )
    for kind in ("duckdb", "file"):
        finished = [one for one in found[kind] if "ended_by" not in one]
        ended = [one for one in found[kind] if "ended_by" in one]
        if finished:
            most = finished[-1]
            line += (
                f" Feast's {kind} store: {most['rows']:,} rows in {most['wall_s']:.1f} s and {most['peak_gb']:.1f} GB"
            )
            if times := found.get(f"times_faster_than_{kind}"):
                line += f", {times['wall_s']:.0f} times ours"
            line += "".join(f"; {one['rows']:,} rows were ended by {one['ended_by']}" for one in ended) + "."
    return [line]


def big_join_lines(found: dict[str, Any]) -> list[str]:
    """The same join on ever more rows, with its memory bounded."""
    runs = ", ".join(f"{run['rows']:,} over {run['feature_rows']:,} {_bounded(run)}" for run in found["runs"])
    grown = found.get("per_row_growth")
    line = f"The same join with memory bounded to {found.get('limit_gb', 8):.0f} GB: {runs}."
    return [line + (f" Processor time a row, last to first: {grown:.2f}." if grown else "")]


def _bounded(run: dict[str, Any]) -> str:
    if "ended_by" in run:
        return f"ended by {run['ended_by']}"
    each = run["cpu_s"] / run["rows"] * 1e6
    spilled = f", {run['spilled_gb']:.1f} GB spilled" if "spilled_gb" in run else ""
    return f"in {run['wall_s']:.0f} s ({each:.1f} us of processor a row), peak {run['peak_gb']:.1f} GB{spilled}"


def materialise_lines(found: dict[str, Any]) -> list[str]:
    """Writing the online stores beside Feast's materialisation."""
    stores = "; ".join(
        f"{name} {found[name]['ours']['cpu_s']:.1f} s of processor, Feast {found[name]['feast']['cpu_s']:.1f} s "
        f"({found[name]['times_faster']['cpu_s']:.1f} times; by the clock {found[name]['times_faster']['wall_s']:.1f})"
        for name in ("sqlite", "redis")
        if name in found
    )
    return [f"Materialising {found['entities']:,} entities x {found['features']} features: {stores}."]


def spark_lines(found: dict[str, Any]) -> list[str]:
    """The join on both engines."""
    sizes = "; ".join(
        f"{one['rows']:,} rows {one['duckdb']['wall_s']:.1f} s and {one['spark']['wall_s']:.1f} s"
        for one in found["sizes"]
    )
    return [f"The join on DuckDB and on Spark (local, {found['machine']['cpus']} cores), equal answers: {sizes}."]


def increment_lines(found: dict[str, Any]) -> list[str]:
    """One day on a year beside the whole year, for each size of the year."""
    return [_increment_line(run) for run in found["runs"]]


def _increment_line(run: dict[str, Any]) -> str:
    shares = {
        of: sorted(view[of]["day"] / view[of]["full"] for view in run["views"].values()) for of in ("rows", "cpu_s")
    }
    rows, processor, all_of_it = shares["rows"], shares["cpu_s"], run["all"]["cpu_s"]
    return (
        f"One day on one year of {run['dataset_rows']:,} dataset rows, {len(rows)} views: {rows[0]:.1%} to "
        f"{rows[-1]:.1%} of the full build's rows are read, {processor[0]:.1%} to {processor[-1]:.1%} of its processor "
        f"time; together {all_of_it['day']:.1f} s of {all_of_it['full']:.0f} s."
    )


def stream_lines(found: dict[str, Any]) -> list[str]:
    """From a message to the online store."""
    seconds = found["s"]
    return [
        (
            f"Stream, {found['rate']:,.0f} events/s: from a message produced to its feature readable online p50 "
            f"{seconds['p50']:.2f} s, p99 {seconds['p99']:.2f} s, over {found['events']:,} events."
        )
    ]


def stream_kill_lines(found: dict[str, Any]) -> list[str]:
    """What kills left of a stream."""
    killed = ", ".join(f"{name} {count}" for name, count in found["killed"].items())
    kills = sum(found["killed"].values())
    equal = all(found[f"{what}_equal"] for what in ("dataset", "view", "online"))
    return [
        (
            f"Stream of {found['events']:,} numbered events under {kills} `kill -9` ({killed}): "
            f"{found['rows']:,} rows and {found['dead_letters']:,} dead letters of {found['messages']:,} messages; "
            f"dataset, view and online store {'equal' if equal else 'DIFFER FROM'} a batch build of the producer's own "
            "file."
        )
    ]


def feature_headlines(results: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    """README's rows about features."""
    rows = []
    if join := results.get("point_in_time_long"):
        sizes = f"{join['sizes']['entity']:,} rows x 3 views over {sum(join['sizes']['views']):,}"
        took = f"{join['ours']['wall_s']:.2f} s, {join['ours']['peak_gb']:.2f} GB, "
        took += f"{join['over_plain']['wall_s']:.2f} of plain DuckDB ASOF joins"
        rows.append((f"Point-in-time join, {sizes}, through Feast's SDK", took))
    if stream := results.get("stream_latency"):
        rows.append(
            (
                f"Stream, {stream['rate']:,.0f} events/s: message to feature readable online",
                f"p50 {stream['s']['p50']:.2f} s, p99 {stream['s']['p99']:.2f} s",
            )
        )
    return rows


FEATURE_SECTIONS = {
    "point_in_time": join_lines,
    "point_in_time_long": join_lines,
    "point_in_time_big": big_join_lines,
    "pit_spark": spark_lines,
    "materialise": materialise_lines,
    "nightly_increment": increment_lines,
    "stream_latency": stream_lines,
    "stream_kills": stream_kill_lines,
}
