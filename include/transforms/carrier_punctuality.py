"""Punctuality of a carrier's flights that have already landed."""

import ibis

LATE_MINUTES = 15


def build(tables: dict[str, ibis.Table]) -> ibis.Table:
    """One row per carrier and publication at which a landing became readable; windows end with that publication."""
    landed = tables["flights_landed"]
    counted = landed.group_by(["carrier", "available_at"]).agg(
        flights=landed.count(),
        late=(landed.arr_delay > LATE_MINUTES).cast("int64").sum(),
        delay=landed.arr_delay.cast("int64").sum(),
    )

    def last(hours: int) -> ibis.expr.builders.WindowBuilder:
        return ibis.range_window(
            group_by="carrier",
            order_by="available_at",
            preceding=ibis.interval(hours=hours - 1),
            following=ibis.interval(hours=0),
        )

    flights_3h = counted.flights.sum().over(last(3))
    return counted.select(
        "carrier",
        event_timestamp=counted.available_at,
        late_rate_3h=counted.late.sum().over(last(3)) / flights_3h,
        late_rate_24h=counted.late.sum().over(last(24)) / counted.flights.sum().over(last(24)),
        late_rate_7d=counted.late.sum().over(last(168)) / counted.flights.sum().over(last(168)),
        arr_delay_3h=counted.delay.sum().over(last(3)) / flights_3h,
        landed_3h=flights_3h.cast("float64"),
    )
