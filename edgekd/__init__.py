"""edgekd: a teacher, data and the devices you ship to go in; for every device, a small model proven to run there comes out.

>>> import edgekd
>>> manifest = edgekd.compress("models/digits", out="runs/digits")  # doctest: +SKIP
>>> manifest["chosen"]["onnxruntime-cpu"]["variant"]  # doctest: +SKIP
'int8'
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_VERBS = ("compress", "train", "distill", "quantize", "export", "verify", "bench", "report")

__all__ = ["__version__", *_VERBS]


def __getattr__(name: str) -> Any:
    """Import a verb when it is first used: `import edgekd` alone stays light."""
    if name in _VERBS:
        return getattr(importlib.import_module("edgekd.verbs"), name)
    raise AttributeError(f"module 'edgekd' has no attribute {name!r}")
