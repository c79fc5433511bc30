"""Which arm a randomisation unit draws, and whether a request's payload is logged: pure functions of hashes.

The ranges are nested: a unit that is in the challenger's share at 5 % is in it at 20 %, so ramping up only adds units.
The share is an integer number of parts per million, so that two languages cannot disagree about it.
Published vectors: `tests/contract/vectors/assignment.json`, `payload_sampling.json`.
"""

from __future__ import annotations

import hashlib

from pipelines.contracts.errors import ContractError
from pipelines.contracts.events import Arm

PPM = 1_000_000
_SPACE = 1 << 64
_PAYLOAD_SALT = "slipway-payload"


def position(salt: str, unit: str) -> int:
    """The unit's place in [0, 2**64): the first 8 bytes, big endian, of SHA-256(salt NUL unit) in UTF-8."""
    digest = hashlib.sha256(salt.encode() + b"\x00" + unit.encode()).digest()
    return int.from_bytes(digest[:8], "big")


def draw(salt: str, unit: str, share_ppm: int) -> Arm:
    """`challenger` when the unit's position lies below share * 2**64, else `champion`.

    Raises ContractError for a share outside 0..1,000,000 ppm.
    """
    if not 0 <= share_ppm <= PPM:
        raise ContractError("challenger share", got=share_ppm, expected="0..1000000 parts per million")
    return "challenger" if position(salt, unit) * PPM < share_ppm * _SPACE else "champion"


def payload_is_logged(request_id: str, payload_ppm: int) -> bool:
    """Whether the inputs and features of a request are among the `payload_ppm` that are logged.

    Both arms, a retry and a replay agree; it tells nothing of the arm. Raising the rate never drops a request.
    """
    return payload_ppm >= PPM or position(_PAYLOAD_SALT, request_id) * PPM < payload_ppm * _SPACE
