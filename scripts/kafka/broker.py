#!/usr/bin/env python3
"""A Kafka broker of one node (KRaft) without Docker, for tests and for trying things out: listens on 127.0.0.1 alone.

    scripts/kafka/broker.py fetch                         the jars, by Maven, into .tools/kafka (55 MB)
    scripts/kafka/broker.py run --port 9092 --data DIR    the same, then the broker in this process's place

Standard library only. Java (17 or later) and Maven come from apt when they are missing and this user may install them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))
POM = Path(__file__).with_name("pom.xml")
JARS = ROOT / ".tools" / "kafka"
CLUSTER = "c2xpcHdheS10ZXN0cy0wMQ"

PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
log.dirs={data}/log
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
auto.create.topics.enable=false
"""


def fetch() -> Path:
    """The folder of the jars; fetched when the POM has changed since. Raises SetupError."""
    from scripts import maven

    return maven.fetch(POM, JARS)


def run(port: int, controller: int, data: Path) -> NoReturn:
    """Format `data` unless it is, and become the broker."""
    classes = f"{fetch()}/*"
    data.mkdir(parents=True, exist_ok=True)
    properties = data / "server.properties"
    properties.write_text(PROPERTIES.format(port=port, controller=controller, data=data.resolve()))
    if not (data / "log" / "meta.properties").exists():
        tool = ["java", "-Xmx64m", "-cp", classes, "kafka.tools.StorageTool", "format"]
        done = subprocess.run(
            [*tool, "-t", CLUSTER, "-c", str(properties)], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            sys.exit(f"kafka: {data} could not be formatted:\n{done.stdout}{done.stderr}")
    java = ["java", "-Xmx256m", "-XX:+UseSerialGC", "-cp", classes, "kafka.Kafka", str(properties)]
    os.execvp("java", java)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("fetch")
    starting = verbs.add_parser("run")
    starting.add_argument("--port", type=int, default=9092)
    starting.add_argument("--controller-port", type=int, default=0, help="default: the port + 1")
    starting.add_argument("--data", type=Path, default=ROOT / "var" / "kafka")
    options = parser.parse_args()
    from scripts.steps import SetupError

    try:
        if options.verb == "fetch":
            print(fetch())
            return 0
        run(options.port, options.controller_port or options.port + 1, options.data)
    except SetupError as error:
        print(f"kafka: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
