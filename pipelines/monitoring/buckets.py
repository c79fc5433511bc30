"""Categories of many values, before they are compared: a tail number is no drift because this week's is another one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pipelines.monitoring.columns import Category

KEPT = 20
OTHER = "(other)"


def frequent(reference: Sequence[Category], current: Sequence[Category], kept: int = KEPT) -> list[list[Category]]:
    """Both samples with all but the reference's most frequent values named `(other)`; missing stays missing.

    A value that is new and frequent shows as a growing rest.
    """
    counts = Counter(value for value in reference if value is not None)
    ordered = sorted(counts, key=lambda value: (-counts[value], repr(value)))
    named: set[Category] = {None, *ordered[:kept]}
    return [[value if value in named else OTHER for value in sample] for sample in (reference, current)]
