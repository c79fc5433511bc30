"""The parts of the local stack: how each is started, where it answers, and when it is ready."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from pipelines.contracts.errors import NotFoundError
from pipelines.settings import Settings
from pipelines.spec.loading import load_view, names
from pipelines.stack.environment import orchestration_bin, serving_python
from pipelines.stack.ports import listeners
from pipelines.stack.processes import Record, members
from pipelines.stack.readiness import airflow_job_beats, answers, beats

Database = Literal["airflow", "mlflow", "control"]


@dataclass(frozen=True)
class Part:
    """One long-running process of the stack."""

    name: str
    command: Callable[[Settings], list[str]]
    ready: Callable[[Settings, Record], bool]
    distribution: str
    """The package whose version is the part's."""
    database: Database | None = None
    """What has to be migrated before the part starts."""
    port_setting: str | None = None
    """The field of `Settings` that holds its port."""
    grace_s: float = 10.0
    """How long it may take to end by itself."""
    wanted: Callable[[Settings], bool] = lambda settings: True  # noqa: ARG005 - most parts always are
    """Whether the installation's settings ask for it."""

    def port(self, settings: Settings) -> int | None:
        """The port it listens on."""
        return int(getattr(settings, self.port_setting)) if self.port_setting else None

    def url(self, settings: Settings) -> str | None:
        """Where people and programs reach it."""
        port = self.port(settings)
        return f"http://{settings.host}:{port}" if port else None


def _airflow(component: str, *options: str) -> Callable[[Settings], list[str]]:
    return lambda _settings: [str(orchestration_bin() / "airflow"), component, *options]


def _airflow_job(job_type: str) -> Callable[[Settings, Record], bool]:
    return lambda settings, record: airflow_job_beats(settings.airflow_store, job_type, record.created)


def _api_server(settings: Settings) -> list[str]:
    where = ["--host", settings.listen, "--port", str(settings.airflow_port), "--workers", "1"]
    return [str(orchestration_bin() / "airflow"), "api-server", *where]


def _mlflow(settings: Settings) -> list[str]:
    return [
        *(str(orchestration_bin() / "mlflow"), "server"),
        *("--artifacts-destination", str(settings.root / "mlflow" / "artifacts")),
        *("--host", settings.listen, "--port", str(settings.mlflow_port), "--workers", "1"),
    ]


def _gateway(settings: Settings) -> list[str]:
    where = ["--host", settings.listen, "--port", str(settings.gateway_port)]
    return [str(serving_python()), "-m", "bentoml", "serve", "serving.service:Gateway", *where]


def _collector(settings: Settings) -> list[str]:  # noqa: ARG001 - the environment says which home
    return [str(orchestration_bin() / "slipway"), "collector", "run"]


def _shipper(settings: Settings) -> list[str]:  # noqa: ARG001 - the environment says which home and brokers
    return [str(serving_python()), "-m", "serving.shipper"]


def _stream(settings: Settings) -> list[str]:  # noqa: ARG001 - the environment says which home and brokers
    return [str(orchestration_bin() / "slipway"), "stream"]


def _streams(settings: Settings) -> bool:
    """Whether there are brokers, and a view that takes messages from them."""
    include = settings.include_dir
    return bool(settings.kafka) and any(load_view(include, name).stream for name in names(include, "features"))


def _answers(path: str, port_setting: str) -> Callable[[Settings, Record], bool]:
    def ready(settings: Settings, record: Record) -> bool:
        port = int(getattr(settings, port_setting))
        # Somebody else may have taken the port since it was found free, and may answer the same path.
        return answers(f"http://{settings.host}:{port}{path}") and not listeners(port).isdisjoint(
            p.pid for p in members(record)
        )

    return ready


PARTS: tuple[Part, ...] = (
    Part(
        "airflow-api-server",
        _api_server,
        # Airflow builds the tasks' own API at its first request, for seconds: not while the first tasks wait for it.
        _answers("/execution/health/ping", "airflow_port"),
        "apache-airflow",
        database="airflow",
        port_setting="airflow_port",
    ),
    # The api-server reads the same log folder; log servers would listen on every interface, on fixed ports.
    Part(
        "airflow-scheduler",
        _airflow("scheduler", "--skip-serve-logs"),
        _airflow_job("SchedulerJob"),
        "apache-airflow",
        database="airflow",
    ),
    Part(
        "airflow-dag-processor",
        _airflow("dag-processor"),
        _airflow_job("DagProcessorJob"),
        "apache-airflow",
        database="airflow",
    ),
    Part(
        "airflow-triggerer",
        _airflow("triggerer", "--skip-serve-logs"),
        _airflow_job("TriggererJob"),
        "apache-airflow",
        database="airflow",
        grace_s=2.0,  # it waits for triggers that nothing ends; a killed one loses none of them
    ),
    Part(
        "mlflow",
        _mlflow,
        _answers("/health", "mlflow_port"),
        "mlflow",
        database="mlflow",
        port_setting="mlflow_port",
    ),
    Part(
        "gateway",
        _gateway,
        _answers("/v2/health/live", "gateway_port"),
        "bentoml",
        database="control",
        port_setting="gateway_port",
    ),
    Part(
        "shipper",
        _shipper,
        lambda settings, record: beats(settings.run_dir / "shipper.beat", record.created),
        "confluent-kafka",
        wanted=lambda settings: bool(settings.kafka),
    ),
    Part(
        "collector",
        _collector,
        lambda settings, record: beats(settings.run_dir / "collector.beat", record.created),
        "slipway",
        database="control",
    ),
    Part(
        "stream",
        _stream,
        lambda settings, record: beats(settings.run_dir / "stream.beat", record.created),
        "slipway",
        wanted=_streams,
    ),
)
PART_NAMES: tuple[str, ...] = tuple(part.name for part in PARTS)


def choose(names: list[str] | tuple[str, ...] | None, settings: Settings | None = None) -> list[Part]:
    """The parts of these names in the order of `PARTS`. `airflow` stands for its four parts.

    Without names: all that `settings` ask for; all there are without settings.
    """
    if not names:
        return [part for part in PARTS if settings is None or part.wanted(settings)]
    wanted = set()
    for name in names:
        matching = [known for known in PART_NAMES if known == name or known.startswith(f"{name}-")]
        if not matching:
            near = get_close_matches(name, PART_NAMES, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else ""
            raise NotFoundError(f"part {name!r}", expected=", ".join(PART_NAMES), hint=hint)
        wanted.update(matching)
    return [part for part in PARTS if part.name in wanted]
