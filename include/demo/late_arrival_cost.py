"""What a wrong call of `late_arrival` costs: the KPI of the rehearsal's rollouts, between 0 and 3, lower is better."""

MISSED = 3.0
FALSE_ALARM = 1.0


def cost(outputs, label):
    """`outputs`: the served answer by name; `label`: 1 when the flight was late. 0 for a right call."""
    if label > 0.5:
        return 0.0 if outputs["decision"] else MISSED
    return FALSE_ALARM if outputs["decision"] else 0.0
