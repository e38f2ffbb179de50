"""LoRA: the weights stay, low-rank adapters beside them learn, and are merged at full precision (Hu et al. 2022, arXiv:2106.09685).

A layer with weights W gives W x + (alpha / rank) B A x; A (rank, inputs) starts at random, B (outputs, rank) at zero, so the first
step starts from the model as it was. Merged, its weights are W + (alpha / rank) B A, and nothing of the adapters is left in the
graph. peft makes the layers; the training is the one of every student, with the same objectives, checkpoints and resuming.

Where it is asked for:
- `distill.lora`, `train.lora`: the student learns by adapters, and what comes out is the merged student.
- A variant `[lora, quantized-distillation]` (also before `differentiable`, both, or `round-to-nearest`): adapters learn beside a copy
  of the finished student, still in full precision. They are merged, the merged weights are quantized, and the quantized student learns
  from the unmerged model: its teacher is the very function that it is to be rounded from, not another network. Adapters come first in
  a chain, never after a rounding (adapter_base.py says why).
- `teacher.adapter`, `student.adapter`: a finished adapter, of peft or of ours, is merged when the model is loaded (models/adapters.py).

That the merged model is the unmerged one is measured, twice: on a few samples before anything is trained, with adapters of random
numbers, which finds a layer whose weights are read past the adapter (torch's own MultiheadAttention, shared weights); and on the
validation samples after, with what was learnt. Above TOLERANCE it is refused; the number stands in history.json and the report.
"""

from __future__ import annotations

import copy
import fnmatch
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..distributed import is_main_process
from ..errors import BadInput
from ..names import nearest

if TYPE_CHECKING:
    from ..data import Splits
    from ..models import LoadedModel
    from ..recipe import Lora
    from ..tasks import Task

TOLERANCE = 1e-4
"""Largest difference between merged and unmerged outputs, relative to the largest output."""
SAMPLES = 256
"""Validation samples that they are compared on."""

KINDS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)
"""Layers that take an adapter when they are named; linear ones do without being named."""


@dataclass(frozen=True)
class Adapters:
    """Adapters in a network. names: their layers. before: what was trainable before them. base: hash of the weights beside them."""

    config: Lora
    where: str
    names: list[str]
    base: str
    before: list[tuple[nn.Parameter, bool]] = field(repr=False)
    hooks: list[Any] = field(repr=False)


def check(net: nn.Module, config: Lora, where: str) -> None:
    """Check that the network has the layers that adapters are to go to. Raises BadInput. where: in the recipe, for messages."""
    from ..models import adapters

    targets(adapters.core(net), config, where)


def attach(model: LoadedModel, config: Lora, task: Task, splits: Splits, seed: int, where: str) -> Adapters:
    """Put adapters into the model's network and freeze all else but `config.train`. Raises BadInput for layers that take none.

    BatchNorm keeps its statistics, as the weights beside it keep theirs.
    """
    from ..distill.keys import weights_hash
    from ..models import adapters

    net = adapters.core(model.module.net)
    names = targets(net, config, where)
    base, before = weights_hash(net), [(p, p.requires_grad) for p in net.parameters()]
    peft = adapters.peft_here(where)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of weights that could be tied: targets() has refused those that are
        torch.manual_seed(seed)
        peft.LoraModel(net, adapters.settings(config, names), adapters.NAME)
    for name in config.train:
        net.get_submodule(name).requires_grad_(True)
    norms = [m for m in net.modules() if isinstance(m, _BatchNorm) and not any(p.requires_grad for p in m.parameters())]
    made = Adapters(config, where, names, base, before, [norm.register_forward_pre_hook(_stays) for norm in norms])
    _rehearse(model, made, task, splits, seed)
    return made


