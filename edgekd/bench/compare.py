"""Which is faster, said plainly, and why a quantized file is not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from . import statistics
from .things import GraphFacts, Thing

TINY = 2e-4
"""Below these seconds a call, what each call costs whatever the model is a large part of it."""


def compare(
    things: Sequence[Thing],
    samples: Mapping[str, np.ndarray],
    found: Mapping[str, GraphFacts | None],
    batch: int,
    providers: Mapping[str, Mapping[str, int]],
    one_control: bool = False,
    device: str = "local",
    vnni: bool | None = None,
    launches: Mapping[str, Sequence[int]] | None = None,
) -> list[dict[str, Any]]:
    """Compare every thing with the control of its target, from their samples (blocks, calls) in seconds.

    launches: label -> the process each block ran in.

    vnni: what the device says of itself, see host.vnni. ratio is control's time / candidate's; low and high are null where there are too few blocks for an interval.
    """
    told = []
    for target in dict.fromkeys("" if one_control else thing.target for thing in things):
        here = [thing for thing in things if one_control or thing.target == target]
        control = control_of(here, found)
        for thing in here:
            if thing is control:
                continue
            pairs = min(len(samples[control.label]), len(samples[thing.label]))
            started = launches[thing.label][:pairs] if launches else None
            result = statistics.ratio(samples[control.label][:pairs], samples[thing.label][:pairs], launches=started)
            known = not math.isinf(result.high)
            said = statistics.verdict(result, thing.variant, control.variant)
            # a reason explains what was seen: that it is slower, or no faster
            seen = (statistics.differs(result) and result.value < 1) or said.startswith("no difference")
            median = float(np.median(samples[control.label]))
            reasons = why(found[thing.label], median, providers[thing.label], vnni) if seen else []
            told.append(
                {
                    "target": thing.target,
                    "device": device,
                    "control": control.label,
                    "candidate": thing.label,
                    "batch": batch,
                    "pairs": pairs,
                    "ratio": result.value,
                    "low": result.low if known else None,
                    "high": result.high if known else None,
                    "verdict": said,
                    "why": "; ".join(reasons) or None,
                }
            )
    return told


def control_of(things: Sequence[Thing], found: Mapping[str, GraphFacts | None]) -> Thing:
    """Return what the others are compared with: the one marked, else the first in full precision, else the first."""
    for thing in things:
        if thing.control:
            return thing
    for packed in (False, True):
        for thing in things:
            known = found[thing.label]
            if known is not None and not known.quantized and known.packed == packed:
                return thing
    return things[0]


def why(known: GraphFacts | None, control_seconds: float, providers: Mapping[str, int], vnni: bool | None = None) -> list[str]:
    """List the facts that keep a quantized file from being faster; empty for a file that is not quantized.

    control_seconds: a warm call of the control.
    """
    if known is None or not known.quantized:
        return []
    if known.weights_alone:
        return ["weights alone are stored as integers, and expanded to float at every call: the arithmetic is in float"]
    reasons = []
    if vnni is False:
        reasons.append("this CPU has no VNNI or dot product instructions, so int8 arithmetic takes more steps than float")
    if known.heavy_float:
        reasons.append(f"{known.heavy_float} of {known.heavy} convolutions and matrix products are left in float")
    if known.conversions:
        reasons.append(
            f"{known.conversions} of the file's {known.nodes} nodes only convert between int8 and float "
            "(the runtime merges most of them, not all)"
        )
    if control_seconds < TINY:
        reasons.append(
            f"the model is tiny ({control_seconds * 1e6:.0f} µs a call in full precision): converting outweighs the arithmetic saved"
        )
    if len(providers) > 1:
        parts = ", ".join(f"{name} {nodes}" for name, nodes in providers.items())
        reasons.append(f"the graph is split between {parts} nodes: tensors are copied between them")
    return reasons
