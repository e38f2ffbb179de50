"""Save a model into a folder and restore it from there: model.safetensors, model.json and what it takes to make it again."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import save as serialized
from torch import nn

from ..errors import BadInput
from . import python_file
from .loaded import LoadedModel
from .transformers_model import Logits
from .weights import load_weights

WEIGHTS, CARD, CODE = "model.safetensors", "model.json", "model.py"


def save(model: LoadedModel, folder: Path) -> None:
    """Write the weights (of the bare network) and the card into `folder`; the same model makes the same bytes.

    Beside them goes what the reference may not have tomorrow: the user's python file (py:), the configuration (hf:).
    Raises BadInput when the arguments cannot be written as JSON.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(model.module.net, folder / WEIGHTS)
    card = {
        "schema": 1,
        "reference": model.reference,
        "arguments": model.arguments,
        "preprocess": model.preprocess.model_dump(mode="json") if model.preprocess else None,
        "classes": list(model.classes) if model.classes else None,
        "pooling": model.pooling,
        "parameters": model.parameters,
        "role": model.role,
    }
    if model.reference.startswith(python_file.PREFIX):
        file, _ = python_file.split(model.reference.removeprefix(python_file.PREFIX))
        (folder / CODE).write_bytes(file.read_bytes())
    net = model.module.net
    config: Any = getattr(net.model if isinstance(net, Logits) else net, "config", None)
    if hasattr(config, "save_pretrained"):
        config.save_pretrained(folder)
    if model.tokenizer is not None:
        model.tokenizer.save_pretrained(folder)
    try:
        (folder / CARD).write_text(json.dumps(card, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    except TypeError as error:
        raise BadInput(f"{model.role}.arguments: cannot be written as JSON ({error}); use numbers, words and lists") from None


def restore(folder: Path, like: LoadedModel) -> LoadedModel:
    """Return a copy of `like` with the weights that save() left in `folder`. `like` keeps its own."""
    module = copy.deepcopy(like.module)
    load_weights(module.net, folder / WEIGHTS, like.role)
    return replace(like, module=module.eval())


def write_weights(net: nn.Module, file: Path) -> None:
    """Write a network's state dict as safetensors."""
    # Cloned: safetensors refuses tensors that share memory, as tied weights do, and stores no strides.
    state = {name: value.detach().cpu().clone().contiguous() for name, value in net.state_dict().items()}
    file.write_bytes(serialized(state))  # safetensors' own save_file() makes files that only their owner can read
