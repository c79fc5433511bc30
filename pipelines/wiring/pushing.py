"""The smaller door into a stream's dataset: rows from lines of text, without Kafka and Spark."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from itertools import islice

import msgspec

from pipelines.contracts.errors import NotFoundError
from pipelines.datasets.messages import Message
from pipelines.settings import Settings
from pipelines.spec.loading import load_view
from pipelines.wiring.streams import HOW_TO, PUSH, Feed

AT_ONCE = 10_000
"""Lines of one batch."""
WAIT_S = 5.0
"""How long a push waits for its rows to become readable."""


class Pushed(msgspec.Struct, frozen=True):
    """What a push did. `reasons`: how often each was given; `quarantine`: the table of the refused rows.

    `due_us`: when the last row is due that is in the lake and not readable online yet; None when all are readable.
    """

    rows: int
    refused: int
    reasons: dict[str, int]
    quarantine: str
    due_us: int | None = None


def push(settings: Settings, view: str, lines: Iterable[str]) -> Pushed:
    """Rows from lines of JSON, as the view's stream takes messages, each arriving now. Empty lines are none.

    It ends when its rows are readable online, if that is within 5 seconds (wall); else a later materialisation, push or
    stream of the view makes them so. A row is taken once: when its key is there, it is refused.
    Raises NotFoundError for a view without a stream, TransientError while a stream feeds it.
    """
    stream = load_view(settings.include_dir, view).stream
    if stream is None:
        raise NotFoundError(f"a stream of view {view}", expected="`stream` in its spec", hint=HOW_TO)
    now_us = settings.event_clock().event_now_us()
    reasons: Counter[str] = Counter()
    rows = 0
    with Feed(settings, stream.dataset, lambda letters: reasons.update(one.reason for one in letters)) as feed:
        first = feed.next_offset(PUSH)
        texts = (line for line in lines if line.strip())
        messages = (Message(line.encode(), now_us, PUSH, number) for number, line in enumerate(texts, first))
        while batch := list(islice(messages, AT_ONCE)):
            rows += feed.apply(batch).rows
        if (due_us := feed.held_until_us) is not None:
            left_s = (due_us - settings.event_clock().event_now_us()) / 1e6
            if left_s <= WAIT_S:
                time.sleep(max(0.0, left_s) + 0.001)  # until the newest stamp has come
                feed.write_due()
        due_us = feed.held_until_us
    return Pushed(rows, reasons.total(), dict(reasons.most_common()), f"quarantine/{stream.dataset}", due_us)
