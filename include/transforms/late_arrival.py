"""Requests and labels of `late_arrival`: asked an hour before scheduled departure; late is more than 15 minutes."""

import ibis

LATE_MINUTES = 15
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
        local_weekday=flights.local_weekday.cast("float64"),
        local_month=flights.local_month.cast("float64"),
    )


def labels(tables: dict[str, ibis.Table]) -> ibis.Table:
    """One label a landed flight, known when the landing is. A flight that never lands never gets one."""
    landed = tables["flights_landed"]
    return landed.select(
        request_id=landed.flight_id.cast("string"),
        label=(landed.arr_delay > LATE_MINUTES).cast("float64"),
        label_timestamp=landed.known_at,
    )
