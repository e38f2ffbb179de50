"""What other packages add: backends, objectives and tasks, announced as entry points."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib import metadata
from typing import Any

from .errors import Missing

BACKENDS, OBJECTIVES, TASKS = "edgekd.backends", "edgekd.objectives", "edgekd.tasks"


@cache
def found(group: str) -> dict[str, metadata.EntryPoint]:
    """Return what is announced in a group, by name."""
    return {point.name: point for point in metadata.entry_points(group=group)}


def load(group: str, name: str) -> Any:
    """Import what another package announces. Raises KeyError where none does, Missing where it cannot be imported."""
    point = found(group)[name]
    try:
        return point.load()
    except Exception as error:  # it is their code
        by = ", ".join(versions(group, [name]))
        raise Missing(
            f"{by} announces `{name}` for {group}, but `{point.value}` cannot be imported ({error!r}): mend or uninstall it"
        ) from error


def versions(group: str, names: Iterable[str]) -> list[str]:
    """Return `PACKAGE VERSION` for each of the names that another package adds: stages are made again with another version."""
    points = found(group)
    return [f"{dist.name} {dist.version}" for name in names if name in points and (dist := points[name].dist)]
