"""One infer request on its way: what its events have in common, its responses, and what is counted of them."""

from __future__ import annotations

import msgspec

from pipelines.contracts.assignment import PPM
from pipelines.contracts.clocks import wall_us
from pipelines.contracts.events import Arm, EventId, Response
from serving.gateway import Gateway
from serving.inference_log import LogWriteError
from serving.inputs import Bound
from serving.metrics import ViewMetrics
from serving.models import LoadedModel
from serving.online_features.plan import ReadPlan, Wanted
from serving.route_table import Plan
from serving.scoring import Outcome, Scorer


class Exchange(msgspec.Struct):
    """A request that has been checked.

    `given`: the client named it; `remembered`: that name was new. `unit` is the randomisation unit.
    """

    gateway: Gateway
    plan: Plan
    bound: Bound
    scorer: Scorer
    request_id: str
    given: bool
    unit: str
    event_us: int
    arm: Arm = "champion"
    paired: bool = False
    rollout_id: str | None = None
    remembered: bool = False
    sampled: bool = True
    logged: bool = True
    fallback: bool = False

    @property
    def is_compared(self) -> bool:
        """Whether its times are held against those of the other release: while arms are drawn. (In shadow the times of
        pairs are taken elsewhere.)
        """
        return self.plan.challenger is not None and 0 < self.plan.effective.share_ppm < PPM

    @property
    def reads(self) -> ReadPlan:
        """What is read online: for both arms, if both will score."""
        return self.plan.reads if self.paired or self.arm == "challenger" else self.plan.champion.reads

    def wanted(self) -> Wanted:
        """The request as the online store sees it."""
        return Wanted(self.bound.columns, self.bound.rows, self.event_us)

    def model_of(self, arm: Arm) -> LoadedModel:
        challenger = self.plan.challenger
        return challenger if arm == "challenger" and challenger is not None else self.plan.champion

    def respond(self, arm: Arm, outcome: Outcome, *, served: bool, fallback: bool = False) -> bool:
        """Count the arm's outcome and write its Response event. False when it could not be written."""
        self.count(arm, outcome, served=served)
        if not self.logged:
            return False
        log = self.gateway.log
        event_id = log.next_id()
        try:
            log.write(self.response(event_id, arm, outcome, served=served, fallback=fallback))
        except LogWriteError:
            return False
        return True

    def response(
        self,
        event_id: EventId,
        arm: Arm,
        outcome: Outcome,
        *,
        served: bool,
        shadow: bool = False,
        fallback: bool = False,
        beside_us: int | None = None,
    ) -> Response:
        """The arm's Response event."""
        return Response(
            id=event_id,
            model=self.plan.route.model,
            request_id=self.request_id,
            arm=arm,
            release=self.model_of(arm).digest,
            rollout_id=self.rollout_id,
            event_us=self.event_us,
            wall_us=wall_us(),
            status=outcome.status,
            served=served,
            shadow=shadow,
            fallback=fallback,
            raw=outcome.raw,
            score=outcome.score,
            outputs=outcome.outputs,
            latency_us=outcome.latency_us,
            beside_us=beside_us,
            features_us=outcome.features_us,
            model_us=outcome.model_us,
            features=outcome.features if self.sampled else [],
            sampled=self.sampled,
            degraded=outcome.degraded,
            error=outcome.error,
        )

    def count(self, arm: Arm, outcome: Outcome, *, served: bool) -> None:
        """Add an arm's outcome to the metrics."""
        metrics = self.gateway.metrics
        series = metrics.arm(self.plan.route.model, arm, self.model_of(arm).digest)
        series.outcomes[outcome.status].n += 1
        series.latency.observe(outcome.latency_us)
        series.model_time.observe(outcome.model_us)
        if served:
            series.predictions.n += self.bound.rows
        if outcome.features:
            series.features_time.observe(outcome.features_us)
            if outcome.degraded:
                series.degraded.n += 1
            if served:
                for read in outcome.features:
                    _count_view(metrics.view(read.view), read.event_us, self.event_us)

    def will_wait(self) -> None:
        """Use the place in the shadow queue, and keep only what the other arm needs.

        A queue of whole requests is a heap whose collection would stop the worker for milliseconds.
        """
        self.paired = False
        self.bound.logged = {}

    def unpair(self) -> None:
        """Give the request's place in the shadow queue back, if it has one."""
        if self.paired:
            self.paired = False
            self.gateway.shadow.release()


def _count_view(series: ViewMetrics, held: list[int | None], event_us: int) -> None:
    """Count one view's rows of an answered request, and how old the oldest is."""
    absent = held.count(None)
    found = len(held) - absent
    series.absent.n += absent
    if found:
        series.found.n += found
        series.age.observe(event_us - min(one for one in held if one is not None))
