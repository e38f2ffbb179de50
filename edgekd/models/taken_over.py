"""A student that starts from its teacher: some of its layers, in any order, and all that is outside them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..errors import BadInput
from ..progress import say
from .factorised import product
from .loaded import LoadedModel

_ATTENDS = ("sliding_window", "local_attention")
"""What a layer of transformers may look at, which its place decides in some architectures."""


def take_over(net: Any, teacher: LoadedModel | None, layers: Sequence[int], tokenizer: Any, role: str) -> None:
    """Copy the named layers of the teacher, in this order, and everything outside the layers. Raises BadInput.

    tokenizer: the student's. Where it is not the teacher's, a token starts from what the teacher has for the same token.
    """
    if teacher is None:
        raise BadInput(f"{role}.teacher_layers: there is no teacher to take layers from: add `teacher: {{model: ...}}`")
    other: Any = teacher.module.net
    mine, theirs = (_layers_of(one) for one in (net, other))
    if mine is None or theirs is None:
        raise BadInput(f"{role}.teacher_layers: {type(net).__name__} has no single stack of layers to choose from")
    (prefix, stack), (other_prefix, other_stack) = mine, theirs
    if wrong := [number for number in layers if number >= len(other_stack)]:
        raise BadInput(f"{role}.teacher_layers: the teacher has layers 0 to {len(other_stack) - 1}, no {wrong[0]}")
    if len(stack) != len(layers):
        raise BadInput(
            f"{role}.teacher_layers: {len(layers)} layers for a student of {len(stack)}; leave num_hidden_layers out"
        )
    state = {name: value for name, value in other.state_dict().items() if not name.startswith(f"{other_prefix}.")}
    state |= product(other)
    for number, layer in enumerate(layers):
        state |= {f"{prefix}.{number}.{name}": value for name, value in other_stack[layer].state_dict().items()}
    wanted = net.state_dict()
    if teacher.tokenizer is not None and teacher.tokenizer.get_vocab() != tokenizer.get_vocab():
        _rows_by_token(state, wanted, net, teacher.tokenizer.get_vocab(), tokenizer.get_vocab(), role)
    _check(state, wanted, f"{prefix}.", role)
    net.load_state_dict({name: copy.deepcopy(state[name]) for name in wanted})
    for number, layer in enumerate(layers):
        if told := _attends_otherwise(stack[number], other_stack[layer]):
            say(f"[yellow]{role}.teacher_layers: the teacher's layer {layer} is layer {number} of the student, and {told}[/]")


def _rows_by_token(
    state: dict[str, torch.Tensor],
    wanted: dict[str, torch.Tensor],
    net: Any,
    theirs: dict[str, int],
    mine: dict[str, int],
    role: str,
) -> None:
    """Put the teacher's rows of token embeddings and output layer, in `state`, where the student has the same tokens."""
    tables = [table for table in (net.get_input_embeddings(), net.get_output_embeddings()) if table is not None]
    weights = {id(parameter) for table in tables for parameter in table.parameters()}
    names = [name for name, parameter in net.named_parameters(remove_duplicate=False) if id(parameter) in weights]
    both = [token for token in mine if token in theirs]
    for name in names:
        if name not in state or state[name].shape[1:] != wanted[name].shape[1:]:
            continue
        old, rows = state[name], wanted[name].clone()
        pairs = [(mine[token], theirs[token]) for token in both if mine[token] < len(rows) and theirs[token] < len(old)]
        rows[[to for to, _ in pairs]] = old[[of for _, of in pairs]]
        state[name] = rows
    say(
        f"{role}: its tokenizer is not the teacher's: {len(both)} of {len(mine)} tokens start from what the teacher has for them, the "
        "others untrained"
    )


def _check(state: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], stack: str, role: str) -> None:
    """Raise BadInput where the teacher's weights are not those that the student has. stack: what names of its layers begin with."""
    if unlike := [name for name in wanted if name not in state or state[name].shape != wanted[name].shape]:
        found = tuple(state[unlike[0]].shape) if unlike[0] in state else "nothing"
        raise BadInput(
            f"{role}.teacher_layers: the student's `{unlike[0]}` is {tuple(wanted[unlike[0]].shape)}, and the teacher has {found} "
            f"there: only models of the same kind and width share layers; leave teacher_layers out, or change `arguments`"
        )
    if left := [name for name in state if name.startswith(stack) and name not in wanted]:
        raise BadInput(
            f"{role}.teacher_layers: the teacher has `{left[0]}`, and the student nothing there: its layer at that place is of another "
            "kind; begin with layer 0"
        )


def _attends_otherwise(mine: nn.Module, theirs: nn.Module) -> str | None:
    """Say that a layer looks at other places of a text than the one that it was taken from; None where it does not."""
    for one, other in zip(mine.modules(), theirs.modules(), strict=False):
        for name in _ATTENDS:
            if (now := getattr(one, name, None)) != (before := getattr(other, name, None)):
                return f"its {name}, which goes by the place, is {now} there and was {before}"
    return None


def _layers_of(net: Any) -> tuple[str, nn.ModuleList] | None:
    """Return name and content of the model's stack of layers; None where it has none or several."""
    count = getattr(getattr(net, "config", None), "num_hidden_layers", None)
    found = [(name, m) for name, m in net.named_modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    outer = [(name, m) for name, m in found if not any(name.startswith(f"{other}.") for other, _ in found)]
    return outer[0] if len(outer) == 1 else None
