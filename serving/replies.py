"""What an HTTP client is answered: predictions and refusals as status, body and headers, each counted."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from serving import pairs
from serving.gateway import Gateway
from serving.infer import Answer
from serving.oip import http as oip_http
from serving.oip.errors import Refusal
from serving.oip.request import InferRequest
from serving.oip.response import Prediction, error_body

Headers = Sequence[tuple[bytes, bytes]]
Reply = tuple[int, bytes, bytes, Headers]
"""Status, body, content type, further headers."""

_log = logging.getLogger("slipway.app")


class Replies:
    """Of one gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def of_answer(self, request: InferRequest, answer: Answer) -> Reply:
        """The reply to an infer request."""
        if isinstance(answer.result, Prediction):
            return 200, *oip_http.infer_response(request, answer.result)
        return self.of_error(answer.result)

    def of_error(self, error: Exception, path: str = "") -> Reply:
        """The reply for a refusal; for anything else that of a fault of ours, which goes into the gateway's log."""
        if not isinstance(error, Refusal):
            _log.error("unexpected error on %s", path, exc_info=error)
            self._gateway.metrics.refused.labels("500").inc()
            return 500, error_body("internal error; the gateway's log has the details"), oip_http.JSON, ()
        self._gateway.metrics.refused.labels(str(error.status)).inc()
        headers = error.headers
        if error.retryable:
            headers = (*headers, (b"retry-after", str(self._gateway.limits.retry_after_s).encode()))
        return error.status, error_body(str(error)), oip_http.JSON, headers

    def answered(self, model: str, answer: Answer, took_us: int) -> None:
        """Count an answer that has left, and have done what was to be done after it."""
        if answer.pair is not None:
            pairs.put((answer.pair,))
        self._gateway.metrics.request_times(model).observe(took_us)