def merge(model: LoadedModel, made: Adapters, task: Task, splits: Splits, folder: Path | None = None) -> dict[str, Any]:
    """Merge the adapters into the weights, in place; return what the report tells. The network is as it was before attach().

    folder: gets the adapters in peft's own format. Raises BadInput where the merged model is not the unmerged one.
    """
    from ..models import adapters

    net = adapters.core(model.module.net)
    for hook in made.hooks:
        hook.remove()
    if folder is not None and is_main_process():
        adapters.save_adapters(net, made.config, made.names, model.reference, made.base, folder)
    learnt = sum(p.numel() for p in net.parameters() if p.requires_grad)
    unmerged = _outputs(model, task, splits, SAMPLES)
    _merge(net)
    for parameter, trainable in made.before:
        parameter.requires_grad_(trainable)
    difference = _difference(unmerged, _outputs(model, task, splits, SAMPLES))
    if not difference < TOLERANCE:
        raise BadInput(
            f"{made.where}: the merged student's outputs differ by {difference:.1e} of the largest from those with adapters, and "
            f"may by {TOLERANCE:g}: what the adapters learnt is far larger than the weights. Lower the learning rate, or alpha"
        )
    return {
        "rank": made.config.rank,
        "alpha": made.config.alpha,
        "dropout": made.config.dropout,
        "layers": len(made.names),
        "trained": learnt,
        "parameters": sum(p.numel() for p in net.parameters()),
        "max_relative_difference": difference,
    }


def targets(net: nn.Module, config: Lora, where: str) -> list[str]:
    """Return the names of the layers that adapters go to. Raises BadInput for a name that means none.

    Without `config.targets`: the linear layers inside numbered blocks (`blocks.0.attn.qkv`), which are those of attention and MLP, and
    not a classifier, a pooler or the output over a vocabulary. A name means the layers that it names or ends the name of (`q_proj`,
    `attn.qkv`, with * and ?), or the linear layers of a module around them (`blocks.0`).
    """
    modules = dict(net.named_modules())
    _refuse_quantized(net, where)
    if unknown := [name for name in config.train if name not in modules or not name]:
        raise BadInput(f"{where}.train: no module of the model is called `{unknown[0]}`{nearest(unknown[0], _called(modules))}")
    if both := _shared_outside(net, config.train):
        raise BadInput(
            f"{where}.train: `{both[0]}` shares its weights with `{both[1]}`, which would learn with it and not be kept as the adapter's: "
            "name both, or neither"
        )
    whole = {name for name in modules if any(_inside(name, module) for module in config.train)}
    linear, others, shared = _candidates(net)
    free = {name for name in linear if name not in whole and name not in shared}
    if config.targets is None:
        if not (found := [name for name in linear if name in free and any(p.isdigit() for p in name.split(".")[:-1])]):
            there = f"; there are {_some(linear)}" if linear else ""
            raise BadInput(
                f"{where}: the model has no linear layers in numbered blocks, which adapters go to: name layers in `targets`{there}"
            )
        return found
    chosen: set[str] = set()
    for target in config.targets:
        named = {name for name in (*linear, *others) if _called_so(name, target)}
        if wrong := sorted(named & shared.keys()):
            raise BadInput(
                f"{where}.targets: `{wrong[0]}` shares its weights with `{shared[wrong[0]]}`: merged, an adapter of the one would "
                "change the other; leave it out"
            )
        if wrong := sorted(named & whole):
            raise BadInput(f"{where}.targets: `{wrong[0]}` is in `train` too, which trains it whole; leave one of the two out")
        if not named:
            named = {name for name in free if any(_called_so(outer, target) for outer in _around(name))}
        if not named:
            known = [*dict.fromkeys(name.rpartition(".")[2] for name in (*linear, *others)), *linear, *others]
            raise BadInput(
                f"{where}.targets: no layer that takes an adapter is called `{target}`{nearest(target, known)}. There are {_some(known)}"
            )
        chosen |= named
    return [name for name in modules if name in chosen]


def _candidates(net: nn.Module) -> tuple[list[str], list[str], dict[str, str]]:
    """Return linear layers, others that take an adapter, and of both those that share weights: name -> who else has them."""
    from ..models import adapters
    from ..models.transformers_model import transformers_here

    transformers_here()
    from transformers.pytorch_utils import Conv1D  # a linear layer with its weights the other way round, as in GPT-2

    inside = {
        f"{name}.{child}"
        for name, m in net.named_modules()
        if isinstance(m, nn.MultiheadAttention)
        for child, _ in m.named_modules()
    }  # which reads the weights of its layers past them
    layers = {
        name: m
        for name, m in net.named_modules()
        if isinstance(m, (nn.Linear, Conv1D, *KINDS)) and name not in inside and m._parameters.get("weight") is not None
    }
    owners = adapters.owners(net)
    shared = {}
    for name, layer in layers.items():
        if rest := [owner for owner in owners[id(layer.weight)] if owner != f"{name}.weight"]:
            shared[name] = rest[0].rpartition(".")[0]
    linear = [name for name, m in layers.items() if not isinstance(m, KINDS)]
    return linear, [name for name, m in layers.items() if isinstance(m, KINDS)], shared


