"""Taps: the outputs of layers inside a network, by their names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from ..errors import BadInput
from ..names import nearest


def layers_of(module: nn.Module, names: Iterable[str], role: str = "model") -> dict[str, nn.Module]:
    """Return the named layers of the user's own network (`.net` of a Preprocessed). BadInput for a name that is not there."""
    layers = dict(getattr(module, "net", module).named_modules())
    wanted = list(dict.fromkeys(names))
    for name in wanted:
        if name not in layers or not name:
            known = [layer for layer in layers if layer]
            raise BadInput(
                f"the {role} has no layer `{name}`{nearest(name, known)}; its layers are {', '.join(known[:20])}"
                f"{', ...' if len(known) > 20 else ''}"
            )
    return {name: layers[name] for name in wanted}


class Taps:
    """Keeps the latest output of each named layer. Names are those of the user's own network (`.net` of a Preprocessed).

    >>> with Taps(model, ["layer1.0"]) as taps:
    ...     model(images)
    ...     taps.outputs["layer1.0"]

    Raises BadInput for a name that is not there, and, at the forward pass, for a layer whose output holds no tensor. Of
    a tuple, list or dict the first tensor counts.
    """

    def __init__(self, module: nn.Module, names: Iterable[str], role: str = "model") -> None:
        self.outputs: dict[str, torch.Tensor] = {}
        self._handles: list[RemovableHandle] = []
        for name, layer in layers_of(module, names, role).items():
            self._handles.append(layer.register_forward_hook(self._hook(name, role)))

    def _hook(self, name: str, role: str) -> Any:
        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            tensor = _first_tensor(output)
            if tensor is None:
                raise BadInput(f"layer `{name}` of the {role} gives a {type(output).__name__} without a tensor: choose another")
            self.outputs[name] = tensor

        return keep

    def close(self) -> None:
        """Take the taps off the network again."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.outputs.clear()

    def __enter__(self) -> Taps:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _first_tensor(output: Any) -> torch.Tensor | None:
    if isinstance(output, torch.Tensor):
        return output
    values = output.values() if isinstance(output, dict) else output if isinstance(output, tuple | list) else ()
    return next((tensor for tensor in map(_first_tensor, values) if tensor is not None), None)
