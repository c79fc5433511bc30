"""What the gateway refuses or bounds: every number in one place, prefix `SLIPWAY_GATEWAY_`."""

from __future__ import annotations

from pydantic import Field
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
    max_json_depth: int = 64
    """Levels of lists and objects in a JSON body; deeper ones are refused with 400."""
    max_head_bytes: int = 32 * 1024
    """Request line and headers; longer ones are refused with 431."""
    max_connections: int = 1000
    """Open connections, a worker; one more is answered 429 and closed."""
    max_inflight: int = 512
    """Requests being served at once, a worker; one more is refused with 429 and `Retry-After`."""
    max_queue_ms: float = 100.0
    """How long a request may wait for its turn; one that waited longer is refused with 429 and `Retry-After`."""
    max_buffered_bytes: int = 256 * 1024 * 1024
    """Bodies that have arrived in part, a worker, together; past it the arriving ones are refused with 429."""
    retry_after_s: int = 1
    """What `Retry-After` says."""
    head_timeout_s: float = 10.0
    """How long the head of a request may take to arrive; then 408, and the connection is closed."""
    body_timeout_s: float = 10.0
    """How long a body may take; the same."""
    write_timeout_s: float = 10.0
    """How long a client may leave its answer unread before its connection is reset."""
    shadow_queue: int = 128
    """Requests whose second arm waits to be scored; one more is answered without its pair, and counted as shed."""
    shadow_share: float = Field(default=0.05, gt=0, le=1)
    """How much of its idle time a worker may spend on second arms: clients wait about as much longer. A request for
    whose second arm there is no time is answered without its pair, and counted as shed. 1: as much as there is."""
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
    pinned_timeout_s: float = 5.0
    """How long such a release may take for a request; then 500. They are scored one after the other, in a thread."""
