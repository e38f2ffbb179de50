"""Checkpoints: one safetensors file with the numbers, and JSON in its header. Whole or absent, never half."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..errors import BadInput

FORMAT = 1


def write(path: Path, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
    """Replace `path` in one step: whatever kills the process, the old file or the new one is there, whole.

    state: JSON-able; floats come back bit for bit. Raises BadInput when the disk refuses (full, read-only).
    """
    temporary = path.with_name(path.name + ".tmp")
    # Cloned: safetensors refuses tensors that share memory, which tied weights do.
    own = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(own, temporary, metadata={"format": str(FORMAT), "state": json.dumps(state)})
        _flush(temporary)
        os.replace(temporary, path)
        if os.name == "posix":  # the rename itself is only on disk once the folder is
            _flush(path.parent)
    except (OSError, SafetensorError) as error:
        raise BadInput(
            f"cannot write the checkpoint {path}: {error}. Free some space, or choose another output folder"
        ) from None


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
    """Return what write() was given, or None where there is no checkpoint. Raises BadInput when the file is damaged."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
        state = json.loads(metadata["state"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise BadInput(f"the checkpoint {path} cannot be read ({error}): delete it to start this training over") from None
    if metadata.get("format") != str(FORMAT):
        raise BadInput(f"the checkpoint {path} is of another version of edgekd: delete it to start this training over")
    return tensors, state


def put(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors with `prefix.` before their names."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def take(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors that put() gave that prefix, under their own names."""
    return {name.removeprefix(f"{prefix}."): tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}.")}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return an optimizer's state as "PARAMETER.NAME" -> tensor. Rates and decays are not in it: the recipe has them."""
    state = optimizer.state_dict()["state"]
    return {f"{number}.{name}": value for number, entry in state.items() for name, value in entry.items() if value is not None}


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Give an optimizer the state that optimizer_tensors() took from its like."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        number, name = key.split(".", 1)
        parameter = parameters[int(number)]
        if value.shape == parameter.shape:
            value = torch.empty_like(parameter, dtype=value.dtype).copy_(
                value
            )  # strides as the parameter's, as in the run before
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
