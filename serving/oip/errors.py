"""Refusals the gateway answers with: each knows its HTTP status."""

from __future__ import annotations

from pipelines.contracts.errors import SlipwayError

_SHOWN_CHARS = 500


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."


class Refusal(SlipwayError):
    """A request the gateway will not serve as it stands; answered as OIP `{"error": ...}` with `status`.

    A retryable one is answered with `Retry-After`.
    """

    status = 400
    headers: tuple[tuple[bytes, bytes], ...] = ()

    def __init__(self, what: str, *, got: object = None, expected: object = None, hint: str = "") -> None:
        # What a client sent is named, not sent back to it whole.
        shown = None if got is None else _shortened(str(got))
        super().__init__(_shortened(what), got=shown, expected=expected, hint=hint)


class Malformed(Refusal):
    """The body does not follow the protocol or the model's inputs."""


class Unauthorized(Refusal):
    """No bearer token was sent."""

    status = 401
    headers = ((b"www-authenticate", b"Bearer"),)


class Forbidden(Refusal):
    """The bearer token is not the right one."""

    status = 403


class Unknown(Refusal):
    """No such model, version or path; the message lists near names."""

    status = 404


class WrongMethod(Refusal):
    """The path exists with another method."""

    status = 405

    def __init__(self, *, got: str, allowed: str) -> None:
        super().__init__("method", got=got, expected=allowed)
        self.headers = ((b"allow", allowed.encode()),)


class Conflict(Refusal):
    """The state of the model does not allow this."""

    status = 409


class TooLarge(Refusal):
    """Body, batch or list is over its limit."""

    status = 413


class UnsupportedEncoding(Refusal):
    """The body is compressed in a way the gateway does not read."""

    status = 415
    headers = ((b"accept-encoding", b"gzip, deflate"),)


class Overloaded(Refusal):
    """More requests are in flight than the gateway serves at once."""

    status = 429
    retryable = True


class ModelFailed(Refusal):
    """The model could not answer: its error, not the client's."""

    status = 500


class Unavailable(Refusal):
    """Not now: the log cannot be written, the releases are not loaded yet, or a release refuses without features."""

    status = 503
    retryable = True
