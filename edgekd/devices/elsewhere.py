"""What schedule.run, run here, says of this machine although another one was timed: taken out, for what that one says of itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def elsewhere(
    told: Mapping[str, Any], around: Mapping[str, Any], why_no_energy: str, watched: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """Return schedule.run's answer without what it says of this machine. around: what is known of the other one, see
    bench/environment.py; all else of it becomes None. watched: its points in a sustained run; none: only that time went by."""
    unknown = {"load_average": [None, None], "temperature_c": [None, None]}
    points = list(watched) or [
        {**dict.fromkeys(look), "label": look["label"], "at_s": look["at_s"]} for look in told["watched"]
    ]
    return {
        **told,
        "around": {**dict.fromkeys(told["around"]), **unknown, **around},
        "watched": points,
        "energy": {**dict.fromkeys(told["energy"]), "why": f"not available here: {why_no_energy}"},
        "timed": [{**one, "blocks": [{**block, "joules": None} for block in one["blocks"]]} for one in told["timed"]],
    }
