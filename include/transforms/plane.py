"""The aircraft: its register row, and how its last flights went."""

import ibis

LATE_MINUTES = 15


def build(tables: dict[str, ibis.Table]) -> ibis.Table:
    """One row per aircraft and publication of its register row or of one of its landings."""
    planes = tables["planes"]
    landed = tables["flights_landed"].filter(lambda row: row.tailnum.notnull())
    in_order = landed.landed_at.epoch_seconds() * 1_000_000 + landed.flight_id % 1_000_000
    flown = landed.group_by(["tailnum", "available_at"]).agg(
        flights=landed.count(),
        late=(landed.arr_delay > LATE_MINUTES).cast("int64").sum(),
        newest=landed.arr_delay.argmax(in_order),
    )
    registered = planes.select(
        "tailnum",
        "available_at",
        flights=ibis.literal(0, "int64"),
        late=ibis.literal(0, "int64"),
        newest=ibis.null("float64"),
    )
    events = flown.union(registered)
    last_7d = ibis.range_window(
        group_by="tailnum",
        order_by="available_at",
        preceding=ibis.interval(hours=167),
        following=ibis.interval(hours=0),
    )
    history = events.select(
        "tailnum",
        event_timestamp=events.available_at,
        plane_arr_delay_last=events.newest,
        plane_late_rate_7d=events.late.sum().over(last_7d) / events.flights.sum().over(last_7d).nullif(0),
    )
    register = planes.select(
        registered_as="tailnum",
        readable_from="available_at",
        seats=planes.seats.cast("float64"),
        year_built=planes.year.cast("float64"),
        engines=planes.engines.cast("float64"),
    )
    return history.left_join(
        register, [history.tailnum == register.registered_as, history.event_timestamp >= register.readable_from]
    ).select(
        "tailnum", "event_timestamp", "seats", "year_built", "engines", "plane_arr_delay_last", "plane_late_rate_7d"
    )
