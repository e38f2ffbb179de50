"""The work that everyone does: the data, the pair as edgekd's models, and the settings of the training."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pair
import torch
from torch.utils.flop_counter import FlopCounterMode

from edgekd import data, models, recipe
from edgekd.data import Split, Splits
from edgekd.errors import BadInput
from edgekd.models import LoadedModel

BATCH = 128
TEMPERATURE = 4.0
ALPHA = 0.5
OPTIMIZER = {"lr": 0.01, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
VALIDATION = 128


@dataclass(frozen=True)
class Work:
    """One pair on one set of pictures. start: the weights of the student's network before every block."""

    splits: Splits
    student: LoadedModel
    teacher: LoadedModel
    start: dict[str, torch.Tensor]
    source: str


def make(folder: Path | None, images: int, seed: int) -> Work:
    """Return the work: so many pictures of an IDX folder (Fashion-MNIST), or random ones, 32 x 32 x 3, without a folder."""
    splits, source = _splits(folder, images, seed)
    channels = splits.image_shape[2]
    preprocess = recipe.Preprocess(mean=(0.5,) * channels, std=(0.25,) * channels)
    student, teacher = (
        models.load(
            recipe.Model(model=f"py:{pair.__file__}:{role}"),
            role=role, num_classes=len(splits.classes), image_shape=splits.image_shape, shared=preprocess, seed=seed, need_weights=False,
        )
        for role in ("student", "teacher")
    )  # fmt: skip
    _settle(teacher, splits.train)
    return Work(splits, student, teacher, copy.deepcopy(student.module.net.state_dict()), source)


def settings(**distill: object) -> recipe.Training:
    """Return the settings of edgekd's trainer: supervised, or distillation where teacher="cached" or "live" is given."""
    common: dict[str, object] = {
        "batch_size": BATCH,
        "optimizer": "sgd",
        "learning_rate": OPTIMIZER["lr"],
        "momentum": OPTIMIZER["momentum"],
        "weight_decay": OPTIMIZER["weight_decay"],
        "schedule": "constant",
        "warmup": 0.0,
        **distill,
    }
    if not distill.get("teacher"):
        return recipe.Training.model_validate(common)
    goals = [
        {"kind": "logits", "divergence": "kl", "temperature": TEMPERATURE, "weight": 1 - ALPHA},
        {"kind": "task", "weight": ALPHA},
    ]
    return recipe.Distill.model_validate({**common, "objectives": goals})


def forward_flops(model: LoadedModel, splits: Splits) -> float:
    """Return the floating point operations of one picture's forward pass (a multiplication and an addition are two)."""
    picture = torch.from_numpy(splits.train.take(np.arange(1))["image"])
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.module.eval()(picture)
    return float(counter.get_total_flops())


def _splits(folder: Path | None, images: int, seed: int) -> tuple[Splits, str]:
    if folder is None:
        random = np.random.default_rng(seed)
        pictures = random.integers(0, 256, (images + VALIDATION, 32, 32, 3), dtype=np.uint8)
        labels, classes = random.integers(0, 10, len(pictures)), tuple(map(str, range(10)))
        parts = {"train": (pictures[:images], labels[:images]), "validation": (pictures[images:], labels[images:])}
        source = f"random pictures, seed {seed}"
    else:
        read = data.load(recipe.Data(source=str(folder)), None, seed)
        classes, source = read.classes, folder.name
        usable = min(images, len(read.train)) // BATCH * BATCH
        if not usable:
            raise BadInput(f"{folder}: {len(read.train)} training pictures are less than one batch of {BATCH}")
        chosen = {"train": (read.train, usable), "validation": (read.validation, min(VALIDATION, len(read.validation)))}
        taken = {name: split.take(np.arange(count)) for name, (split, count) in chosen.items()}
        parts = {name: (arrays["image"], arrays["label"]) for name, arrays in taken.items()}
    made = {name: _split(name, *arrays, classes) for name, arrays in parts.items()}
    return Splits(made["train"], made["validation"], test=made["validation"]), source


def _split(name: str, pictures: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]) -> Split:
    return Split(name, classes, f"distill_speed {name} {pictures.shape}", labels, pictures.shape[1:], pictures.__getitem__)


@torch.no_grad()
def _settle(teacher: LoadedModel, train: Split) -> None:
    """Let an untrained teacher's BatchNorm see some batches: its outputs then have the size of a trained one's."""
    teacher.module.train()
    for _ in range(2):
        teacher.module(torch.from_numpy(train.take(np.arange(BATCH))["image"]))
    teacher.module.eval()
