"""Generation: the first token, each token after it, and the rates, of what was timed generating."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .formats import DASH, duration, number, throughput

COUNTS = {"prompt_tokens": "in", "new_tokens": "out"}


def row(m: Mapping[str, Any], name: str, colour: int) -> dict[str, Any] | None:
    """Return a measurement as a row of the table of generation; None where nothing was generated."""
    made = m.get("generation")
    if not made:
        return None
    counts = [f"{number(made[key])} {what}" for key, what in COUNTS.items() if made.get(key) is not None]
    return {
        "artifact": name,
        "colour": colour,
        "tokens": ", ".join(counts) or DASH,
        "encode": median(made.get("encode")) if made.get("encode") else None,
        "ttft": median(made.get("ttft")),
        "per_token": median(made.get("per_token")),
        "rate": throughput(made.get("tokens_per_s")),
        "prefill": throughput(made.get("prefill_per_s")),
    }


def median(summary: Mapping[str, Any] | None) -> tuple[str, str | None]:
    """Return a median and its interval, as text."""
    summary = summary or {}
    low, high = summary.get("median_low_s"), summary.get("median_high_s")
    interval = f"{duration(low)} to {duration(high)}" if low is not None and high is not None else None
    return duration(summary.get("median_s")), interval
