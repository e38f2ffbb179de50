"""How many threads a runtime gets on a device. The standard library alone: it travels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import BadInput

MOST_THREADS = 4
"""Threads on each usable core at most."""


def threads_on(host: Mapping[str, Any], asked: int | None) -> int:
    """Return the threads for a device that environment.describe() calls `host`. BadInput for many times its cores: they would wait."""
    cores = host["cores"]
    if asked and asked > MOST_THREADS * cores:
        raise BadInput(
            f"bench.threads: {asked} threads on {cores} usable cores; give at most {MOST_THREADS * cores}, "
            "or leave it out for one a core"
        )
    return int(asked or host.get("physical_cores") or cores)
