"""What the judge says: verdicts on metrics, and what the evidence demands of the rollout."""

from __future__ import annotations

from typing import Literal

import msgspec

VerdictKind = Literal["pass", "fail", "inconclusive", "no_data", "error"]
Better = Literal["yes", "no", "unproven"]


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What the evidence says of one metric, over all traffic (`slice` None) or in one slice.

    `e_value` is against "no harm", `threshold` its bar (rollback or hold). `proof` and `proof_threshold` are against
    "worse than the promotion margin" (0 and 0 without a margin). `estimate` is challenger minus champion in the
    metric's unit, with the anytime-valid interval `lower`..`upper` (None before there is data); `n` settled
    observations. e-values are capped at 1e300 so that JSON can hold them.
    """

    metric: str
    slice: str | None
    kind: VerdictKind
    e_value: float
    threshold: float
    proof: float
    proof_threshold: float
    better: Better
    estimate: float | None
    lower: float | None
    upper: float | None
    champion: float | None
    challenger: float | None
    n: int
    sentence: str


class Stop(msgspec.Struct, frozen=True, kw_only=True):
    """The evidence demands an end: `rollback` (the challenger harms) or `hold` (the data cannot be trusted)."""

    action: Literal["rollback", "hold"]
    metric: str
    slice: str | None
    e_value: float
    threshold: float
    sentence: str


class Pause(msgspec.Struct, frozen=True, kw_only=True):
    """The ramp should wait, nothing is withdrawn (request-level latency)."""

    metric: str
    slice: str | None
    e_value: float
    threshold: float
    sentence: str


class Judgement(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a decision needs from the evidence.

    `stage_complete`: the stage's number of requests is reached. `proven` / `missing`: required metrics whose margin is
    ruled out or not yet. `exposed`: requests assigned to the challenger in stages that draw the arm. `requests`: of
    this stage.
    """

    stage: str
    verdicts: tuple[Verdict, ...]
    stop: Stop | None
    pause: Pause | None
    stage_complete: bool
    proven: tuple[str, ...]
    missing: tuple[str, ...]
    exposed: int
    requests: int
    evidence_digest: str
    policy_digest: str
