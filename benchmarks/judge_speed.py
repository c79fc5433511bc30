"""How fast the judge is: one look at a live rollout, and the whole replay of a case, on one core.

    .venv/bin/python -m benchmarks.judge_speed [--requests 20000] [--looks 200]

A look turns evidence into verdicts: 20 metrics and 10 slices, over shadow and three canaries. Its evidence comes from
simulated traffic; the fold that made it is the replay's time, told in requests a second for the policy of `gates.py`.
Goals: 5 ms a look, 200,000 requests a second; both of processor time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.proof.policies import METRICS, policy
from pipelines.collect.fold import Fold
from pipelines.rollout.judge import judge
from pipelines.rollout.offline import judge as judge_case
from pipelines.rollout.policy import Policy
from pipelines.rollout.simulator import simulate

SLICES = 10
SEED = 20260101


def wide() -> dict[str, Any]:
    """The policy of the gates' table with its metrics under further names, up to 20."""
    more = [{**metric, "name": f"{metric['name']}_{copy}"} for copy in (1, 2) for metric in METRICS]
    metrics = [{**metric, "weight": 0.05} for metric in [*METRICS, *more][:20]]
    return {**policy(5000), "metrics": metrics, "max_slices": SLICES}


def sliced(tables: dict[str, pa.Table]) -> dict[str, pa.Table]:
    """The case with ten slices instead of the simulator's own."""
    requests = tables["assignments"]
    drawn = np.random.default_rng(SEED).integers(0, SLICES, requests.num_rows).astype(np.int32)
    column = pa.DictionaryArray.from_arrays(pa.array(drawn), pa.array([f"s{k}" for k in range(SLICES)]))
    place = requests.column_names.index("slice")
    return {**tables, "assignments": requests.set_column(place, "slice", column)}


def look_ms(looks: int) -> dict[str, float]:
    chosen = Policy.parse(wide())
    fold = Fold(chosen)
    fold.add(**sliced(simulate(chosen, seed=SEED)))
    evidence = fold.evidence()
    took = []
    for _ in range(looks):
        begun = time.process_time()
        judge(chosen, evidence, "canary_50")
        took.append(1000.0 * (time.process_time() - begun))
    return {"median": round(statistics.median(took), 2), "p99": round(float(np.quantile(took, 0.99)), 2)}


def replay_rate(requests: int) -> float:
    chosen = policy(requests)
    tables = simulate(Policy.parse(chosen), seed=SEED)
    begun = time.process_time()
    judge_case(chosen, tables)
    return tables["assignments"].num_rows / (time.process_time() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=20_000, help="a stage of the replayed case")
    parser.add_argument("--looks", type=int, default=200)
    chosen = parser.parse_args()
    found = {
        "look_ms": look_ms(chosen.looks),
        "replay_requests_per_s": round(max(replay_rate(chosen.requests) for _ in range(3))),
        "load": round(os.getloadavg()[0], 1),
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
