"""Bearer tokens: of rollbacks by hand always, of predictions, labels and KPIs where one is set."""

from __future__ import annotations

import hmac
from collections.abc import Iterable

from pydantic import SecretStr

from serving.oip.errors import Forbidden, Unauthorized


class Bearer:
    """The token that one kind of request needs; `setting` names where it comes from."""

    def __init__(self, token: SecretStr, setting: str) -> None:
        self._token = token.get_secret_value().encode()
        self._setting = setting

    @property
    def is_set(self) -> bool:
        """Whether there is a token at all."""
        return bool(self._token)

    def check(self, header: bytes | None) -> None:
        """Of a request's `authorization`. Raises Unauthorized without a bearer token, Forbidden with a wrong one.

        Compared in constant time.
        """
        scheme, _, sent = (header or b"").partition(b" ")
        if scheme.lower() != b"bearer" or not sent.strip():
            expected = f"Authorization: Bearer <{self._setting}>"
            raise Unauthorized("authorization", got="no bearer token", expected=expected)
        if not self._token:
            expected = f"a gateway with {self._setting} set: this one has none"
            raise Forbidden("authorization", got="a token", expected=expected)
        if not hmac.compare_digest(sent.strip(), self._token):
            raise Forbidden("authorization", got="another token", expected=f"the gateway's {self._setting}")

    def allows(self, header: bytes | None) -> bool:
        """Whether `check` passes."""
        try:
            self.check(header)
        except (Unauthorized, Forbidden):
            return False
        return True


class ClientAccess(Bearer):
    """Of predictions, labels and KPIs: without a token set, everyone may ask."""

    def check(self, header: bytes | None) -> None:
        """As a bearer's, where a token is set."""
        if self.is_set:
            super().check(header)

    def allows_any_of(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Whether HTTP headers (names in lower case) hold what `check` asks for."""
        if not self.is_set:
            return True
        return self.allows(next((value for name, value in headers if name == b"authorization"), None))
