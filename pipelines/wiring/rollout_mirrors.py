"""What a decision changes outside the control database: the registry, the assets, the people."""

from __future__ import annotations

from pipelines.adapters.control_db import control_db
from pipelines.contracts.errors import TransientError
from pipelines.rollout.actions import Action, AttachReport, EmitAsset, SetAlias, TagRelease
from pipelines.rollout.executor import Mirror
from pipelines.settings import Settings
from pipelines.wiring.rollout_gate import rollout_store
from pipelines.wiring.rollout_messages import messengers


def mirrors(settings: Settings) -> dict[str, Mirror]:
    """Handlers of everything outside the control database, by target."""

    def registry(action: Action, key: str) -> str:
        assert isinstance(action, TagRelease | SetAlias)
        db = control_db(settings)
        if isinstance(action, TagRelease):
            db.set_release_status(action.model, action.release, action.tags["slipway.status"])
        registered = {row.digest for row in db.releases(action.model) if row.mlflow_run}
        if action.release is not None and action.release not in registered:
            return "not in the registry"
        if not registered:
            return "the model is not in the registry"
        from mlflow.exceptions import MlflowException

        from pipelines.adapters import mlflow_registry

        try:
            if isinstance(action, TagRelease):
                tags = action.tags | {mlflow_registry.RECORD_TAG: _entry_of(settings, action.model, key)}
                mlflow_registry.tag_release(settings, action.model, action.release, tags)
                return f"{len(tags)} tags"
            mlflow_registry.set_alias(settings, action.model, action.alias, action.release)
        except MlflowException as error:
            raise TransientError("MLflow", got=str(error), hint="The next advance tries again.") from error
        return f"alias {action.alias}"

    def assets(action: Action, key: str) -> str:
        assert isinstance(action, EmitAsset)
        control_db(settings).emit_asset(key, action.uri, action.extra)
        return action.uri

    def reports(action: Action, _key: str) -> str:
        assert isinstance(action, AttachReport)
        return _attach(settings, action)

    return {"registry": registry, "assets": assets, "reports": reports, **messengers(settings)}


def _entry_of(settings: Settings, model: str, key: str) -> str:
    """Number and hash of the entry of the record that ordered the action `<model>:<n>/<action>`."""
    n = int(key.rpartition(":")[2].partition("/")[0])
    return next(f"{line.n} {line.hash}" for line in rollout_store(settings).entries(model) if line.n == n)


def _attach(settings: Settings, action: AttachReport) -> str:
    """The rollout's page as an artifact of the release's MLflow run; a later one of the same rollout replaces it."""
    runs = {row.digest: row.mlflow_run for row in control_db(settings).releases(action.model)}
    if not (run := runs.get(action.release)):
        return "not in the registry"
    from pipelines.adapters import mlflow_registry
    from pipelines.wiring.parity import kept
    from pipelines.wiring.rollout_page import page

    name = f"rollouts/{action.rollout_id}.html"
    try:
        mlflow_registry.attach(settings, run, name, page(settings, action.rollout_id).encode())
        for report in kept(settings, action.model, action.rollout_id)[-1:]:
            beside = f"rollouts/{action.rollout_id}.parity.json"
            mlflow_registry.attach(settings, run, beside, report.to_json().encode())
    except Exception as error:  # a page that cannot be drawn must keep nothing else from being done
        raise TransientError(
            f"page of {action.rollout_id}", got=f"{type(error).__name__}: {error}", hint="The next advance tries again."
        ) from error
    return name
