"""Where a step's teacher outputs come from: nowhere, the cache, or the teacher itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from .. import recipe
from ..errors import BadInput
from . import teacher_cache
from .memory_format import channels_last, contiguous
from .objectives import Objective
from .taps import Taps

if TYPE_CHECKING:
    from ..data import Split
    from ..models import LoadedModel
    from ..tasks import Task

Tensors = dict[str, torch.Tensor]


class Teacher(Protocol):
    """Gives the outputs (the task's, layers by name) for a batch."""

    def view(self, epoch: int) -> int:
        """Return which view (seeded augmentation) of the samples the student is to see in that epoch."""

    def __call__(self, view: int, positions: np.ndarray, batch: Tensors) -> Tensors:
        """Return the outputs for the samples at those positions of the training split; batch: the same, in that view."""

    def example(self) -> Tensors:
        """Return tensors shaped as the outputs for two samples."""

    def close(self) -> None:
        """Let go of the teacher."""


def of(
    goals: Sequence[Objective], teacher: LoadedModel | None, train: Split, task: Task, settings: recipe.Training, seed: int,
    cache: Path, accelerator: Accelerator, device: torch.device,
) -> Teacher:  # fmt: skip
    """Return the teacher that the objectives and settings ask for; the first process makes the cache where it is not there."""
    outputs = teacher_cache.wanted_outputs(goals)
    if not outputs:
        return NoTeacher()
    if teacher is None:
        raise BadInput(
            f"objective `{next(g.name for g in goals if g.needs_teacher)}` needs a teacher: add `teacher: {{model: ...}}`"
        )
    if not isinstance(settings, recipe.Distill) or settings.teacher == "live":
        return LiveTeacher(teacher, task, train, outputs, device, accelerator.autocast)
    key = teacher_cache.key(teacher, train, settings, seed, outputs)
    if accelerator.is_main_process:
        teacher_cache.build(teacher, train, task, settings, cache, key, device=device)
        teacher.module.cpu()
    if accelerator.num_processes > 1:
        cache = Path(broadcast_object_list([str(cache)])[0])
    return CachedTeacher(teacher_cache.open(cache, key, verify=False), device)


class NoTeacher:
    """Supervised training."""

    def view(self, epoch: int) -> int:
        return epoch

    def __call__(self, view: int, positions: np.ndarray, batch: Tensors) -> Tensors:
        return {}

    def example(self) -> Tensors:
        return {}

    def close(self) -> None:
        pass


class CachedTeacher:
    """Outputs computed before, read through memory mapping."""

    def __init__(self, cache: teacher_cache.Cache, device: torch.device) -> None:
        self.cache, self.device = cache, device

    def view(self, epoch: int) -> int:
        return epoch % len(self.cache.views)

    def __call__(self, view: int, positions: np.ndarray, batch: Tensors) -> Tensors:
        return self.cache.read(view, positions, self.device)

    def example(self) -> Tensors:
        return {name: torch.zeros(2, *shape) for name, shape in self.cache.shapes().items()}

    def close(self) -> None:
        pass


class LiveTeacher:
    """The teacher itself, on the same augmented samples as the student.

    autocast: makes the context of its forward pass, which is the student's: mixed precision, where that is asked for. What comes
    out is float32 all the same.
    """

    def __init__(
        self, teacher: LoadedModel, task: Task, train: Split, outputs: Sequence[str], device: torch.device,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:  # fmt: skip
        self.autocast = autocast
        self.module = teacher.module.to(device).eval().requires_grad_(False)
        self.task = task
        self.two = {name: torch.from_numpy(values).to(device) for name, values in train.take(np.arange(2)).items()}
        channels_last(self.module, lambda: task.forward(self.module, self.two))
        self.taps = Taps(teacher.module, [name for name in outputs if name not in task.outputs], "teacher")

    def view(self, epoch: int) -> int:
        return epoch

    def __call__(self, view: int, positions: np.ndarray, batch: Tensors) -> Tensors:
        # Without gradients, yet no inference_mode(): its tensors must not take part in the student's graph.
        with torch.no_grad(), self.autocast():
            outputs = {**self.task.forward(self.module, batch), **self.taps.outputs}
        return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in outputs.items()}

    def example(self) -> Tensors:
        return {name: tensor.cpu() for name, tensor in self(0, np.arange(2), self.two).items()}

    def close(self) -> None:
        self.taps.close()
        contiguous(self.module.cpu())
