"""A training step of a distilled student, and the same with quantized weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgekd import models, recipe
from edgekd.distill import objectives
from edgekd.distill.optimization import optimizer_of
from edgekd.distill.trainee import Trainee
from edgekd.quantize import fake
from edgekd.quantize.buckets import bucket_size
from edgekd.quantize.codebook import Codebook
from edgekd.quantize.layers import weights_of
from edgekd.quantize.learned_scale import LearnedScale
from edgekd.quantize.uniform import MinMax
from edgekd.tasks import task_of

BATCH, GROUP, BITS = 128, 256, 4
KINDS = {
    "plain": "distilled, full precision",
    "qd": "quantized distillation, 4 bits, groups of 256",
    "learned": "the same with learned ranges",
    "dq": "differentiable quantization, 16 points, weights frozen",
}
HERE = Path(__file__).parent
STUDENTS: dict[str, dict[str, Any]] = {
    "resnet20": {"model": f"py:{HERE.parent / 'distill_speed' / 'pair.py'}:resnet20"},
    "cnn-0.3M": {"model": f"py:{HERE.parent / 'polino' / 'networks.py'}:student", "arguments": {"name": "0.3M"}},
}


def make(student: str, kind: str, device: str) -> tuple[Callable[[], None], int]:
    """Return one training step, and the student's parameters.

    The step is the trainer's: the same module (preprocessing, student, objectives, channels-last weights), optimizer and loss, the
    teacher's logits at hand as its cache gives them.
    """
    torch.manual_seed(0)
    preprocess = recipe.Preprocess(mean=(0.5,) * 3, std=(0.25,) * 3)
    loaded = models.load(
        recipe.Model(**STUDENTS[student]), role="student", num_classes=10, image_shape=(32, 32, 3), shared=preprocess, seed=0,
        need_weights=False,
    )  # fmt: skip
    _attach(loaded.module.net, kind)
    batch = {"image": torch.randint(0, 256, (BATCH, 32, 32, 3), dtype=torch.uint8), "label": torch.randint(0, 10, (BATCH,))}
    taught = {"logits": torch.randn(BATCH, 10)}
    settings = recipe.Distill.model_validate(
        {
            "batch_size": BATCH, "optimizer": "sgd", "learning_rate": 1e-4, "momentum": 0.9,
            "objectives": [
                {"kind": "logits", "divergence": "kl", "temperature": 2, "weight": 0.7},
                {"kind": "task", "weight": 0.3},
            ],
        }
    )  # fmt: skip
    two = [{name: tensor[:2] for name, tensor in of.items()} for of in (batch, taught)]
    goals = objectives.resolve(settings.objectives)
    trainee = Trainee(loaded, task_of("image-classification"), goals, settings, 0, *two).to(device).train()
    optimizer = optimizer_of(trainee, settings)
    batch, taught = ({name: tensor.to(device) for name, tensor in of.items()} for of in (batch, taught))

    def step() -> None:
        total, _ = trainee(batch, taught)
        total.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device != "cpu":
            torch.cuda.synchronize()

    return step, loaded.parameters


def _attach(net: nn.Module, kind: str) -> None:
    if kind == "plain":
        return
    weights = {name: net.get_parameter(name) for name in weights_of(net)}
    sizes = {name: bucket_size(tuple(w.shape), "group", GROUP) for name, w in weights.items()}
    if kind == "dq":
        net.requires_grad_(False)  # the points alone are trained
    quantizers: dict[str, Callable[[int, torch.Tensor], nn.Module]] = {
        "qd": lambda size, w: MinMax(size, BITS),
        "learned": lambda size, w: LearnedScale(size, BITS, w),
        "dq": lambda size, w: Codebook(size, 1 << BITS, w),
    }
    fake.attach(net, {name: quantizers[kind](sizes[name], w) for name, w in weights.items()})
