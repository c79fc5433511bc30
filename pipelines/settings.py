"""Settings of an installation: one class, prefix `SLIPWAY_`, from the environment or a `.env` file.

Everything an installation writes lies under `home`; two installations with other homes and ports run side by side.
Importable in both environments.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import AliasChoices, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from pipelines.contracts.clocks import Clock

PROJECT = Path(__file__).resolve().parent.parent


class Settings(BaseSettings):
    """Read once at a process's start: `Settings()`; tests pass values by keyword.

    `token` and `pii_key`, when not given, are those that `slipway up` made for this home.
    """

    # A mistyped URL may hold a password: what is wrong with a setting is told without its value.
    model_config = SettingsConfigDict(
        env_prefix="SLIPWAY_", env_file=".env", extra="ignore", frozen=True, hide_input_in_errors=True
    )

    home: Path = Path("var")
    """Everything the installation writes lies under it."""
    include_dir: Path = PROJECT / "include"
    """Where the specs and transforms lie."""
    clock: Literal["wall", "replay"] = "wall"
    """`wall`: event time is the time of day. `replay`: it is the tick of whoever drives the installation."""
    host: str = "127.0.0.1"
    """Where the servers are reached."""
    bind: str = ""
    """Where they listen; empty: on `host`."""
    airflow_port: int = 8080
    """Airflow's pages and REST API."""
    mlflow_port: int = 5000
    """MLflow's pages and API."""
    gateway_port: int = 3000
    """The gateway."""
    gateway_grpc_port: int = 0
    """The gateway over gRPC; 0: not at all."""
    gateway_name: str = "gw0"
    """Names the gateway in event ids, and its folders under `bus` and `gateway`."""
    gateway_workers: int = Field(0, ge=0)
    """Worker processes of the gateway; 0: as many as cores that it may use."""
    openlineage: bool = False
    """Whether Airflow's tasks write OpenLineage events into `logs/openlineage.jsonl` of the home."""
    route_poll_ms: int = 200
    """How often the gateway looks for new routes."""
    core_price_per_hour: float = 0.04
    """Price of a processor core for an hour, in any currency: what the cost of predictions is reckoned by."""
    durability: Literal["process", "power"] = "process"
    """`process`: an answer is logged before it leaves; `power`: and on the disk, too (labels and KPIs always are)."""
    log_retention_days: float = Field(7.0, gt=0)
    """How long a segment of the inference log stays on the gateway's disk once Kafka, or the lake, has it."""
    kafka: str = ""
    """Kafka's bootstrap servers (`host:port,...`); empty: the bus is the segments' folder in `home`."""
    kafka_topic: str = "slipway-inference"
    """The topic of the inference log; made by the shipper when it is missing."""
    kafka_config: str = ""
    """A file with more of librdkafka's properties, a `name=value` a line: TLS, SASL, secrets."""
    control_url: str = Field("", repr=False, pattern=r"^(|sqlite:///.*|postgres(ql)?(\+psycopg)?://.*)$")
    """Control database: `postgresql://user:password@host:port/database`; empty: SQLite in `home`."""
    airflow_db: str = Field("", repr=False, pattern=r"^(|postgresql://.*)$")
    """Airflow's database, a `postgresql://` URL; empty: SQLite in `home`."""
    feast_registry: str = Field("", repr=False, pattern=r"^(|postgresql://.*)$")
    """Feast's registry, as a URL of a Postgres database; empty: a file in `home`."""
    mlflow_db: str = Field("", repr=False, pattern=r"^(|postgresql://.*)$")
    """MLflow's database, a `postgresql://` URL; empty: SQLite in `home`."""
    engine: Literal["duckdb", "spark"] = "duckdb"
    """What computes feature views that name no `engine`, and joins training sets."""
    spark_master: str = Field("local[2]", min_length=1)
    """Where Spark runs: `local[n]`, `spark://host:port`, `k8s://...`, as Spark itself reads it."""
    spark_config: str = ""
    """A file with more of Spark's properties, a `name=value` a line: memory, images, secrets."""
    lake_uri: str = Field("", validation_alias=AliasChoices("lake_uri", "SLIPWAY_LAKE"), pattern=r"^(|s3://[^/]+.*)$")
    """Where the lake lies: `s3://bucket/prefix`; empty: in `home`. Keys as the AWS SDKs read them (`AWS_...`)."""
    lake_endpoint: str = ""
    """Of an S3 store that is not Amazon's: `https://host:port`; plain `http://` only where it says so."""
    lake_retention_hours: float = Field(168, ge=0)
    """How long `slipway lake maintain` keeps files that the newest versions of tables no longer need."""
    lake_maintenance: str = "0 4 * * 0"
    """When the DAG `lake.maintenance` runs, as a cron expression in UTC; empty: by hand alone."""
    online_store: Literal["sqlite", "redis"] = "sqlite"
    """Where features are read online. `sqlite`: a file in `home`; `redis`: the server at `redis_url`."""
    redis_url: SecretStr = SecretStr("")
    """`redis://[user:password@]host[:port][/database]`, `rediss://...` (TLS) or `unix://...`, for `redis`."""
    client_token: SecretStr = SecretStr("")
    """Bearer token that predictions, labels and KPIs need at the gateway; empty: none is asked for."""
    token: SecretStr = SecretStr("")
    """Bearer token of a rollback at the gateway; empty: the one in `home/secrets`, made by `slipway up`."""
    webhook_secret: SecretStr = SecretStr("")
    """Secret that webhooks are signed with (HMAC-SHA256); the receivers know it, too."""
    pii_key: SecretStr = SecretStr("")
    """Key of the hash that replaces PII; empty: as `token`. Keep it as long as the data: entities are found by it."""

    @model_validator(mode="before")
    @classmethod
    def _take_secrets_of_home(cls, values: dict[str, Any]) -> dict[str, Any]:
        folder = Path(values.get("home") or "var").resolve() / "secrets"
        for name in ("token", "pii_key"):
            given = values.get(name)
            if not (given.get_secret_value() if isinstance(given, SecretStr) else given):
                file = folder / name
                if file.exists():
                    values[name] = file.read_text().strip()
        return values

    @model_validator(mode="after")
    def _redis_has_its_url(self) -> Settings:
        if self.online_store == "redis" and not self.redis_url.get_secret_value():
            raise ValueError("online_store is redis, and redis_url is empty: set SLIPWAY_REDIS_URL=redis://host:6379/0")
        return self

    @property
    def root(self) -> Path:
        """`home` as an absolute path."""
        return self.home.resolve()

    @property
    def lake(self) -> Path:
        """The lake's folder, unless `lake_uri` names another place."""
        return self.root / "lake"

    @property
    def bus(self) -> Path:
        return self.root / "bus"

    @property
    def releases(self) -> Path:
        return self.root / "releases"

    @property
    def training_sets(self) -> Path:
        return self.root / "training_sets"

    @property
    def control(self) -> str:
        """SQLAlchemy URL of the control database."""
        return self.control_url or f"sqlite:///{self.root / 'control.db'}"

    @property
    def listen(self) -> str:
        """The address the servers listen on."""
        return self.bind or self.host

    @property
    def mlflow_url(self) -> str:
        return f"http://{self.host}:{self.mlflow_port}"

    @property
    def airflow_url(self) -> str:
        return f"http://{self.host}:{self.airflow_port}"

    @property
    def gateway_url(self) -> str:
        return f"http://{self.host}:{self.gateway_port}"

    @property
    def mlflow_store(self) -> str:
        """SQLAlchemy URL of MLflow's database."""
        return self.mlflow_db or f"sqlite:///{self.root / 'mlflow' / 'mlflow.db'}"

    @property
    def airflow_store(self) -> str:
        """SQLAlchemy URL of Airflow's database."""
        return self.airflow_db or f"sqlite:///{self.airflow_home / 'airflow.db'}"

    @property
    def feast_dir(self) -> Path:
        return self.root / "feast"

    @property
    def run_dir(self) -> Path:
        """Pids of the running parts."""
        return self.root / "run"

    @property
    def logs_dir(self) -> Path:
        return self.root / "logs"

    @property
    def secrets_dir(self) -> Path:
        return self.root / "secrets"

    @property
    def airflow_home(self) -> Path:
        return self.root / "airflow"

    def event_clock(self) -> Clock:
        """The installation's event clock."""
        return Clock(self.clock, self.root / "clock.json")
