"""Airflow operators that run one job of `pipelines.wiring`: the only place where tasks meet the jobs.

A job is named by text (`pipelines.wiring.features:publish`) and imported when its task runs, so that a DAG file costs
nothing. Arguments and results are references and small structs; they travel as JSON through XCom.
"""

from __future__ import annotations

import importlib
import inspect
import json
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, get_type_hints

from airflow.sdk import Asset, BaseOperator, BranchMixIn, SkipMixin, XComArg
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

if TYPE_CHECKING:
    from airflow.sdk import Context

_log = logging.getLogger(__name__)

AS_OF = "as_of_us"
"""XCom key under which the first task of a run leaves the run's event time, in microseconds."""

RETRIES: dict[str, Any] = {
    "retries": 6,
    "retry_delay": timedelta(seconds=5),
    "retry_exponential_backoff": True,
    "max_retry_delay": timedelta(minutes=5),
}
"""Only errors that may pass are retried, for five minutes: a lock, a server that is starting, and, in a new
installation where every schedule begins at once, data that another DAG is still making. All others fail at once."""


class JobOperator(BaseOperator):
    """Call `job(settings, **arguments)` and push its result.

    job: `module:function`. arguments: keyword arguments; may hold Jinja and XComArgs. Struct parameters of the job are
    made from the JSON of the task before. as_of: the run's event time, passed as `as_of_us` to a job that takes it:
    `"run"` in the task that settles it (the run's param, else that of the asset events that started it, else event
    now), in the others an XComArg of that task. asset: told of the result, with `as_of_us` and `digest`.
    skip_unless: name of a field of the result; when it is false the task is skipped, and the asset not told.
    fail_when: a field of the result and the value with which the task fails, its result written all the same.
    needs: name of an argument without which there is nothing to do, and the task is skipped.
    """

    template_fields = ("arguments", "as_of")
    ui_color = "#e8f1f8"

    def __init__(
        self,
        *,
        job: str,
        arguments: Mapping[str, Any] | None = None,
        as_of: str | XComArg | None = None,
        asset: Asset | None = None,
        skip_unless: str | None = None,
        fail_when: tuple[str, str] | None = None,
        needs: str | None = None,
        **kwargs: Any,
    ) -> None:
        outlets = {"outlets": [asset]} if asset is not None else {}
        super().__init__(**{**RETRIES, **kwargs, **outlets})
        self.job = job
        self.arguments = dict(arguments or {})
        self.as_of = as_of
        self.asset = asset
        self.skip_unless = skip_unless
        self.fail_when = fail_when
        self.needs = needs
        self.result: Any = None

    def execute(self, context: Context) -> Any:
        result = self.run_job(context)
        if self.skip_unless is not None and not result[self.skip_unless]:
            context["ti"].xcom_push("return_value", result)
            raise AirflowSkipException(f"{self.skip_unless} is false: {json.dumps(result)[:500]}")
        if self.fail_when is not None and result[self.fail_when[0]] == self.fail_when[1]:
            context["ti"].xcom_push("return_value", result)
            raise AirflowFailException(f"{' is '.join(self.fail_when)}: {json.dumps(result)[:2000]}")
        return result

    def run_job(self, context: Context) -> Any:
        """The job's result as JSON-ready values. Raises AirflowFailException for what a retry cannot cure."""
        from pipelines.settings import Settings

        if self.needs is not None and not self.arguments[self.needs]:
            raise AirflowSkipException(f"no {self.needs}: a task before has failed")
        settings = Settings()
        as_of_us: Any = self.as_of
        if as_of_us == "run":
            as_of_us = run_as_of_us(context, settings.event_clock().event_now_us)
            context["ti"].xcom_push(AS_OF, as_of_us)
        result = call(self.job, settings, self.arguments, as_of_us)
        self.result = result
        if self.asset is not None:
            context["outlet_events"][self.asset].extra = {AS_OF: as_of_us, "digest": reference(result)}
        return result

    def get_openlineage_facets_on_complete(self, _task_instance: Any) -> Any:
        """What the task has read and written, for OpenLineage; nothing where it did nothing."""
        from airflow.providers.openlineage.extractors import OperatorLineage
        from openlineage.client.event_v2 import Dataset

        from pipelines.settings import Settings
        from pipelines.wiring.task_lineage import touched

        if self.result is None:
            return OperatorLineage()
        found = touched(Settings(), self.job, self.arguments, self.result)
        return OperatorLineage(
            inputs=[Dataset(namespace=one.namespace, name=one.name) for one in found.inputs],
            outputs=[Dataset(namespace=one.namespace, name=one.name) for one in found.outputs],
        )


