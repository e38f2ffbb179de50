"""Numbers that a program should not hold: NaN, infinity, and what overflows the type that it is declared to have."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ...errors import BadInput
from .program import Constant, Program
from .run import Runner, first_non_finite

_OPEN_ENDS = {("clip", "alpha"), ("clip", "beta"), ("clamped_relu", "beta")}
"""Bounds that may be infinite: nothing is computed with them."""


def bad_constants(program: Program) -> list[str]:
    """Return each constant that holds NaN or infinity, with the operation that takes it."""
    found = []
    for operation in program.operations:
        for key, given in operation.inputs.items():
            for one in given:
                constant = one if isinstance(one, Constant) else program.constants.get(one)
                what = None if constant is None or (operation.kind, key) in _OPEN_ENDS else _not_numbers(constant)
                if what:
                    called = f"constant `{one}`" if isinstance(one, str) else f"its constant `{key}`"
                    found.append(
                        f"operation {operation.name} ({operation.kind}): {called} ({constant.dtype}) holds {what}"  # type: ignore[union-attr]
                        + (": mask with -1e4, not with -inf" if "infin" in what else "")
                    )
    return found


def bad_values(program: Program, inputs: Mapping[str, np.ndarray]) -> list[str]:
    """Run one sample as a device does; return the first operation that gives NaN or infinity, if any."""
    try:
        found = first_non_finite(Runner(program, exact=False), inputs)
        if found is None:
            return []
        same = first_non_finite(Runner(program, exact=True), inputs)
    except BadInput as error:
        return [str(error)]
    overflow = same is None or same.operation != found.operation
    return [f"{found}{': the values are beyond float16, whose largest is 65504' if overflow else ''}"]


def _not_numbers(constant: Constant) -> str | None:
    if not constant.dtype.startswith("fp"):
        return None
    values = np.asarray(constant.value)
    if np.isnan(values).any():
        return "NaN"
    return "infinity" if np.isinf(values).any() else None
