"""The keyed hash that stands in the place of personal data: the same at ingest, at request and in views.

HMAC-SHA-256 (RFC 2104) of the value's UTF-8 text under the installation's key, its first 128 bits in hex: equal values
stay equal, so entities are still found; nobody without the key can tell which value it was, even by trying them all.
Published vectors: `tests/contract/vectors/pii.json`.
"""

from __future__ import annotations

import hashlib
import hmac

from pipelines.contracts.errors import ContractError

HEX_DIGITS = 32
# No text of a column: the identity of a key cannot be taken for the hash of somebody.
_IDENTITY = b"\x00slipway pii key"


class KeyedHash:
    """The hash under one key. Raises ContractError for an empty key."""

    def __init__(self, key: str) -> None:
        if not key:
            raise ContractError(
                "PII key",
                got="none",
                expected="SLIPWAY_PII_KEY",
                hint="`slipway up` makes one for its home; set the same one wherever the data are used.",
            )
        self._key = key.encode()
        self.key_id = self._digest(_IDENTITY)[:16]
        """Tells two keys apart without telling either: releases carry it, so that a wrong key is noticed."""

    def of(self, value: str) -> str:
        """The hash of a value, as it stands in the lake, in views and in the inference log."""
        return self._digest(value.encode(errors="surrogatepass"))

    def _digest(self, data: bytes) -> str:
        return hmac.digest(self._key, data, hashlib.sha256).hex()[:HEX_DIGITS]
