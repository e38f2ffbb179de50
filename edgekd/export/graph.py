"""A graph: one exportable function with named inputs and outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

Arrays = Mapping[str, np.ndarray]
Runner = Callable[[str, Arrays], dict[str, np.ndarray]]
"""Runs a named graph: (graph name, inputs) -> outputs. A torch module, a file and a device all look like this."""


@dataclass(frozen=True)
class Graph:
    """One exportable function.

    A classifier has one (`model`), a seq2seq model two (`encoder`, `decoder`).
    module: called with the inputs in order, returns one tensor or a tuple in the order of `outputs`.
    example: input name -> example tensor. dynamic: input name -> {axis: axis name}.
    """

    name: str
    module: torch.nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    example: dict[str, torch.Tensor]
    dynamic: dict[str, dict[int, str]] = field(default_factory=dict)


def torch_runner(graphs: list[Graph], device: str = "cpu") -> Runner:
    """Return a Runner over the graphs' torch modules, in evaluation mode and without gradients."""
    import torch

    by_name = {graph.name: graph for graph in graphs}
    for graph in graphs:
        graph.module.to(device).eval()

    def run(name: str, inputs: Arrays) -> dict[str, np.ndarray]:
        graph = by_name[name]
        with torch.inference_mode():
            made = graph.module(*(torch.as_tensor(inputs[i], device=device) for i in graph.inputs))
        outputs = made if isinstance(made, tuple | list) else (made,)
        return {key: value.float().cpu().numpy() for key, value in zip(graph.outputs, outputs, strict=True)}

    return run
