"""What the judge said live against what a fresh process says from the lake alone, over several rollouts.

Each rollout has its own installation and seed: a gateway of two workers, uneven traffic, late labels, a collector that
is killed; every other challenger fails now and then and is rolled back. Each word of the judge is stored as it is
said; then the control database is removed, and a fresh process folds the lake. Exit 1 on any difference.

    .venv/bin/python -m benchmarks.live_offline --rollouts 10 --requests 4000 --out benchmarks/results/live_offline.json
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from benchmarks.provenance import provenance, record
from pipelines.settings import PROJECT, Settings
from tests.e2e.live_run import forget_the_control_database, run_live


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rollouts", type=int, default=4)
    parser.add_argument("--requests", type=int, default=2000, help="of each stage")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**31))
    parser.add_argument("--out", type=Path, help="where the result is written; without it, it is printed alone")
    asked = parser.parse_args()
    print(f"seed {asked.seed}")
    made_by, began, rows = provenance(), time.monotonic(), []
    for number in range(asked.rollouts):
        with tempfile.TemporaryDirectory(prefix="slipway-live-") as folder:
            settings = Settings(home=Path(folder) / "home")
            share = 0.0 if number % 2 == 0 else 0.03
            ran = run_live(settings.root, asked.seed + number, asked.requests, error_share=share)
            forget_the_control_database(settings)
            command = [sys.executable, "-m", "tests.e2e.live_run", str(settings.root)]
            done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
            again = json.loads(done.stdout.splitlines()[-1])
            rows.append(msgspec.to_builtins(ran) | again)
            print(rows[-1], flush=True)
    total = {name: sum(row[name] for row in rows) for name in ("requests", "labels", "compared")}
    wrong = sum(len(row["differences"]) for row in rows)
    print(f"{len(rows)} rollouts, {total}; differences: {wrong}")
    if asked.out:
        seconds = round(time.monotonic() - began)
        result = {**made_by, "seed": asked.seed, "seconds": seconds, "results": total | {"differences": wrong}}
        record(asked.out, result | {"rollouts": rows})
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
