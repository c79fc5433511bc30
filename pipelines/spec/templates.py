"""Starting points of new specs: the text of the files, for `slipway new`."""

from __future__ import annotations

from pathlib import Path

_DATASET = """\
name: NAME
owner: you@example.com
description: What a row is, and where it comes from.
source: {kind: file, path: data/NAME.csv, format: csv}
key: [id]
event_time: happened_at       # when the fact holds
known_at: happened_at         # when the row could first be known, plus:
arrival_delay: 0s event_time
columns:
  id: {type: int64}
  happened_at: {type: timestamp}
  value: {type: float64, nullable: true}
checks: []                    # Great Expectations: {expect: column_values_to_be_in_set, column: ..., value_set: [...]}
stop: {quarantined_share: 0.05, min_rows: 0}
schedule: "0 3 * * *"
"""

_DATASET_ROWS = "id,happened_at,value\n1,2024-01-01T00:00:00Z,1.0\n"

_VIEW = """\
name: NAME
owner: you@example.com
description: What the features say about the entity.
entity: {name: id, keys: {id: int64}}
datasets: [DATASET]
transform: NAME.py:build
features:
  value_sum_1d: {type: float64, description: Sum of the last day}
look_back: 2d event_time      # how far the windows reach
publish_every: 1h event_time
ttl: 7d event_time
freshness: 30h event_time     # longer than its datasets' publications are apart
schedule: "15 * * * *"
"""

_VIEW_TRANSFORM = '''\
"""Features of NAME."""

import ibis


def build(tables: dict[str, ibis.Table]) -> ibis.Table:
    """One row per key and publication. `available_at` is when a raw row could first be read online."""
    rows = tables["DATASET"]
    counted = rows.group_by(["id", "available_at"]).agg(value=rows.value.sum())
    last_day = ibis.range_window(
        group_by="id", order_by="available_at", preceding=ibis.interval(hours=23), following=ibis.interval(hours=0)
    )
    return counted.select("id", event_timestamp=counted.available_at, value_sum_1d=counted.value.sum().over(last_day))
'''

_MODEL = """\
name: NAME
owner: you@example.com
description: What is predicted, for whom, when it is asked.
task: regression              # or binary
requests: {datasets: [DATASET], transform: NAME.py:requests}
labels: {datasets: [DATASET], transform: NAME.py:labels, unlabelled: drop, maturity: 1d event_time}
inputs:
  id: {datatype: INT64}
  hour: {datatype: FP64, description: Hour of the day}
views: []                     # - {view: ..., entity: {id: id}, features: [...]}
input_features: [hour]
output: {score: score, low: 0.0, high: 1000.0, fields: {score: FP64}}
training:
  trainer: lightgbm
  window: all
  split: {validation: 14d event_time, test: 14d event_time, gap: 1d event_time}
  trials: 10
offline_gates:
  - {metric: mae, against: champion, max_worse_rel: 0.02}
rollout:
  start: manual
  approvers: [approver]
  max_wait: 3d event_time
STAGES
  policy:
    schema: slipway-gate/1
    budget: {rollback: 0.01, hold: 0.01, promote: 0.05}
    min_event_time: 7d event_time
    metrics:
      - {name: error_rate, kind: event, harm_ratio: 1.5, promote_margin_abs: 0.01, weight: 0.3}
      - {name: invalid_score, kind: event, weight: 0.2}
QUALITY
    integrity: [sample_ratio, lost_responses, duplicates]
schedule: "0 4 * * *"
"""

_ABS_ERROR = "{name: abs_error, kind: paired_loss, loss: absolute, cap: 100, promote_margin_rel: 0.05"
ROLLOUTS = {
    "canary": (
        """\
  stages:
    - {name: backtest}
    - {name: shadow, requests: 3000}
    - {name: canary_20, share: 0.2, requests: 4000}
    - {name: canary_50, share: 0.5, requests: 4000}
    - {name: bake, requests: 1000}""",
        f"      - {_ABS_ERROR}, weight: 0.5}}",
    ),
    "ab": (
        """\
  stages:                     # a comparison at a fixed split, for a whole week at the least
    - {name: backtest}
    - {name: shadow, requests: 3000}
    - {name: ab_50, share: 0.5, requests: 20000, min_event_time: 7d event_time, max_wait: 28d event_time}
    - {name: bake, requests: 1000}""",
        f"""\
      # What must be better; tell its values by POST /v1/models/NAME/kpis.
      - {{name: kpi, kind: mean, range: [0, 10], better: higher, role: primary, harm_rel: 0.02, weight: 0.25}}
      - {_ABS_ERROR}, role: secondary, weight: 0.25}}""",
    ),
    "blue_green": (
        """\
  stages:                     # green scores all traffic unseen, then answers all of it; blue stays warm
    - {name: shadow, requests: 3000}
    - {name: bake, requests: 3000}""",
        f"      - {_ABS_ERROR}, weight: 0.5}}",
    ),
}
"""Stages and the metrics of quality that fit them, by the way a challenger goes."""

_MODEL_TRANSFORM = '''\
"""Requests and labels of NAME."""

import ibis


def requests(tables: dict[str, ibis.Table]) -> ibis.Table:
    """One row a request, as it would have been sent: `request_id`, `event_timestamp`, and the inputs by name."""
    rows = tables["DATASET"]
    return rows.select(
        "id",
        request_id=rows.id.cast("string"),
        event_timestamp=rows.happened_at,
        hour=rows.happened_at.hour().cast("float64"),
    )


def labels(tables: dict[str, ibis.Table]) -> ibis.Table:
    """One row a truth: `request_id`, `label`, and `label_timestamp`, when it was known."""
    rows = tables["DATASET"]
    return rows.select(request_id=rows.id.cast("string"), label=rows.value, label_timestamp=rows.known_at)
'''


def dataset_files(name: str) -> dict[Path, str]:
    """Files of a new dataset, by their path in `include`: its spec, and one row of data to be replaced."""
    return {
        Path("datasets") / f"{name}.yaml": _DATASET.replace("NAME", name),
        Path("data") / f"{name}.csv": _DATASET_ROWS,
    }


def view_files(name: str, dataset: str) -> dict[Path, str]:
    """Files of a new feature view over a dataset made by `dataset_files`."""
    return {
        Path("features") / f"{name}.yaml": _filled(_VIEW, name, dataset),
        Path("transforms") / f"{name}.py": _filled(_VIEW_TRANSFORM, name, dataset),
    }


def model_files(name: str, dataset: str, rollout: str = "canary") -> dict[Path, str]:
    """Files of a new model over a dataset made by `dataset_files`; `rollout` is one of `ROLLOUTS`."""
    stages, quality = ROLLOUTS[rollout]
    spec = _MODEL.replace("STAGES", stages).replace("QUALITY", quality)
    return {
        Path("models") / f"{name}.yaml": _filled(spec, name, dataset),
        Path("transforms") / f"{name}.py": _filled(_MODEL_TRANSFORM, name, dataset),
    }


def _filled(text: str, name: str, dataset: str) -> str:
    return text.replace("NAME", name).replace("DATASET", dataset)
