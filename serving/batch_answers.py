"""The last batch score of a request, where its release gives no answer and has declared `on_failure: batch_score`."""

from __future__ import annotations

import logging
import sqlite3

import msgspec

from pipelines.contracts import batch_scores
from pipelines.contracts.batch_scores import BatchScore
from pipelines.contracts.clocks import from_us
from pipelines.contracts.release import Manifest
from serving.gateway import Gateway
from serving.scoring import Outcome

_log = logging.getLogger("slipway.batch-answers")


def replace_by_batch_score(gateway: Gateway, manifest: Manifest, rows: int, request_id: str, outcome: Outcome) -> None:
    """Give a failed outcome the outputs of the batch score, and say so in `degraded`; its release has failed
    all the same.

    Batch scores are of single requests: a batch, and a request without the id it was announced by, has none.
    """
    if manifest.on_failure != "batch_score" or rows != 1:
        return
    score = _find(gateway, manifest.model, request_id)
    if score is None or not manifest.output.fields.keys() <= score.outputs.keys():
        return
    outcome.batch = score
    outcome.outputs = {name: [score.outputs[name]] for name in manifest.output.fields}
    outcome.degraded = [*outcome.degraded, f"batch score as of {from_us(score.as_of_us).isoformat()}"]
    gateway.metrics.batch_answers.labels(manifest.model).inc()


def _find(gateway: Gateway, model: str, request_id: str) -> BatchScore | None:
    try:
        return batch_scores.find(batch_scores.file_of(gateway.settings.root, model), request_id)
    except (sqlite3.Error, OSError, msgspec.MsgspecError) as error:
        _log.error("batch scores of %s are unreadable: %s", model, error)
        return None
