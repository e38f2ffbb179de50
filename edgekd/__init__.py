"""edgekd: a teacher, data and the devices you ship to go in; for every device, a small model proven to run there comes out.

>>> import edgekd
>>> manifest = edgekd.compress("models/digits", out="runs/digits")  # doctest: +SKIP
>>> manifest["chosen"]["onnxruntime-cpu"]["variant"]  # doctest: +SKIP
'int8'

Every verb of the command line is a function in `edgekd.verbs`.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"

__all__ = ["__version__", "compress"]


def __getattr__(name: str) -> Any:
    """Import `compress` when it is first used: `import edgekd` alone stays light."""
    if name == "compress":
        from .verbs import compress

        return compress
    raise AttributeError(f"module 'edgekd' has no attribute {name!r}")
