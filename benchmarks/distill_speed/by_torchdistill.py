"""torchdistill's contestant: its DistillationBox with KDLoss, as in its own image classification example.

In its favour: pictures are normalized float tensors in memory before the clock starts, losses are not logged, the optimizer is
torch's fused one, and the fastest of CHOICES is taken. The teacher is in evaluation mode, which the box leaves to its caller.
"""

from __future__ import annotations

import copy
import importlib.metadata
import importlib.util
import itertools
import logging
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from by_edgekd import Block
from torch.utils.data import RandomSampler, TensorDataset
from work import ALPHA, BATCH, OPTIMIZER, TEMPERATURE, Work, settings

from edgekd import _torchvision, recipe
from edgekd.distill import objectives
from edgekd.tasks import task_of

WANTED = "1.1.5"
INSTALL = f"pip install torchdistill=={WANTED}"


@dataclass(frozen=True)
class Choice:
    """How its user feeds it: processes that load batches, and how weights and pictures lie in memory."""

    num_workers: int
    channels_last: bool


CHOICES = [Choice(workers, last) for workers, last in itertools.product((0, 2), (False, True))]


def missing() -> str | None:
    """Return why torchdistill cannot run here and what to do, or None."""
    if importlib.util.find_spec("torchdistill") is None:
        return f"torchdistill is not installed; to compare with it: {INSTALL} (brings torchvision, scipy and cython)"
    _torchvision.ensure()
    try:
        import torchdistill.core.distillation  # noqa: F401
    except Exception as error:  # whatever its dependencies raise
        return f"torchdistill does not import ({type(error).__name__}: {error}); {INSTALL} in an environment of its own"
    return None


def version() -> str:
    """Return the installed version."""
    return importlib.metadata.version("torchdistill")


class ByTorchdistill:
    """A DistillationBox over the same student, teacher, pictures and settings."""

    def __init__(self, work: Work, choice: Choice, images: int | None = None) -> None:
        from torchdistill.core.distillation import get_distillation_box

        logging.getLogger("torchdistill").setLevel(logging.WARNING)
        self.work, self.choice = work, choice
        taken = work.splits.train.take(np.arange(min(images or len(work.splits.train), len(work.splits.train))))
        dataset = TensorDataset(_normalized(work, taken["image"]), torch.from_numpy(taken["label"]))
        self.images = len(dataset) // BATCH * BATCH
        self.student = copy.deepcopy(work.student.module.net)
        self.teacher = copy.deepcopy(work.teacher.module.net).eval()
        if choice.channels_last:
            self.student.to(memory_format=torch.channels_last)
            self.teacher.to(memory_format=torch.channels_last)
        self.box = get_distillation_box(
            self.teacher, self.student, {"train": dataset}, _config(choice), torch.device("cpu"),
            device_ids=None, distributed=False, lr_factor=1,
        )  # fmt: skip

    def block(self, epochs: int) -> Block:
        """Train from the start's weights for so many epochs; the clock covers the loop over batches alone."""
        self.student.load_state_dict(self.work.start)
        box, seconds, total = self.box, 0.0, 0.0
        whole = time.perf_counter()
        for epoch in range(epochs):
            box.pre_epoch_process(epoch=epoch)
            total, began = 0.0, time.perf_counter()
            for sample_batch, targets, supp_dict in box.train_data_loader:
                if self.choice.channels_last:
                    sample_batch = sample_batch.contiguous(memory_format=torch.channels_last)
                loss = box.forward_process(sample_batch, targets, supp_dict)
                box.post_forward_process(loss=loss)
                total += loss.item() * len(targets)
            seconds += time.perf_counter() - began
            box.post_epoch_process()
        return Block(epochs * self.images, seconds, time.perf_counter() - whole, total / self.images)

    def close(self) -> None:
        """End the loader's processes."""
        self.box.clean_modules()
        self.box.train_data_loader = None


def fastest(work: Work, images: int = 640, rounds: int = 2) -> tuple[Choice, dict[str, list[float]]]:
    """Time every choice on a few pictures, alternately; return the fastest and all images per second."""
    boxes = {choice: ByTorchdistill(work, choice, images) for choice in CHOICES}
    found: dict[Choice, list[float]] = {choice: [] for choice in CHOICES}
    for number in range(rounds + 1):
        for choice, box in boxes.items():
            block = box.block(1)
            if number:  # the first round starts the loader's processes
                found[choice].append(block.images / block.seconds)
    for box in boxes.values():
        box.close()
    best = max(CHOICES, key=lambda choice: max(found[choice]))
    return best, {" ".join(f"{k}={v}" for k, v in asdict(choice).items()): rates for choice, rates in found.items()}


def loss_difference(work: Work) -> float:
    """Return how far torchdistill's loss on one batch is from edgekd's, relative: both must do the same work."""
    box = ByTorchdistill(work, Choice(0, False), BATCH)
    batch = {name: torch.from_numpy(values) for name, values in work.splits.train.take(np.arange(BATCH)).items()}
    box.student.load_state_dict(work.start)
    box.box.pre_epoch_process(epoch=0)
    theirs = float(box.box.forward_process(_normalized(work, batch["image"].numpy()), batch["label"], {}).detach())
    box.close()
    task = task_of("image-classification")
    work.student.module.net.load_state_dict(work.start)
    chosen = settings(teacher="cached")
    assert isinstance(chosen, recipe.Distill)
    with torch.no_grad():
        outputs = task.forward(work.student.module.train(), batch), task.forward(work.teacher.module.eval(), batch)
        step = objectives.Step(*outputs, batch, task)
        goals = objectives.resolve(chosen.objectives)
        ours = sum(goal.config.weight * float(goal.module.loss(goal.config, step)) for goal in goals)
    return abs(theirs - ours) / abs(ours)


def _normalized(work: Work, pictures: np.ndarray) -> torch.Tensor:
    """Return what edgekd's models compute first: float32 (N, C, H, W), contiguous."""
    module = work.student.module
    scaled = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    return ((scaled - module.mean) / module.std).contiguous()


def _config(choice: Choice) -> dict[str, Any]:
    """Return the training configuration, in the form of torchdistill's sample configurations."""
    logits = {
        "student_module_path": ".",
        "student_module_io": "output",
        "teacher_module_path": ".",
        "teacher_module_io": "output",
    }
    kd = {"key": "KDLoss", "kwargs": {**logits, "temperature": TEMPERATURE, "alpha": ALPHA, "reduction": "batchmean"}}
    workers = {"num_workers": choice.num_workers, "persistent_workers": choice.num_workers > 0}
    return {
        "num_epochs": 1,
        "train_data_loader": {
            "dataset_id": "train",
            "sampler": {"class_or_func": RandomSampler},
            "kwargs": {"batch_size": BATCH, "drop_last": True, **workers},
        },
        "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False},
        "student": {"forward_proc": "forward_batch_only", "requires_grad": True},
        "optimizer": {"key": "SGD", "kwargs": {**OPTIMIZER, "fused": True}},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"kd": {"criterion": kd, "weight": 1.0}}}},
    }
