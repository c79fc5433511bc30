"""Request features of `late_arrival`: codes for carrier and airport. Numpy only; the same file trains and serves."""

import numpy as np

CARRIERS = ("9E", "AA", "AS", "B6", "DL", "EV", "F9", "FL", "HA", "MQ", "OO", "UA", "US", "VX", "WN", "YV")
ORIGINS = ("EWR", "JFK", "LGA")


def build(inputs, features):  # noqa: ARG001 - the signature is fixed
    """`carrier_code`, `origin_code`: the place in the list of known ones, -1 for any other."""
    return {"carrier_code": _code(inputs["carrier"], CARRIERS), "origin_code": _code(inputs["origin"], ORIGINS)}


def _code(values, known):
    values = np.asarray(values, dtype=object)
    codes = np.full(values.shape, -1.0)
    for code, name in enumerate(known):
        codes[values == name] = code
    return codes
