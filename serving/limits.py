"""What the gateway refuses or bounds: every number in one place, prefix `SLIPWAY_GATEWAY_`."""

from __future__ import annotations

from pydantic_settings import BaseSettings, SettingsConfigDict


class Limits(BaseSettings):
    """Read once at a worker's start; tests pass values by keyword.

    Sizes in bytes, times in the unit of the name. All times are wall time.
    """

    model_config = SettingsConfigDict(env_prefix="SLIPWAY_GATEWAY_", env_file=".env", extra="ignore", frozen=True)

    max_body_bytes: int = 8 * 1024 * 1024
    max_rows: int = 10_000
    max_labels: int = 10_000
    max_id_chars: int = 256
    max_inflight: int = 512
    body_timeout_s: float = 10.0
    shadow_queue: int = 1024
    remembered_ids: int = 100_000
    segment_bytes: int = 8 * 1024 * 1024
    segment_age_s: float = 300.0
    fsync_ms: int = 100
    load_timeout_s: float = 60.0
    pinned_releases: int = 4
