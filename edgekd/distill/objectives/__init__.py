"""Distillation objectives, one idea a file; a new one is a file plus a line here (or an entry point `edgekd.objectives`).

An objective is a module (a file) with

- `loss(config, step) -> Tensor`: a scalar, mean over samples. `config` is its entry in the recipe, `step` a Step;
- `NEEDS_TEACHER`: whether it reads `step.teacher`;
- `READS`: which of the task's outputs it reads there; ("logits",) when absent;
- `layers(config) -> (student's, teacher's)`, where it reads layers: module names, found in `step.student` and
  `step.teacher`; an objective that names layers of the teacher reads the task's outputs only if they are among the names;
- `trained(config, student, teacher) -> Module | None`, where it trains something beside the student. It gets one
  sample's outputs of both, and comes back as `step.trained`.

Only `loss` and `NEEDS_TEACHER` must be there. From another package: an entry point in the group `edgekd.objectives`,
named as the recipe's `kind`, that loads such a module; its entry in the recipe may have any keys, and they are
attributes of `config`. `Options`, where the module has it, is a pydantic model that checks them.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError
from torch import nn

from ... import plugins
from ...errors import BadInput
from ...names import nearest

if TYPE_CHECKING:
    from ...tasks import Task

OBJECTIVES = {
    "logits": "edgekd.distill.objectives.logits",
    "task": "edgekd.distill.objectives.task",
    "features": "edgekd.distill.objectives.features",
    "embedding": "edgekd.distill.objectives.embedding",
    "similarities": "edgekd.distill.objectives.similarities",
}


@dataclass(frozen=True)
class Step:
    """What an objective sees in one step: outputs (the task's, and layers by name) of student and teacher, and the batch."""

    student: dict[str, torch.Tensor]
    teacher: dict[str, torch.Tensor]
    batch: dict[str, torch.Tensor]
    task: Task
    label_smoothing: float = 0.0
    trained: nn.Module | None = None


@dataclass(frozen=True)
class Objective:
    """One entry of the recipe's list beside the module that computes it. name: unique in the list, for the history."""

    name: str
    config: Any
    module: Any

    @property
    def needs_teacher(self) -> bool:
        return bool(self.module.NEEDS_TEACHER)

    @property
    def layers(self) -> tuple[list[str], list[str]]:
        """Names of the student's and the teacher's layers it reads."""
        return self.module.layers(self.config) if hasattr(self.module, "layers") else ([], [])

    @property
    def reads(self) -> list[str]:
        """Names of the teacher's outputs and layers it reads."""
        if not self.needs_teacher:
            return []
        return self.layers[1] or list(getattr(self.module, "READS", ("logits",)))


def resolve(configs: tuple[Any, ...]) -> list[Objective]:
    """Return the objectives of a recipe's list. Raises BadInput for an unknown kind or options that do not fit."""
    found: list[Objective] = []
    for config in configs:
        module = _module(config.kind)
        options = getattr(module, "Options", None)
        if options is not None:
            try:
                config = options.model_validate(config.model_dump())
            except ValidationError as error:
                raise BadInput(f"objective `{config.kind}`: {error}") from None
        layer = getattr(config, "student", None)
        name = f"{config.kind}:{layer}" if isinstance(layer, str) else config.kind
        same = sum(other.name.split("#")[0] == name for other in found)
        found.append(Objective(f"{name}#{same + 1}" if same else name, config, module))
    return found


def _module(kind: str) -> Any:
    if kind in OBJECTIVES:
        return importlib.import_module(OBJECTIVES[kind])
    known = [*OBJECTIVES, *plugins.found(plugins.OBJECTIVES)]
    if kind not in known:
        raise BadInput(f"no objective `{kind}`{nearest(kind, known)}; there are {', '.join(known)}")
    return plugins.load(plugins.OBJECTIVES, kind)
