"""What the gateway refuses or bounds: every number in one place, prefix `SLIPWAY_GATEWAY_`."""

from __future__ import annotations

from pydantic_settings import BaseSettings, SettingsConfigDict


class Limits(BaseSettings):
    """Read once at a worker's start; tests pass values by keyword.

    Sizes in bytes, times in the unit of the name. All times are wall time.
    """

    model_config = SettingsConfigDict(env_prefix="SLIPWAY_GATEWAY_", env_file=".env", extra="ignore", frozen=True)

    max_body_bytes: int = 8 * 1024 * 1024
    """A longer body is refused with 413."""
    max_rows: int = 10_000
    """Rows in one infer request; more are refused with 413."""
    max_labels: int = 10_000
    """Labels or KPI values in one call; more are refused with 413."""
    max_id_chars: int = 256
    """Length of a request id, and of a randomisation unit."""
    max_inflight: int = 512
    """Requests being served at once, a worker; one more is refused with 429 and `Retry-After`."""
    body_timeout_s: float = 10.0
    """How long a body may take to arrive."""
    shadow_queue: int = 1024
    """Requests whose second arm waits to be scored; one more is answered without its pair, and counted as shed."""
    remembered_ids: int = 100_000
    """Client ids of which the first arm is remembered, so that a retry gets it again."""
    segment_bytes: int = 8 * 1024 * 1024
    """A segment of the inference log that has reached it is followed by the next."""
    segment_age_s: float = 300.0
    """So is one that is older."""
    fsync_ms: int = 100
    """Longest time between an append and its fsync."""
    slow_disk_ms: int = 1000
    """While an fsync takes longer, champions answer unlogged and challengers step back."""
    features_budget_ms: float = 5.0
    """How long reading online features may take, for each started hundred rows of a request; past it the release's
    `on_features_unavailable` decides."""
    load_timeout_s: float = 60.0
    """How long a starting gateway waits for its routes' releases before it serves what it has."""
    pinned_releases: int = 4
    """Releases addressed by version that are kept loaded beyond those of routes."""
