"""Congestion of an airport: what has left it and what is still to leave."""

import ibis

LATE_MINUTES = 15


def build(tables: dict[str, ibis.Table]) -> ibis.Table:
    """One row per airport and full hour at which a departure became readable or a flight is scheduled.

    Schedules are announced a day ahead, so the flights of the coming three hours are readable at the hour itself.
    """
    departed = tables["flights_departed"]
    scheduled = tables["flights_scheduled"]
    left = departed.group_by(["origin", "available_at"]).agg(
        departures=departed.count(),
        late=(departed.dep_delay > LATE_MINUTES).cast("int64").sum(),
        delay=departed.dep_delay.cast("int64").sum(),
    )
    hour = scheduled.sched_dep.truncate("h").cast(departed.available_at.type())
    planned = scheduled.group_by(origin=scheduled.origin, available_at=hour).agg(planned=scheduled.count())
    zero = ibis.literal(0, "int64")
    events = left.mutate(planned=zero).union(
        planned.select("origin", "available_at", departures=zero, late=zero, delay=zero, planned="planned")
    )
    hours = events.group_by(["origin", "available_at"]).agg(
        departures=events.departures.sum(),
        late=events.late.sum(),
        delay=events.delay.sum(),
        planned=events.planned.sum(),
    )

    def around(before: int, after: int) -> ibis.expr.builders.WindowBuilder:
        return ibis.range_window(
            group_by="origin",
            order_by="available_at",
            preceding=ibis.interval(hours=before),
            following=ibis.interval(hours=after),
        )

    last_hour, last_3h, next_3h = around(0, 0), around(2, 0), around(0, 2)
    departed_3h = hours.departures.sum().over(last_3h)
    return hours.select(
        "origin",
        event_timestamp=hours.available_at,
        dep_delay_1h=hours.delay.sum().over(last_hour) / hours.departures.sum().over(last_hour).nullif(0),
        dep_delay_3h=hours.delay.sum().over(last_3h) / departed_3h.nullif(0),
        dep_late_rate_3h=hours.late.sum().over(last_3h) / departed_3h.nullif(0),
        departed_3h=departed_3h.cast("float64"),
        scheduled_next_3h=hours.planned.sum().over(next_3h).cast("float64"),
    )
