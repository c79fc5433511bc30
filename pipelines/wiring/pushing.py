"""The smaller door into a stream's dataset: rows from lines of text, without Kafka and Spark."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import islice

import msgspec

from pipelines.contracts.errors import NotFoundError
from pipelines.datasets.messages import Message
from pipelines.settings import Settings
from pipelines.spec.loading import load_view
from pipelines.wiring.streams import PUSH, Feed

AT_ONCE = 10_000
"""Lines of one batch."""


class Pushed(msgspec.Struct, frozen=True):
    """What a push did. `reasons`: how often each was given; `quarantine`: the table of the refused rows."""

    rows: int
    refused: int
    reasons: dict[str, int]
    quarantine: str


def push(settings: Settings, view: str, lines: Iterable[str]) -> Pushed:
    """Rows from lines of JSON, as the view's stream takes messages, each arriving now. Empty lines are none.

    A row is taken once: when its key is there, it is refused. Raises NotFoundError for a view without a stream,
    TransientError while a stream feeds it.
    """
    stream = load_view(settings.include_dir, view).stream
    if stream is None:
        raise NotFoundError(f"a stream of view {view}", expected="`stream` in its spec")
    now_us = settings.event_clock().event_now_us()
    reasons: Counter[str] = Counter()
    rows = 0
    with Feed(settings, stream.dataset, lambda letters: reasons.update(one.reason for one in letters)) as feed:
        first = feed.next_offset(PUSH)
        texts = (line for line in lines if line.strip())
        messages = (Message(line.encode(), now_us, PUSH, number) for number, line in enumerate(texts, first))
        while batch := list(islice(messages, AT_ONCE)):
            rows += feed.apply(batch).rows
    return Pushed(rows, reasons.total(), dict(reasons.most_common()), f"quarantine/{stream.dataset}")
