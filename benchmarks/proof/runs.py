"""Plays rollouts and keeps what became of each, so that a proof can be stopped, taken up again, and told as it stands.

Outcomes lie in `<work>/<claim>.jsonl`, one rollout a line, behind a first line with the commit, the machine and what
was asked. Rollouts are played in the order of their seeds, so a part of them is a smaller proof and not a chosen one.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from benchmarks.proof.rules import paths
from benchmarks.provenance import PROJECT, provenance
from pipelines.rollout.catalogue import outcome
from pipelines.rollout.offline import judge
from pipelines.rollout.policy import Policy
from pipelines.rollout.simulator import HEALTHY, Fault, simulate
from pipelines.rollout.traffic import Traffic

Play = Callable[[Any], dict[str, Any]]
JudgeOf = Callable[[dict[str, Any], dict[str, pa.Table]], list[dict[str, Any]]]
_CODE = ("pipelines/stats", "pipelines/collect", "pipelines/rollout", "benchmarks/proof")


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One rollout: its policy, what it meets, and whether the rules in use today see it too. Its last stage has traffic
    for `prolonged` times its requests: it goes on while proofs are missing.
    """

    key: str
    policy: dict[str, Any]
    seed: int
    traffic: Traffic = Traffic()
    fault: Fault = HEALTHY
    ruled: bool = False
    prolonged: int = 1


def play(job: Job, judge_of: JudgeOf = judge) -> dict[str, Any]:
    """The outcome of one rollout. A harmful one is judged on its first quarter first: a decision there is final."""
    policy = Policy.parse(job.policy)
    last = policy.stages[-1]
    longer = msgspec.structs.replace(last, requests=None if last.requests is None else last.requests * job.prolonged)
    played = msgspec.structs.replace(policy, stages=(*policy.stages[:-1], longer))
    tables = simulate(played, seed=job.seed, traffic=job.traffic, fault=job.fault)
    begun = time.process_time()
    lines = judge_of(job.policy, first_part(tables)) if job.fault != HEALTHY else []
    early = bool(lines) and lines[-1]["verdict"] in ("rollback", "hold")
    if not early:
        lines = judge_of(job.policy, tables)
    spent = {} if early else {"seconds": time.process_time() - begun, "requests": tables["assignments"].num_rows}
    said = {"rules": paths(tables)} if job.ruled else {}
    return {"key": job.key, "seed": job.seed} | outcome(lines) | spent | said


def first_part(tables: dict[str, pa.Table]) -> dict[str, pa.Table]:
    """The rows up to the time of the assignment at a quarter of the way."""
    times = {kind: table["ts"].cast(pa.int64()).to_numpy() for kind, table in tables.items()}
    cut = times["assignments"][len(times["assignments"]) // 4]
    return {kind: table.slice(0, int(np.searchsorted(times[kind], cut, "right"))) for kind, table in tables.items()}


def code() -> str:
    """A digest of the code that decides and plays: outcomes of other code are not added to."""
    files = sorted(file for folder in _CODE for file in (PROJECT / folder).glob("*.py") if file.name != "report.py")
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


class Ledger:
    """The outcomes of one claim on disk; `asked` None takes what there is. Raises SystemExit when they were made by
    other code or for another question.
    """

    def __init__(self, work: Path, claim: str, asked: dict[str, Any] | None) -> None:
        self.path = work / f"{claim}.jsonl"
        self.rows: list[dict[str, Any]] = []
        self.head: dict[str, Any] = provenance() | {"claim": claim, "code": code(), "asked": asked}
        if not self.path.exists():
            work.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(self.head) + "\n", encoding="utf-8")
            return
        # A line that was being written when the process was killed is played again.
        lines = [line for line in self.path.read_text(encoding="utf-8").split("\n")[:-1] if line]
        head, self.rows = json.loads(lines[0]), [json.loads(line) for line in lines[1:]]
        if asked is not None:
            if (head["code"], head["asked"]) != (self.head["code"], asked):
                raise SystemExit(f"{self.path}: made by other code or for {head['asked']}; move it away to begin again")
            self.path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        self.head = head

    def complete(self, jobs: Sequence[Any], processes: int, play_of: Play = play) -> list[dict[str, Any]]:
        """Plays the jobs that have no outcome yet; all outcomes, in order of the jobs."""
        done = {row["key"]: row for row in self.rows}
        left = [job for job in jobs if job.key not in done]
        with self.path.open("a", encoding="utf-8") as file:
            for row in _played(left, processes, play_of):
                file.write(json.dumps(row) + "\n")
                file.flush()
                done[row["key"]] = row
        return [done[job.key] for job in jobs]


def played_again(
    rows: Sequence[dict[str, Any]], jobs: Sequence[Any], number: int, play_of: Play = play
) -> dict[str, Any]:
    """Plays `number` of the jobs that have an outcome, spread over them, by the code as it is now: how many `rollouts`
    these were, and the keys of those that came out `otherwise`. What today's rules said of them is left out.
    """
    kept = {row["key"]: _without_times(row) for row in rows}
    there = [job for job in jobs if job.key in kept]
    chosen = [there[at] for at in np.unique(np.linspace(0, len(there) - 1, min(number, len(there))).astype(int))]
    plain = [msgspec.structs.replace(job, ruled=False) if isinstance(job, Job) else job for job in chosen]
    otherwise = [job.key for job in plain if _without_times(play_of(job)) != kept[job.key]]
    return {"rollouts": len(plain), "otherwise": otherwise}


def _without_times(row: dict[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = json.loads(json.dumps({key: row[key] for key in row.keys() - {"seconds", "rules"}}))
    return kept


def _played(jobs: list[Any], processes: int, play_of: Play) -> Iterator[dict[str, Any]]:
    pool = ProcessPoolExecutor(processes) if processes > 1 and jobs else nullcontext()
    with pool as workers:
        yield from (map(play_of, jobs) if workers is None else workers.map(play_of, jobs, chunksize=2))
