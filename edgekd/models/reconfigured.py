"""A transformers configuration with a recipe's changes: its arguments, and as many layers as are taken from a teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import BadInput
from ..recipe import Model
from . import transformers_model

RANK = "embedding_rank"
"""An argument of ours beside those of a transformers configuration."""
DEPTH = "num_hidden_layers"
PER_LAYER = ("layer_types", "no_rope_layers")
"""What a configuration says of each layer, in lists that do not follow a change of its number of layers by themselves."""


def reconfigured(config: Model, name: str, role: str, teacher: Any = None) -> tuple[Any, dict[str, Any]]:
    """Return the configuration of a folder or hub id as the recipe wants it, and all arguments that were set.

    teacher: the configuration of the network whose layers are taken, where there is one. Raises BadInput for what it does not have.
    """
    wanted, layers = transformers_model.config_of(name), config.teacher_layers
    transformers_model.refuse_quantized(wanted, name, role, adapter=config.adapter is not None)
    arguments = dict(config.arguments)
    if layers is not None:
        if not hasattr(wanted, DEPTH):
            raise BadInput(f"{role}.teacher_layers: hf:{name} has no single stack of layers to choose from: leave it out")
        arguments.setdefault(DEPTH, len(layers))
    for key, value in arguments.items():
        if key == RANK:
            if not isinstance(value, int) or isinstance(value, bool):
                raise BadInput(f"{role}.arguments.{RANK}: a whole number, not {value!r}")
        elif not hasattr(wanted, key):
            raise BadInput(f"{role}.arguments: the configuration of hf:{name} has no `{key}`; it has names such as {DEPTH}")
        else:
            setattr(wanted, key, value)
    for key in PER_LAYER:
        if key not in arguments and isinstance(getattr(wanted, key, None), list):
            setattr(wanted, key, _each(wanted, key, layers, getattr(teacher, key, None)))
    return wanted, arguments


def _each(wanted: Any, key: str, layers: Sequence[int] | None, theirs: Sequence[Any] | None) -> list[Any]:
    """Return what a configuration says of each layer for as many as it has: of those taken from a teacher, what the teacher's says."""
    mine, deep = list(getattr(wanted, key)), getattr(wanted, DEPTH)
    known = mine if theirs is None else theirs
    if layers is not None and len(layers) == deep and max(layers) < len(known):
        return [known[number] for number in layers]
    if deep <= len(mine):
        return mine[:deep]
    told = {name: value for name, value in wanted.to_dict().items() if name != key}
    return list(getattr(type(wanted).from_dict(told), key))  # as the architecture has it by itself
