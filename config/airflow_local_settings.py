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
    import airflow.providers.standard.operators.trigger_dagrun  # noqa: F401 - to be loaded
    import deltalake  # noqa: F401 - to be loaded
    import duckdb  # noqa: F401 - to be loaded
    import evidently  # noqa: F401 - to be loaded
    import feast  # noqa: F401 - to be loaded
    import great_expectations  # noqa: F401 - to be loaded
    import ibis.backends.duckdb  # noqa: F401 - to be loaded
    import lightgbm  # noqa: F401 - to be loaded
    import matplotlib.backends.backend_agg
    import matplotlib.pyplot  # noqa: F401, ICN001 - to be loaded
    import mlflow.tracking.client  # noqa: F401 - to be loaded
    import onnxmltools.convert.lightgbm.convert  # noqa: F401 - to be loaded
    import onnxruntime  # noqa: F401 - to be loaded
    import optuna  # noqa: F401 - to be loaded
    import pandas  # noqa: F401, ICN001 - to be loaded
    import pyarrow.dataset  # noqa: F401 - to be loaded
    import skl2onnx  # noqa: F401 - to be loaded

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
    import pipelines.wiring.rollouts  # noqa: F401 - the first gate would wait for it
