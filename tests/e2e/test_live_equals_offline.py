"""What the judge said live is what a fresh process says from the lake alone, byte for byte.

`benchmarks/live_offline.py` does the same for longer, and over several rollouts.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.settings import PROJECT, Settings
from pipelines.stack.environment import serving_python
from tests.e2e.live_run import SAID, differences, forget_the_control_database, run_live

pytestmark = pytest.mark.e2e

SEED = int(os.environ.get("SLIPWAY_LIVE_SEED") or random.SystemRandom().randrange(2**31))


def test_every_judgement_of_a_live_rollout_comes_out_of_the_lake_again(tmp_path: Path) -> None:
    if not serving_python().exists():
        assert os.environ.get("CI") != "true", f"{serving_python()} is missing: run `make setup`"
        pytest.skip("no serving environment: run `make setup`")
    print(f"\nseed {SEED} (SLIPWAY_LIVE_SEED)")
    ran = run_live(tmp_path / "home", SEED, requests=400)
    print(ran)
    settings = Settings(home=tmp_path / "home")
    assert ran.judgements > 5
    assert len(ran.stages) > 1
    forget_the_control_database(settings)

    def again() -> dict[str, object]:
        command = [sys.executable, "-m", "tests.e2e.live_run", str(settings.root)]
        done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True, timeout=120)
        return dict(json.loads(done.stdout.splitlines()[-1]))

    assert again() == {"compared": ran.judgements, "differences": []}
    assert not list(settings.root.glob("control.db*"))

    lines = (settings.root / SAID).read_text().splitlines()
    changed = json.loads(lines[-1])
    changed["verdicts"] = changed["verdicts"].replace('"n":', '"n":1')
    (settings.root / SAID).write_text("\n".join([*lines[:-1], json.dumps(changed)]) + "\n")
    assert len(differences(settings)[1]) == 1, "a word that the judge did not say is found"
