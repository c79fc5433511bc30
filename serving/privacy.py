"""Personal inputs at the gateway: their keyed hash takes their place, or they are dropped, before anything sees them.

Which ones they are is said by the releases (`InputField.pii`, `Manifest.dropped_inputs`). Once a request is bound no
part of the gateway holds a raw value but the request's own buffers: models, features, the inference log, metrics and
messages see hashes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import msgspec
import numpy as np

from pipelines.contracts.errors import ContractError
from pipelines.contracts.pii import KeyedHash
from pipelines.contracts.release import InputField, Manifest
from serving.inputs import Binder, Bound
from serving.oip.datatypes import Scalar
from serving.oip.errors import Malformed
from serving.oip.request import InferRequest

# A shorter text may stand in an id by chance.
_TELLING_CHARS = 6


class Privacy(msgspec.Struct, frozen=True):
    """The inputs that are hashed, and those that are dropped unread."""

    personal: frozenset[str] = frozenset()
    dropped: frozenset[str] = frozenset()


def privacy_of(manifest: Manifest, keyed: KeyedHash | None) -> Privacy:
    """What a release says of its inputs. Raises ContractError when this gateway cannot hash them as training did."""
    personal = [field for field in manifest.inputs if field.pii]
    for field in personal:
        if field.datatype != "BYTES":
            raise ContractError(
                f"PII input {field.name}", got=field.datatype, expected="BYTES: it is known by its hash"
            )
    if personal:
        if keyed is None:
            KeyedHash("")  # raises, and says what to set
        elif manifest.pii_key and manifest.pii_key != keyed.key_id:
            raise ContractError(
                "PII key",
                got=f"the one with id {keyed.key_id}",
                expected=f"the one of training, id {manifest.pii_key}",
                hint="Under another key nobody's features are found: set SLIPWAY_PII_KEY to the key of the lake.",
            )
    return Privacy(frozenset(field.name for field in personal), frozenset(manifest.dropped_inputs or ()))


def together(privacies: Iterable[Privacy], taken: Collection[str]) -> Privacy:
    """What holds for a request that several releases may score, which take the inputs `taken`.

    Personal for one is personal for all; what one takes is not dropped for another.
    """
    privacies = list(privacies)
    return Privacy(
        frozenset[str]().union(*(one.personal for one in privacies)),
        frozenset[str]().union(*(one.dropped for one in privacies)).difference(taken),
    )


def binder_of(
    fields: Mapping[str, InputField],
    required: frozenset[str],
    features: frozenset[str],
    privacy: Privacy,
    keyed: KeyedHash | None,
) -> Binder:
    """The binder of these inputs; one that hides, only where there is something to hide."""
    if not (privacy.personal or privacy.dropped):
        return Binder(fields, required, features)
    return PrivateBinder(fields, required, features, privacy, keyed)


class PrivateBinder(Binder):
    """Binds a request without what is dropped, and with hashes in the place of personal values."""

    def __init__(
        self,
        fields: Mapping[str, InputField],
        required: frozenset[str],
        features: frozenset[str],
        privacy: Privacy,
        keyed: KeyedHash | None,
    ) -> None:
        super().__init__(fields, required, features)
        self._privacy = privacy
        self._keyed = keyed

    def bind(self, request: InferRequest, max_rows: int) -> Bound:
        """As a binder's. Raises Malformed also for an id that holds a personal value, and never shows one."""
        dropped = self._privacy.dropped
        kept = [tensor for tensor in request.inputs if tensor.name not in dropped]
        try:
            bound = super().bind(msgspec.structs.replace(request, inputs=kept), max_rows)
        except Malformed as refusal:
            if any(refusal.what.startswith(f"input {name}") for name in self._privacy.personal):
                raise Malformed(refusal.what, got="what is not shown: it is PII", expected=refusal.expected) from None
            raise
        for name in self._privacy.personal & bound.logged.keys():
            self._hide(name, request.id, bound)
        return bound

    def _hide(self, name: str, request_id: str | None, bound: Bound) -> None:
        assert self._keyed is not None, "a release with personal inputs is not loaded without a key"
        values = bound.logged[name]
        if request_id and any(_told_by(request_id, value) for value in values):
            raise Malformed("id", got=f"one that holds the value of input {name}, which is PII", expected="another id")
        hashed: list[Scalar] = [None if value is None else self._keyed.of(str(value)) for value in values]
        column = np.empty(len(hashed), dtype=object)
        column[:] = hashed
        bound.columns[name], bound.logged[name] = column, hashed


def _told_by(request_id: str, value: Scalar) -> bool:
    return request_id == value or (isinstance(value, str) and len(value) >= _TELLING_CHARS and value in request_id)
