"""A hundred `kill -9` under load: is every acknowledged request in the lake exactly once afterwards?

    .venv/bin/python -m benchmarks.kills [--kills 100] [--bus kafka|folder] [--seed N] [--out FILE]

Clients ask a real gateway; its log goes over a real Kafka broker (or the folder) to the collector. One after the other,
a process drawn from the seed is killed: the gateway's worker at a moment or at a byte of its log's writes, its
supervisor, both together, the process of second arms, the shipper, the collector, the broker. What is gone is started
again as an operator would.
A kill that met no request in flight, or one of the gateway that cut off no request, ends the run as failed. The truth
is the clients' own file, fsynced as answers arrive; the run fails unless all of it is found, nothing twice, every
stream whole. Prints sent, acknowledged and found.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import msgspec

from benchmarks.provenance import provenance, record
from tests.e2e.kills import Client, count, running, wait_for_answers
from tests.kafka_broker import broker

# A broker's restart takes many times as long as any other, and proves the same each time.
WEIGHTS = {
    "gateway worker": 8,
    "gateway worker in a write": 8,
    "gateway supervisor": 3,
    "gateway, all of it": 2,
    "shadow process": 5,
    "shipper": 5,
    "collector": 5,
    "broker": 1,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--bus", choices=("kafka", "folder"), default="kafka")
    parser.add_argument("--seed", type=int, default=20264)
    parser.add_argument("--out", type=Path, help="where the result is written; without it, it is printed alone")
    asked = parser.parse_args()
    rng = random.Random(asked.seed)
    began = time.monotonic()
    made_by = provenance()
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slipway-kills-")))
        started = stack.enter_context(broker(home / "kafka")) if asked.bus == "kafka" else None
        site = stack.enter_context(running(home / "home", started))
        victims = site.victims()
        turns = victims + rng.choices(
            victims, [WEIGHTS[name] for name in victims], k=max(0, asked.kills - len(victims))
        )
        turns = turns[: asked.kills - 1]
        rng.shuffle(turns)
        turns.append("shadow process")  # of a worker that lives on
        with Client(site.settings, home / "acknowledged") as client:
            for number, name in enumerate(turns, 1):
                site.kill(client, name, rng)
                print(
                    f"{number:4} {name:26} {site.cut_off} cut off so far, {client.outcomes['200']} answered", flush=True
                )
            wait_for_answers(client, 50)
        counted = count(site, client)
    lives = 1 + sum(n for name, n in site.kills.items() if name.startswith("gateway"))
    results = {
        **made_by,
        "seed": asked.seed,
        "bus": asked.bus,
        "kills": dict(sorted(site.kills.items())),
        "cut_off": site.cut_off,
        "seconds": round(time.monotonic() - began),
        "results": msgspec.to_builtins(counted),
    }
    print(f"{sum(site.kills.values())} kills, {site.cut_off} requests cut off, {counted.streams} worker epochs")
    print(f"sent {counted.sent}, acknowledged {counted.acknowledged}, found exactly once {counted.found}")
    print(f"stored twice {counted.stored_twice}, streams not whole {len(counted.not_whole)}")
    print(f"second arms {counted.second_arms}, missing of the worker that lives {counted.pairs_missing}")
    if asked.out:
        record(asked.out, results)
    is_whole = counted.found == counted.acknowledged and not counted.stored_twice and not counted.not_whole
    is_whole = is_whole and not counted.pairs_missing
    return 0 if is_whole and counted.streams == lives else 1


if __name__ == "__main__":
    sys.exit(main())
