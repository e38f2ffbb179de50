"""A graph: one exportable function with named inputs and outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

Arrays = Mapping[str, np.ndarray]
Runner = Callable[[str, Arrays], dict[str, np.ndarray]]
"""Runs a named graph: (graph name, inputs) -> outputs. A torch module, a file and a device all look like this."""

Interfaces = Mapping[str, Mapping[str, list[dict[str, Any]]]]
"""graph -> {"inputs": [{name, dtype, shape}], "outputs": [...]}; a dynamic axis is its name."""


@dataclass(frozen=True)
class Running:
    """A Runner that also tells what its graphs take, which an empty key-value cache is made from."""

    run: Runner
    interfaces: Callable[[], Interfaces]

    def __call__(self, name: str, inputs: Arrays) -> dict[str, np.ndarray]:
        return self.run(name, inputs)


def interfaces_of(run: Runner) -> Interfaces:
    """Return what the graphs behind a Runner take and make. Raises TypeError for a plain function, which does not tell."""
    if not isinstance(run, Running):
        raise TypeError("a language model needs a Runner that tells what its graphs take: edgekd.export.graph.Running")
    return run.interfaces()


@dataclass(frozen=True)
class Graph:
    """One exportable function.

    A classifier has one (`model`), a seq2seq model two (`encoder`, `decoder`).
    module: called with the inputs in order, returns one tensor or a tuple in the order of `outputs`.
    example: input name -> example tensor. dynamic: input name -> {axis: axis name}. longest: axis name -> its greatest length, to
    which inputs are filled up with zeros (which a mask has to hide) for runtimes that take fixed shapes alone.
    """

    name: str
    module: torch.nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    example: dict[str, torch.Tensor]
    dynamic: dict[str, dict[int, str]] = field(default_factory=dict)
    longest: dict[str, int] = field(default_factory=dict)

    @property
    def interface(self) -> dict[str, list[dict[str, Any]]]:
        """Its {"inputs": [{name, dtype, shape}], "outputs": [...]}; the shapes of outputs are not known before a call."""
        inputs = []
        for name in self.inputs:
            example, axes = self.example[name], self.dynamic.get(name, {})
            shape = [axes.get(axis, length) for axis, length in enumerate(example.shape)]
            inputs.append({"name": name, "dtype": str(example.dtype).removeprefix("torch."), "shape": shape})
        return {"inputs": inputs, "outputs": [{"name": name, "dtype": "float32", "shape": []} for name in self.outputs]}


def torch_runner(graphs: list[Graph], device: str = "cpu") -> Running:
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

    return Running(run, lambda: {graph.name: graph.interface for graph in graphs})
