"""Imports the heavy libraries once, in the scheduler, before it forks the workers that fork the tasks.

Every task then finds them loaded, by copy-on-write: a task that uses MLflow, Feast and Great Expectations starts in
a fifth of a second instead of ten. Only libraries that start no thread and open no connection at import belong here;
nothing may compute in the parent, because OpenMP, Arrow and gRPC do not survive a fork that happens after their use.
"""

import gc
import logging
import sys

# At "info" it reports, at every import, a hundred of its own functions.
logging.getLogger("great_expectations").setLevel(logging.WARNING)

if "scheduler" in sys.argv:
    gc.disable()  # collecting while millions of objects are made costs a fifth of the time and frees nothing
    import airflow.providers.standard.operators.empty
    import airflow.providers.standard.operators.hitl
    import airflow.providers.standard.operators.trigger_dagrun
    import deltalake
    import duckdb
    import evidently
    import feast
    import great_expectations
    import ibis.backends.duckdb
    import lightgbm
    import matplotlib.backends.backend_agg
    import matplotlib.pyplot
    import mlflow.tracking.client
    import onnxmltools.convert.lightgbm.convert
    import onnxruntime
    import optuna
    import pandas
    import pyarrow.dataset
    import skl2onnx

    import pipelines.adapters.evaluation_plot
    import pipelines.adapters.gx_checks
    import pipelines.adapters.lightgbm_trainer
    import pipelines.adapters.mlflow_registry
    import pipelines.adapters.onnx_export
    import pipelines.adapters.sklearn_trainer
    import pipelines.spec.loading
    import pipelines.wiring.batch_scores
    import pipelines.wiring.datasets
    import pipelines.wiring.features
    import pipelines.wiring.monitoring
    import pipelines.wiring.rollout_runs
    import pipelines.wiring.training
    import pipelines.wiring.view_versions

    gc.freeze()  # a collection in a child would touch, and so copy, every page of the parent
    gc.enable()

if "triggerer" in sys.argv:
    import pipelines.wiring.rollouts  # the first gate would wait for it
