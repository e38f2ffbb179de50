"""The cells of the table: what is done to a student, and how each is done. A cell is named METHOD-BITS, or METHOD alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgekd.models import LoadedModel
from edgekd.quantize import fake
from edgekd.quantize.buckets import bucket_size
from edgekd.quantize.codebook import Codebook
from edgekd.quantize.encoded import Encoded
from edgekd.quantize.layers import weights_of
from edgekd.quantize.learned_scale import LearnedScale
from edgekd.quantize.uniform import MinMax

GROUP = 256
KEEP = ("first", "last")
"""As in the paper: these two layers stay in full precision, in every cell."""


@dataclass(frozen=True)
class Step:
    """One training of a cell.

    quantizer: min-max, learned, codebook, or none: full precision, trained on as long. points: what a codebook begins with, quantiles or uniform.
    granularity: of the buckets. settings: changes to the recipe's `distill`.
    """

    quantizer: str
    bits: int
    granularity: str = "group"
    points: str = "quantiles"
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """steps: trainings, one after the other; none: the student is rounded as it is. scheme: of the rounding then."""

    name: str
    bits: int
    steps: tuple[Step, ...] = ()
    granularity: str = "group"


def controls(epochs: Mapping[str, int]) -> Iterator[Cell]:
    """Yield the student in full precision, trained on for as long as QD and qd+ train: what more epochs alone bring."""
    for name in ("qd", "qd+"):
        yield Cell(f"control-{name}", 32, (Step("none", 32, settings=qd(epochs[name])),))


def paper(epochs: Mapping[str, int]) -> Iterator[Cell]:
    """Yield the paper's cells. epochs: of `qd` and `dq`."""
    for bits in (2, 4, 8):
        yield Cell(f"pm-tensor-{bits}", bits, granularity="tensor")
        yield Cell(f"pm-bucket-{bits}", bits)
    for bits in (4, 2, 8):
        yield Cell(f"qd-{bits}", bits, (Step("min-max", bits, settings=qd(epochs["qd"])),))
    for bits in (4, 2):
        yield Cell(f"dq-{bits}", bits, (Step("codebook", bits, settings=dq(epochs["dq"])),))


def better(epochs: Mapping[str, int]) -> Iterator[Cell]:
    """Yield qd+, its parts, each added to the one before (learned, longer, qd+), and what was tried beside (channel, chain)."""
    one, more = qd(epochs["qd"]), qd(epochs["qd+"])
    for bits in (2, 4):
        learned = Step("learned", bits, settings=one)
        yield Cell(f"qd+-{bits}", bits, (replace(learned, settings={**more, "average": 0.998}),))
        yield Cell(f"learned-{bits}", bits, (learned,))
        yield Cell(f"longer-{bits}", bits, (replace(learned, settings=more),))
        yield Cell(f"channel-{bits}", bits, (replace(learned, granularity="channel"),))
        points = Step("codebook", bits, points="uniform", settings=dq(epochs["dq"]))
        yield Cell(f"chain-{bits}", bits, (Step("min-max", bits, settings=one), points))


def qd(epochs: int) -> dict[str, Any]:
    """Settings of a quantized distillation that begins with a distilled student: shorter, and gentler by half."""
    return {"epochs": epochs, "learning_rate": 0.01}


def dq(epochs: int) -> dict[str, Any]:
    """Settings of a differentiable quantization: the points live in [0, 1], whatever the tensor; Adam suits them all."""
    return {"epochs": epochs, "optimizer": "adamw", "learning_rate": 2e-3, "weight_decay": 0.0, "gradient_clip": None}


def make(
    cell: Cell, student: LoadedModel, train: Callable[[LoadedModel, Mapping[str, Any], Path], dict[str, Any]], folder: Path
) -> tuple[LoadedModel, dict[str, Encoded], list[dict[str, Any]]]:
    """Return (the student with quantized weights, its Encoded tensors, what each training told). train: (student, changes, folder)."""
    made = replace(student, module=copy.deepcopy(student.module))
    net, told = made.module.net, []
    weights = weights_of(net, KEEP)
    for number, step in enumerate(cell.steps):
        fake.detach(net)
        state = net.state_dict()
        if step.quantizer != "none":
            fake.attach(net, {name: _quantizer(step, state[name]) for name in weights})
        if step.quantizer == "codebook":
            for name, parameter in net.named_parameters():
                parameter.requires_grad_(name.endswith(".points"))
        told.append(train(made, step.settings, folder / f"step{number}"))
        net.requires_grad_(True)
    if not cell.steps:
        state = net.state_dict()
        sizes = {name: bucket_size(tuple(state[name].shape), cell.granularity, GROUP) for name in weights}
        fake.attach(net, {name: MinMax(size, cell.bits) for name, size in sizes.items()})
    return made, fake.bake(net), told


def _quantizer(step: Step, weights: torch.Tensor) -> nn.Module:
    size = bucket_size(tuple(weights.shape), step.granularity, GROUP)
    if step.quantizer == "codebook":
        return Codebook(size, 1 << step.bits, weights, uniform=step.points == "uniform")
    return LearnedScale(size, step.bits, weights) if step.quantizer == "learned" else MinMax(size, step.bits)