def _shared_outside(net: nn.Module, train: Sequence[str]) -> tuple[str, str] | None:
    """Return a module to be trained whole that shares weights with a layer that is not, and that layer; None where there is none."""
    from ..models import adapters

    for names in adapters.owners(net).values():
        inside = [module for module in train for name in names if _inside(name, module)]
        outside = [name for name in names if not any(_inside(name, module) for module in train)]
        if inside and outside:
            return inside[0], outside[0].rpartition(".")[0]
    return None


def _refuse_quantized(net: nn.Module, where: str) -> None:
    """Refuse weights that are stored in few bits. Those of a variant's folder are plain numbers: the plan has refused them."""
    from . import adapter_base, fake

    of_transformers = getattr(getattr(net, "config", None), "quantization_config", None) is not None
    whole_numbers = any(not p.is_floating_point() for p in net.parameters())
    if of_transformers or whole_numbers or next(iter(fake.quantized(net)), None) is not None:
        raise BadInput(
            f"{where}: the model's weights are quantized, and adapters are not merged into those: {adapter_base.WHY}"
        )


def _merge(net: nn.Module) -> None:
    """Put W + (alpha / rank) B A in the place of each layer with an adapter."""
    from peft.tuners.lora import LoraLayer

    for name, layer in [(name, m) for name, m in net.named_modules() if isinstance(m, LoraLayer)]:
        layer.merge(safe_merge=True)
        parent, _, child = name.rpartition(".")
        setattr(net.get_submodule(parent), child, layer.get_base_layer())
    del net.peft_config


def _rehearse(model: LoadedModel, made: Adapters, task: Task, splits: Splits, seed: int) -> None:
    """Merge a copy with random adapters: layers whose weights are read past the adapter show now, not after the training."""
    from ..models import adapters

    trial = replace(model, module=copy.deepcopy(model.module))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for name, values in trial.module.net.named_parameters():
            if ".lora_" in name and not values.any():
                values.normal_(std=0.02)
    unmerged = _outputs(trial, task, splits, 8)
    _merge(adapters.core(trial.module.net))
    difference = _difference(unmerged, _outputs(trial, task, splits, 8))
    if not difference < TOLERANCE:
        raise BadInput(
            f"{made.where}: with its adapters merged the model gives other outputs (by {difference:.1e} of the largest): it reads the "
            f"weights of some of these layers past them: {_some(made.names)}. Name the layers that it calls in `targets`"
        )


def _outputs(model: LoadedModel, task: Task, splits: Splits, samples: int) -> dict[str, np.ndarray]:
    """Return what the task keeps of an evaluation on the first validation samples."""
    from ..export.graph import torch_runner

    split = splits.validation.at(np.arange(min(samples, len(splits.validation))))
    made = task.evaluate(torch_runner(task.graphs(model, splits)), split).outputs
    return {name: values for name, values in made.items() if values.dtype.kind == "f"}


def _difference(unmerged: dict[str, np.ndarray], merged: dict[str, np.ndarray]) -> float:
    from ..parity import compare

    return compare(unmerged, merged).relative


def _stays(norm: nn.Module, _: Any) -> None:
    norm.training = False


def _called_so(name: str, target: str) -> bool:
    """Say whether a target is a layer's name, or the end of it."""
    return fnmatch.fnmatchcase(name, target) or fnmatch.fnmatchcase(name, f"*.{target}")


def _around(name: str) -> Iterable[str]:
    parts = name.split(".")
    return (".".join(parts[:n]) for n in range(1, len(parts)))


def _inside(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def _called(modules: Iterable[str]) -> list[str]:
    return [name for name in modules if name]


def _some(names: Sequence[str]) -> str:
    return f"{', '.join(names[:8])}{' ...' if len(names) > 8 else ''}"
