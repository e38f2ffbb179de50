"""Did you mean: the nearest known name for a misspelt one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """Return " (did you mean `X`?)" for the nearest of `known`, or an empty string when none is near or it is the name itself.

    >>> nearest("epoch", ["epochs", "seed"])
    ' (did you mean `epochs`?)'
    >>> nearest("WebGPU", ["wasm", "webgpu"])
    ' (did you mean `webgpu`?)'
    >>> nearest("digits", ["digits"])
    ''
    """
    near = {k: difflib.SequenceMatcher(None, name.lower(), k.lower()).ratio() for k in known}
    # of equally near ones, the first letter is the one people get right
    best = max(near, key=lambda k: (near[k], k[:1] == name[:1]), default=None)
    return f" (did you mean `{best}`?)" if best not in (None, name) and near[best] >= 0.6 else ""
