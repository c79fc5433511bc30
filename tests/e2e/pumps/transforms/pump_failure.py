"""Requests, labels and one feature view of the pump model."""

import ibis


def requests(tables: dict[str, ibis.Table]) -> ibis.Table:
    """Every pump is asked about every six hours."""
    readings = tables["pump_readings"]
    asked = readings.filter(readings.read_at.hour() % 6 == 0)
    return asked.select(
        request_id=asked.pump + "@" + asked.read_at.strftime("%Y-%m-%dT%H"),
        event_timestamp=asked.read_at + ibis.interval(minutes=30),
        pump=asked.pump,
        load=asked.load,
    )


def labels(tables: dict[str, ibis.Table]) -> ibis.Table:
    """Whether the pump fails within 24 hours; known when they are over."""
    readings = tables["pump_readings"]
    ahead = ibis.range_window(
        group_by="pump",
        order_by="read_at",
        preceding=ibis.interval(hours=0),
        following=ibis.interval(hours=24),
    )
    marked = readings.mutate(
        soon=readings.failed.cast("int64").max().over(ahead), seen_to=readings.read_at.max().over(ahead)
    )
    whole = marked.filter(
        (marked.read_at.hour() % 6 == 0) & (marked.seen_to >= marked.read_at + ibis.interval(hours=24))
    )
    return whole.select(
        request_id=whole.pump + "@" + whole.read_at.strftime("%Y-%m-%dT%H"),
        label=whole.soon.cast("float64"),
        label_timestamp=whole.read_at + ibis.interval(hours=25),
    )


def condition(tables: dict[str, ibis.Table]) -> ibis.Table:
    """How a pump ran in the last day."""
    readings = tables["pump_readings"]
    last_day = ibis.range_window(
        group_by="pump",
        order_by="available_at",
        preceding=ibis.interval(hours=23),
        following=ibis.interval(hours=0),
    )
    return readings.select(
        "pump",
        event_timestamp=readings.available_at,
        vibration_24h=readings.vibration.mean().over(last_day),
        temperature_24h=readings.temperature.mean().over(last_day),
        vibration_last=readings.vibration,
    )
