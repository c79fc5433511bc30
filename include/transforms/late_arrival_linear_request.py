"""Request features of the linear `late_arrival`: what a linear model needs spelt out. Numpy only.

Rates become logits, the hour a curve, carrier, airport and weekday indicators (without the first); some act together.
`miles_per_minute` is what the schedule plans from gate to gate: a short plan leaves no room for delay.
"""

import numpy as np

CARRIERS = ("9E", "AA", "AS", "B6", "DL", "EV", "F9", "FL", "HA", "MQ", "OO", "UA", "US", "VX", "WN", "YV")
ORIGINS = ("EWR", "JFK", "LGA")
RATES = (
    "late_rate_3h",
    "late_rate_24h",
    "late_rate_7d",
    "route_late_rate_24h",
    "route_late_rate_7d",
    "dep_late_rate_3h",
)
BY_HOUR = ("late_rate_3h", "dep_late_rate_3h")
WEATHER_BY_HOUR = ("temp", "wind_speed", "visib", "humid")
USUAL_RATE = 0.2


def build(inputs, features):
    """The columns named in the spec; missing rates count as the usual one."""
    carrier, origin = np.asarray(inputs["carrier"], dtype=object), np.asarray(inputs["origin"], dtype=object)
    day = np.asarray(inputs["local_weekday"], dtype=np.float64)
    hour = (np.asarray(inputs["local_hour"], dtype=np.float64) - 13) / 6
    minutes = np.asarray(inputs["sched_minutes"], dtype=np.float64)
    distance = np.asarray(inputs["distance"], dtype=np.float64)
    made = {
        "miles_per_minute": distance / np.maximum(minutes, 0.1),
        "log_distance": np.log(np.maximum(distance, 1)),
        "hour_1": hour,
        "hour_2": hour**2,
        "hour_3": hour**3,
    }
    for name in RATES:
        made[f"logit_{name}"] = _logit(features[name])
        made[f"logit2_{name}"] = made[f"logit_{name}"] ** 2
    for name in BY_HOUR:
        made[f"{name}_by_hour"] = made[f"logit_{name}"] * hour
    for name in WEATHER_BY_HOUR:
        made[f"{name}_by_hour"] = np.asarray(features[name], dtype=np.float64) * hour
    made["temp_2"] = (np.asarray(features["temp"], dtype=np.float64) / 50) ** 2
    made["humid_by_temp"] = np.asarray(features["humid"], dtype=np.float64) * features["temp"] / 1000
    made["log_precip"] = np.log1p(100 * np.asarray(features["precip_3h"], dtype=np.float64))
    made["low_visibility"] = (np.asarray(features["visib"], dtype=np.float64) < 3).astype(np.float64)
    made["plane_late"] = np.clip(
        np.nan_to_num(np.asarray(features["plane_arr_delay_last"], dtype=np.float64)), -30, 120
    )
    for name in CARRIERS[1:]:
        made[f"carrier_{name.lower()}"] = (carrier == name).astype(np.float64)
    for name in ORIGINS[1:]:
        made[f"origin_{name.lower()}"] = (origin == name).astype(np.float64)
    for number in range(2, 8):
        made[f"weekday_{number}"] = (day == number).astype(np.float64)
    return made


def _logit(rate):
    bounded = np.clip(np.nan_to_num(np.asarray(rate, dtype=np.float64), nan=USUAL_RATE), 0.03, 0.97)
    return np.log(bounded / (1 - bounded))
