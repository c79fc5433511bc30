"""Weather at the airport of departure."""

import ibis


def build(tables: dict[str, ibis.Table]) -> ibis.Table:
    """One row per airport and publication: the newest observation, and extremes over three hours of publications."""
    weather = tables["weather"]
    newest = weather.group_by(["origin", "available_at"]).agg(
        temp=weather.temp.argmax(weather.observed_at),
        wind_speed=weather.wind_speed.argmax(weather.observed_at),
        visib=weather.visib.argmax(weather.observed_at),
        pressure=weather.pressure.argmax(weather.observed_at),
        humid=weather.humid.argmax(weather.observed_at),
        hundredths=(weather.precip * 100).round().cast("int64").sum(),
        wind_max=weather.wind_speed.max(),
    )
    last_3h = ibis.range_window(
        group_by="origin", order_by="available_at", preceding=ibis.interval(hours=2), following=ibis.interval(hours=0)
    )
    return newest.select(
        "origin",
        event_timestamp=newest.available_at,
        temp=newest.temp,
        wind_speed=newest.wind_speed,
        visib=newest.visib,
        pressure=newest.pressure,
        humid=newest.humid,
        precip_3h=newest.hundredths.sum().over(last_3h) / 100,
        wind_max_3h=newest.wind_max.max().over(last_3h),
    )
