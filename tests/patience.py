"""For tests that hold durations against each other on a machine that others use too."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

ATTEMPTS = 5


def patient(test: Callable[..., None]) -> Callable[..., None]:
    """Let a test fail a few times: what is broken fails always, what was disturbed does not."""

    @functools.wraps(test)
    def attempts(*args: Any, **fixtures: Any) -> None:
        for number in range(ATTEMPTS):
            try:
                return test(*args, **fixtures)
            except AssertionError:
                if number == ATTEMPTS - 1:
                    raise
        return None

    return attempts
