"""What schedule.run, run here, says of this machine although another one was timed: taken out, for what that one says of itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def elsewhere(
    told: dict[str, Any], around: Mapping[str, Any], why_no_energy: str, watched: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Change schedule.run's answer in place. around: what is known of the other machine, see bench/environment.py; all else of it
    becomes None. watched: its points in a sustained run; none: only that time went by."""
    told["around"] = {**dict.fromkeys(told["around"]), "load_average": [None, None], "temperature_c": [None, None], **around}
    told["watched"] = list(watched) or [
        {**dict.fromkeys(look), "label": look["label"], "at_s": look["at_s"]} for look in told["watched"]
    ]
    told["energy"] = {**dict.fromkeys(told["energy"]), "why": f"not available here: {why_no_energy}"}
    for one in told["timed"]:
        for block in one["blocks"]:
            block["joules"] = None
