"""Punctuality and length of a route's flights that have already landed."""

import ibis

LATE_MINUTES = 15


def build(tables: dict[str, ibis.Table]) -> ibis.Table:
    """One row per route and publication at which a landing became readable; windows end with that publication."""
    landed = tables["flights_landed"]
    counted = landed.group_by(["origin", "dest", "available_at"]).agg(
        flights=landed.count(),
        late=(landed.arr_delay > LATE_MINUTES).cast("int64").sum(),
        delay=landed.arr_delay.cast("int64").sum(),
        minutes=landed.air_time.cast("int64").sum(),
    )

    def last(hours: int) -> ibis.expr.builders.WindowBuilder:
        return ibis.range_window(
            group_by=["origin", "dest"],
            order_by="available_at",
            preceding=ibis.interval(hours=hours - 1),
            following=ibis.interval(hours=0),
        )

    flights_24h = counted.flights.sum().over(last(24))
    flights_7d = counted.flights.sum().over(last(168))
    return counted.select(
        "origin",
        "dest",
        event_timestamp=counted.available_at,
        route_late_rate_24h=counted.late.sum().over(last(24)) / flights_24h,
        route_late_rate_7d=counted.late.sum().over(last(168)) / flights_7d,
        route_arr_delay_24h=counted.delay.sum().over(last(24)) / flights_24h,
        route_air_time_7d=counted.minutes.sum().over(last(168)) / flights_7d,
    )
