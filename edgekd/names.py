"""Did you mean: the nearest known name for a misspelt one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """Return " (did you mean `X`?)" for the nearest of `known`, or an empty string when none is near.

    >>> nearest("epoch", ["epochs", "seed"])
    ' (did you mean `epochs`?)'
    """
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean `{found[0]}`?)" if found else ""
