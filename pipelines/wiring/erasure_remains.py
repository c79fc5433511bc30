"""What an erasure cannot delete in place, and when it is gone by itself: append-only logs, sources, models."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from pipelines.contracts.clocks import from_us
from pipelines.contracts.errors import TransientError
from pipelines.contracts.kafka import connection
from pipelines.datasets.erasure import Decided, Remaining
from pipelines.datasets.subject import Subject
from pipelines.settings import Settings
from pipelines.spec.loading import load_dataset, names
from pipelines.wiring.streams import stream_of, streamed


def remaining(settings: Settings, subject: Subject, decided: Decided, now_us: int) -> list[Remaining]:
    """What may still hold the subject. now_us: wall time that the days until it goes are counted from."""
    found = [*_segments(settings, decided, now_us), *_topics(settings, subject, decided, now_us)]
    return [*found, *_sources(settings, subject, decided)]


def _segments(settings: Settings, decided: Decided, now_us: int) -> Iterator[Remaining]:
    if decided.log and settings.bus.is_dir():
        why = "append-only; a segment goes SLIPWAY_LOG_RETENTION_DAYS after it has been read, and its epoch is over"
        yield Remaining(what=f"segments in {settings.bus}", until=_day(now_us, settings.log_retention_days), why=why)


def _topics(settings: Settings, subject: Subject, decided: Decided, now_us: int) -> Iterator[Remaining]:
    """Topics that may hold the subject, with their own retention."""
    if not settings.kafka:
        return
    topics = [settings.kafka_topic] if decided.log else []
    for dataset, views in streamed(settings).items():
        if set(subject.keys) <= set(load_dataset(settings.include_dir, dataset).columns):
            topics += [stream_of(views).topic, stream_of(views).dead_topic]
    if not topics:
        return
    from pipelines.adapters.kafka_topics import retention_days

    try:
        days = retention_days(connection(settings.kafka, settings.kafka_topic, settings.kafka_config), topics)
    except TransientError as error:
        why = f"its retention could not be read: {error}"
        yield from (Remaining(what=f"topic {topic}", until="", why=why) for topic in topics)
        return
    for topic, kept in days.items():
        if kept is None:
            why = "the topic keeps messages for good: delete its records, or lower retention.ms"
            yield Remaining(what=f"topic {topic}", until="", why=why)
        else:
            yield Remaining(
                what=f"topic {topic}", until=_day(now_us, kept), why="append-only; the topic's retention.ms"
            )


def _sources(settings: Settings, subject: Subject, decided: Decided) -> Iterator[Remaining]:
    for name in names(settings.include_dir, "datasets"):
        spec = load_dataset(settings.include_dir, name)
        if spec.source.kind == "file" and set(subject.keys) <= set(spec.columns):
            why = f"the source is not the platform's to change; what dataset {name} reads of the subject is dropped"
            yield Remaining(what=f"file {spec.source.path}", until="", why=why)
    for one in decided.releases:
        why = f"fitted on training set {one.training_set[:12]}; what it has learned stays until it is replaced"
        yield Remaining(what=f"release {one.model} {one.semver}", until="", why=why)


def _day(now_us: int, days: float) -> str:
    return (from_us(now_us) + timedelta(days=days)).date().isoformat()
