"""What the variants will weigh, before anything is made."""

from __future__ import annotations

from typing import Any

from .materials import Materials
from .plan import Plan
from .recipe import Weights


def estimate(plan: Plan) -> dict[str, Any]:
    """Return {student, teacher: {parameters, bytes}, variants: {name: bytes}} from the models as they load. Raises BadInput.

    A variant's bytes are the weights of convolutions and linear layers at the scheme's bits, their scales, and the rest in
    32 bits; the graph around them (a few KB) is not counted.
    """
    materials = Materials(plan)
    student = materials.fresh_student
    weights = [p for p in student.module.parameters() if p.ndim > 1]
    rest = sum(t.numel() for t in student.module.state_dict().values()) - sum(w.numel() for w in weights)
    found: dict[str, Any] = {
        "student": {"parameters": student.parameters, "bytes": 4 * student.parameters},
        "variants": {
            v.name: round(4 * rest + sum(_bytes(tuple(w.shape), v.weights) for w in weights)) for v in plan.recipe.quantize
        },
    }
    if plan.recipe.teacher:
        found["teacher"] = {"parameters": materials.teacher.parameters, "bytes": 4 * materials.teacher.parameters}
    return found


def _bytes(shape: tuple[int, ...], scheme: Weights | None) -> float:
    count = 1
    for size in shape:
        count *= size
    if scheme is None:
        return 4 * count
    scales = {"tensor": 1, "channel": shape[0], "group": -(-count // (scheme.group or count))}[scheme.granularity]
    return count * scheme.bits / 8 + 4 * scales