class BranchJobOperator(JobOperator, BranchMixIn, SkipMixin):
    """A job whose result says which tasks come next.

    branches: task ids by the value of the result's field `by`; a value without an entry is followed by none.
    """

    def __init__(self, *, by: str, branches: Mapping[str, Sequence[str]], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.by = by
        self.branches = {value: list(ids) for value, ids in branches.items()}

    def execute(self, context: Context) -> Any:
        result = self.run_job(context)
        # Branching ends the task by an exception where something is to be skipped: the result has to be out before.
        context["ti"].xcom_push("return_value", result)
        self.do_branch(context, self.branches.get(str(result[self.by]), []))
        return result


def call(job: str, settings: Any, arguments: Mapping[str, Any], as_of_us: Any = None) -> Any:
    """Call the job, with `as_of_us` if it takes it, and give its result as JSON-ready values.

    Transient errors pass through, to be retried; of all others AirflowFailException is raised, from the original.
    """
    import msgspec

    from pipelines.contracts.errors import SlipwayError

    module, _, name = job.partition(":")
    begun, loaded = time.perf_counter(), set(sys.modules)
    try:
        function = getattr(importlib.import_module(module), name)
        given = dict(arguments)
        if AS_OF in inspect.signature(function).parameters:
            given[AS_OF] = as_of_us
        found = typed(function, given)
        imported, used = time.perf_counter(), time.process_time()
        result = msgspec.to_builtins(function(settings, **found))
        _log.info(
            "%s: %.3f s to import it, %.3f s of work, %.3f s of processor; modules that were not preloaded: %s",
            *(job, imported - begun, time.perf_counter() - imported, time.process_time() - used),
            _packages(set(sys.modules) - loaded) or "none",
        )
        return result
    except (ConnectionError, TimeoutError):
        raise
    except SlipwayError as error:
        if error.retryable:
            raise AirflowException(f"may pass, is tried again: {error}") from error
        raise AirflowFailException(f"{type(error).__name__}: {error}") from error
    except Exception as error:
        raise AirflowFailException(f"{type(error).__name__}: {error}") from error


def _packages(modules: Iterable[str]) -> str:
    """Packages with the number of their modules in brackets: what a task had to import by itself."""
    counts = Counter(".".join(module.split(".")[:2]) for module in modules)
    return ", ".join(f"{package} ({count})" for package, count in sorted(counts.items()))


def typed(function: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments, those made into structs again whose parameter is annotated as one."""
    import msgspec

    hints = get_type_hints(function)
    made = {}
    for name, value in arguments.items():
        hint = hints.get(name)
        is_struct = isinstance(hint, type) and issubclass(hint, msgspec.Struct)
        made[name] = msgspec.convert(value, hint, strict=False) if is_struct else value
    return made


def run_as_of_us(context: Context, event_now_us: Callable[[], int]) -> int:
    """The run's event time: its param `as_of`, else the newest of the asset events behind it, else event now."""
    from pipelines.contracts.clocks import parse_event_time

    given = (context.get("params") or {}).get("as_of")
    if given:
        return parse_event_time(given)
    told = list(_told(context.get("triggering_asset_events") or {}))
    return max(told) if told else event_now_us()


def _told(events: Mapping[Any, Iterable[Any]]) -> Iterable[int]:
    for key in events:
        for event in events[key]:
            if (value := (event.extra or {}).get(AS_OF)) is not None:
                yield int(value)


def reference(result: Any) -> str | None:
    """What names a job's result: itself when it is text, else its `digest` or `release`."""
    if isinstance(result, str):
        return result
    if isinstance(result, dict):
        return next((str(result[key]) for key in ("digest", "release", "version") if result.get(key)), None)
    return None
