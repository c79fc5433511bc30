"""Great Expectations as the judge of rows: expectations in, the numbers of the bad rows and why out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import msgspec
import pyarrow as pa

from pipelines.contracts.errors import SpecError
from pipelines.datasets.suite import Expectation
from pipelines.spec.problems import suggestion

if TYPE_CHECKING:
    import pandas as pd

UNIQUE = ("column_values_to_be_unique", "compound_columns_to_be_unique")


class Findings(msgspec.Struct, frozen=True):
    """`rows`: reasons by row number. `table`: what is wrong with the batch as a whole."""

    rows: dict[int, list[str]]
    table: list[str]


def check(rows: pa.Table, suite: Sequence[Expectation]) -> Findings:
    """Hold every row against every expectation. Of rows that share a key the first is good.

    Raises SpecError for an expectation that Great Expectations does not have, or whose arguments it refuses.
    """
    if rows.num_rows == 0:
        return Findings({}, [])
    frame = rows.to_pandas()
    made = [_expectation(expectation) for expectation in suite]
    batch = _batch(frame)
    found: dict[int, list[str]] = {}
    table: list[str] = []
    # Most batches are clean: ask for yes or no first, and for row numbers only where the answer is no.
    quick = _validate(batch, made, {"result_format": "BOOLEAN_ONLY"})
    failed = [pair for pair, result in zip(zip(suite, made, strict=True), quick, strict=True) if not result.success]
    detailed = _validate(batch, [expectation for _, expectation in failed], {"result_format": "COMPLETE"})
    for (expectation, _), result in zip(failed, detailed, strict=True):
        if (result.exception_info or {}).get("raised_exception") or _raised(result):
            raise SpecError(
                f"check {expectation.reason}", got=_raised(result), expected="a check that can be evaluated"
            )
        numbers = [int(number) for number in result.result.get("unexpected_index_list") or []]
        if expectation.name in UNIQUE:
            numbers = _repeats(frame, expectation.arguments, numbers)
        elif not numbers:
            table.append(f"{expectation.reason}: {result.result.get('observed_value')}")
        for number in numbers:
            found.setdefault(number, []).append(expectation.reason)
    return Findings(found, table)


def _repeats(frame: pd.DataFrame, arguments: dict[str, Any], numbers: list[int]) -> list[int]:
    columns = arguments.get("column_list") or [arguments["column"]]
    shared = frame.iloc[numbers]
    return [int(number) for number in shared.index[shared.duplicated(columns, keep="first")]]


def _expectation(expectation: Expectation) -> Any:
    import great_expectations.expectations as gxe

    name = "Expect" + "".join(part.title() for part in expectation.name.split("_"))
    by_name = {known.lower(): known for known in dir(gxe) if known.startswith("Expect")}
    known = by_name.get(name.lower())
    if known is None:
        words = ["".join(f"_{c.lower()}" if c.isupper() else c for c in k)[8:] for k in by_name.values()]
        raise SpecError(f"unknown expectation '{expectation.name}'{suggestion(expectation.name, words)}")
    try:
        return getattr(gxe, known)(**expectation.arguments)
    except (TypeError, ValueError) as error:
        raise SpecError(f"expectation '{expectation.name}'", got=str(error), expected="its arguments") from error


def _batch(frame: pd.DataFrame) -> Any:
    return _definition().get_batch(batch_parameters={"dataframe": frame})


@cache
def _definition() -> Any:
    """Batches of frames, in a context of this process: making one costs more than most checks."""
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    asset = context.data_sources.add_pandas("rows").add_dataframe_asset("rows")
    return asset.add_batch_definition_whole_dataframe("rows")


def _validate(batch: Any, expectations: list[Any], result_format: dict[str, Any]) -> list[Any]:
    import great_expectations as gx

    if not expectations:
        return []
    suite = gx.ExpectationSuite(name="rows", expectations=expectations)
    results = batch.validate(suite, result_format=result_format).results
    # Great Expectations sorts its results; ours come back in the order they were asked.
    by_config = {_key(result.expectation_config): result for result in results}
    return [by_config[_key(expectation.configuration)] for expectation in expectations]


def _key(config: Any) -> tuple[str, str]:
    return config.type, repr(sorted((key, repr(value)) for key, value in config.kwargs.items() if key != "batch_id"))


def _raised(result: Any) -> str:
    """The exception behind a result that could not be computed; empty when there was none."""
    for info in (result.exception_info or {}).values():
        if isinstance(info, dict) and info.get("raised_exception"):
            return str(info.get("exception_message"))
    return ""
