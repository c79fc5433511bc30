"""The one error family of Slipway.

An error names the thing, what was got, what was expected and what to do next.
`TransientError` may be retried as it stands; `TerminalError` may not.
"""

from __future__ import annotations


class SlipwayError(Exception):
    """Base of every error Slipway raises on purpose.

    Parameters are kept as fields, so that a caller can act on them and a log can show them:
    `what` (the thing), `got`, `expected`, `hint` (what to do next).
    """

    retryable = False

    def __init__(self, what: str, *, got: object = None, expected: object = None, hint: str = "") -> None:
        self.what = what
        self.got = got
        self.expected = expected
        self.hint = hint
        parts = [what]
        if got is not None:
            parts.append(f"got {got!s}")
        if expected is not None:
            parts.append(f"expected {expected!s}")
        text = "; ".join(parts)
        super().__init__(f"{text}. {hint}" if hint else text)


class TransientError(SlipwayError):
    """The same call may succeed later: a lock, a server that is starting, a network fault."""

    retryable = True


class TerminalError(SlipwayError):
    """The same call will fail again: something has to be changed first."""


class ContractError(TerminalError):
    """A value does not follow a published contract (event, route, release, protocol)."""


class SpecError(TerminalError):
    """A spec file is wrong. `str()` starts with `file:line:`."""


class DataError(TerminalError):
    """Rows do not follow their dataset's contract beyond the declared threshold."""


class StaleDecisionError(TerminalError):
    """A task carries a (rollout, stage, decision) that is not current; it must do nothing."""


class NotFoundError(TerminalError):
    """The named thing does not exist; the message lists near names."""


class NotYetError(NotFoundError):
    """The named thing is made by another job that has not done so yet: in a new installation all begin at once."""

    retryable = True
