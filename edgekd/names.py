"""Did you mean: the nearest known name for a misspelt one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """Return " (did you mean `X`?)" for the nearest of `known`, or an empty string when none is near.

    >>> nearest("epoch", ["epochs", "seed"])
    ' (did you mean `epochs`?)'
    """
    found = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    if not found:
        return ""
    # of equally near ones, the first letter is the one people get right
    best = max(found, key=lambda k: (difflib.SequenceMatcher(None, name, k).ratio(), k[:1] == name[:1]))
    return f" (did you mean `{best}`?)"
