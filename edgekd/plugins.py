"""What other packages add: backends, objectives and tasks, announced as entry points."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib import metadata

BACKENDS, OBJECTIVES, TASKS = "edgekd.backends", "edgekd.objectives", "edgekd.tasks"


@cache
def found(group: str) -> dict[str, metadata.EntryPoint]:
    """Return what is announced in a group, by name."""
    return {point.name: point for point in metadata.entry_points(group=group)}


def versions(group: str, names: Iterable[str]) -> list[str]:
    """Return `PACKAGE VERSION` for each of the names that another package adds: stages are made again with another version."""
    points = found(group)
    return [f"{dist.name} {dist.version}" for name in names if name in points and (dist := points[name].dist)]
