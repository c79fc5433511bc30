"""Requests and labels of `air_time`: asked one hour before the scheduled departure; the label is minutes in the air."""

import ibis

ASKED_BEFORE_HOURS = 1


def requests(tables: dict[str, ibis.Table]) -> ibis.Table:
    """One request a scheduled flight, cancelled ones too: nobody knows yet."""
    flights = tables["flights_scheduled"]
    return flights.select(
        "carrier",
        "origin",
        "dest",
        "tailnum",
        "distance",
        "sched_minutes",
        request_id=flights.flight_id.cast("string"),
        event_timestamp=flights.sched_dep - ibis.interval(hours=ASKED_BEFORE_HOURS),
        local_hour=flights.local_hour.cast("float64"),
        local_month=flights.local_month.cast("float64"),
    )


def labels(tables: dict[str, ibis.Table]) -> ibis.Table:
    """One label a landed flight, known when the landing is. A flight that never lands never gets one."""
    landed = tables["flights_landed"]
    return landed.select(
        request_id=landed.flight_id.cast("string"), label=landed.air_time, label_timestamp=landed.known_at
    )
