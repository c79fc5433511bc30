"""A stream from the producer to the online store: how long it takes, and what is left when its processes are killed.

    .venv/bin/python -m benchmarks.stream latency [--rate 1000] [--seconds 60] [--publish-every "100ms event_time"]
    .venv/bin/python -m benchmarks.stream kills [--events 200000] [--rate 200] [--every 10]

Real Kafka and Spark on this machine, each run with a home of its own. Events are numbered payments of 200 accounts
(`stream_events.py`: late ones, held back ones, ones later than the watermark of 10 minutes, broken ones). `latency`: a
reader looks at the online store all the time; an event counts from the moment it is given to the producer to the look
at which its account's newest number has reached it, which is not before its row's stamp. `kills`: the driver's Python
process, its JVM, both, the broker and the producer are killed in an order drawn from the seed (SIGKILL), while events
go on coming. Then the dataset is made once more from the producer's own file alone, in another home, and computed by
one build: the rows of the dataset, of the view and of the online store have to be equal, and every message is a row or
a dead letter; the run fails otherwise. Needs setup.py --spark.
"""

from __future__ import annotations

import argparse
import json
import sys

from benchmarks.provenance import RESULTS, provenance, record
from benchmarks.stream_kills import kills
from benchmarks.stream_latency import latency


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("latency", "kills"))
    parser.add_argument("--rate", type=float, default=0, help="events a second")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--publish-every", default="100ms event_time", help="of the view whose latency is measured")
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--every", type=float, default=10, help="seconds between two kills, about")
    parser.add_argument("--write", action="store_true", help=f"into {RESULTS}")
    options = parser.parse_args()
    begun = provenance()
    if options.part == "latency":
        found = latency(options.rate or 1000, options.seconds, options.publish_every)
        is_whole = found["never_readable"] == 0
    else:
        found = kills(options.events, options.rate or 200, options.every)
        is_whole = all(found[name] for name in ("nothing_lost", "dataset_equal", "view_equal", "online_equal"))
    print(json.dumps(found, indent=1))
    if options.write:
        record(RESULTS / f"stream_{options.part}.json", begun | {"benchmark": "stream", **found})
    return 0 if is_whole else 1


if __name__ == "__main__":
    sys.exit(main())
