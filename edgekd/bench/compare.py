"""Which is faster, said plainly, and why a quantized file is not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from . import statistics
from .executed import executed
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
            reasons = _reasons(thing, found[thing.label], median, providers[thing.label], vnni, device) if seen else []
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


def _reasons(
    thing: Thing, known: GraphFacts | None, median: float, providers: Mapping[str, int], vnni: bool | None, device: str
) -> list[str]:
    """Return `why`, with what the runtime executes where this machine is the device."""
    if known is None or not known.quantized or known.weights_alone or device != "local":
        return why(known, median, providers, vnni)
    return why(known, median, providers, vnni, executed(thing, known))


def why(
    known: GraphFacts | None,
    control_seconds: float,
    providers: Mapping[str, int],
    vnni: bool | None = None,
    runs: GraphFacts | None = None,
) -> list[str]:
    """List the facts that keep a quantized file from being faster, what weighs most first; empty for a file that is not quantized.

    control_seconds: a warm call of the control. runs: what the runtime executes of the file (`executed`), where that is known.
    """
    if known is None or not known.quantized:
        return []
    if known.weights_alone:
        return ["weights alone are stored as integers, and expanded to float at every call: the arithmetic is in float"]
    told = runs or known
    reasons = []
    if told.heavy_float:
        left = "computed" if runs else "left"
        reasons.append(f"{told.heavy_float} of {told.heavy} convolutions and matrix products are {left} in float")
    if told.conversions:
        nodes = f"the {told.nodes} nodes that the runtime executes" if runs else f"the file's {told.nodes} nodes"
        merged = "" if runs else " (the runtime merges those around operators that it computes in int8)"
        reasons.append(f"{told.conversions} of {nodes} only convert between int8 and float{merged}")
    if vnni is False and told.heavy > told.heavy_float:
        # slower instructions come first where most of what is executed is sums in them
        in_integers = told.heavy - told.heavy_float
        reasons.insert(
            0 if in_integers > told.heavy_float + told.conversions else len(reasons),
            "this CPU has no VNNI or dot product instructions, so sums of int8 products take several instructions instead of one",
        )
    if control_seconds < TINY:
        reasons.append(
            f"the model is tiny ({control_seconds * 1e6:.0f} µs a call in full precision): converting outweighs the arithmetic saved"
        )
    if len(providers) > 1:
        parts = ", ".join(f"{name} {nodes}" for name, nodes in providers.items())
        reasons.append(f"the graph is split between {parts} nodes: tensors are copied between them")
    return reasons
