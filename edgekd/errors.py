"""What can go wrong, by exit code. The CLI prints the message alone; a traceback means a bug in edgekd."""

from __future__ import annotations


class EdgekdError(Exception):
    """Base of every failure that is told in one message. `exit_code` is what the CLI exits with.

    told: what was found out nevertheless, to be shown before the message; None where that is nothing.
    """

    exit_code = 1
    told: dict[str, object] | None = None


class BadInput(EdgekdError):
    """The user's input is wrong: says what is wrong, where (file, line, key) and what to do."""

    exit_code = 2


class GateFailed(EdgekdError):
    """At least one artifact lost more than the gate allows. Everything made is kept, and marked failed."""

    exit_code = 3


class Missing(EdgekdError):
    """A backend, package or device that is needed is not here; the message says how to get it."""

    exit_code = 4


class Diverged(BadInput):
    """Training met a NaN or infinite loss; says at which epoch and step, and what to change."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
