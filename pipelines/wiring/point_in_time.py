"""Features as they could be read online at a time: the views that a model's spec uses, joined to an entity frame."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from pipelines.adapters.delta_lake import connect, open_lake
from pipelines.contracts.errors import NotYetError
from pipelines.contracts.release import ViewPin
from pipelines.features import asof
from pipelines.settings import Settings
from pipelines.spec.loading import load_model, load_view
from pipelines.wiring import features, on_spark


def pins(settings: Settings, model: str) -> list[ViewPin]:
    """The views a model's spec uses, pinned to their versions of now."""
    spec = load_model(settings.include_dir, model)
    made = []
    for use in spec.views:
        view = load_view(settings.include_dir, use.view)
        made.append(
            ViewPin(
                view=view.feast_name(settings.include_dir),
                entity=dict(use.entity),
                join_key_types=dict(view.entity.keys),
                features=list(use.features),
                ttl_us=view.ttl.us if view.ttl else None,
            )
        )
    return made


def historical(
    settings: Settings,
    entity: pa.Table,
    views: Sequence[ViewPin],
    *,
    timestamp: str = "event_timestamp",
    stamps: bool = False,
) -> pa.Table:
    """The entity frame with the views' features as they could be read online at each row's time.

    entity: has `timestamp` and the columns that the pins' `entity` maps join keys to; comes back unchanged, in order.
    Raises NotYetError for a view that was never published. The installation's `engine` joins.
    Features come under their own names. stamps: also `<view>__event_timestamp`, when the value became readable.
    """
    lake = open_lake(settings)
    for pin in views:
        if not lake.exists(features.table_of(pin.view)):
            hint = f"Run features.{pin.view.partition('__')[0]} first."
            raise NotYetError(f"view {pin.view}", got="never published", hint=hint)
    joins = [
        asof.ViewJoin(
            relation=pin.view,
            keys=dict(pin.entity),
            features={name: name for name in pin.features},
            ttl_us=pin.ttl_us,
            stamp_name=f"{pin.view}{asof.STAMP_SUFFIX}" if stamps else None,
            # A view's check refuses rows that share keys and time; a stream corrects its rows by further ones.
            unique=lake.applied(features.table_of(pin.view), features.STREAM) is None,
        )
        for pin in views
    ]
    if settings.engine == "spark":
        return on_spark.join(settings, entity, timestamp, {features.table_of(one.relation): one for one in joins})
    with connect() as connection:
        for one in joins:
            lake.bind(connection, one.relation, features.table_of(one.relation))
        return asof.join(connection, entity, timestamp, joins)
