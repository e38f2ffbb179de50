"""`keep`: which ONNX nodes stay in full precision, told by the names of torch modules."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import BadInput
from ..names import nearest

if TYPE_CHECKING:
    import onnx

RULES = ("first", "last")
"""Words that name a layer with weights by its place."""


def kept_nodes(patterns: Iterable[str], model: onnx.ModelProto, source: Path) -> list[str]:
    """Return the names of the nodes that the patterns keep, sorted. Raises BadInput for a pattern that matches nothing.

    A pattern names a module (`blocks.3`, `blocks.*.attn`) and means all that is inside it. For a file that edgekd did not
    export there are no modules: there a pattern names a node. `first` and `last` are the first and the last node with weights.
    """
    from ..export.onnx import module_names, modules_of

    named = module_names(source)
    modules = modules_of(source) if named else {node.name: [node.name] for node in model.graph.node}
    patterns = list(patterns)
    check(patterns, named or list(modules), "module of the student" if named else f"node of {source.name}")
    kept = {node for node, inside in modules.items() if any(_covers(p, m) for p in patterns if p not in RULES for m in inside)}
    if layers := _with_weights(model):
        kept |= {layers[0 if pattern == "first" else -1] for pattern in patterns if pattern in RULES}
    return sorted(kept)


def _with_weights(model: onnx.ModelProto) -> list[str]:
    """Return the nodes that multiply by weights, in the order of the file."""
    constant = {tensor.name for tensor in model.graph.initializer}
    kinds = ("Conv", "ConvTranspose", "Gemm", "MatMul")
    return [node.name for node in model.graph.node if node.op_type in kinds and constant & set(node.input[:2])]


def check(patterns: Iterable[str], names: Iterable[str], what: str) -> None:
    """Raise BadInput for a pattern that matches none of `names`, and is not one of the RULES."""
    known = list(names)
    for pattern in patterns:
        if pattern not in RULES and not any(_covers(pattern, name) for name in known):
            raise BadInput(f"keep: no {what} is called `{pattern}`{nearest(pattern, known)}{_examples(known)}")


def stem(model: onnx.ModelProto) -> list[str]:
    """Return the nodes between the raw input and the first layer with weights: the cast and the normalisation stay in floating point."""
    weighted = {"Conv", "ConvTranspose", "Gemm", "MatMul", "Gather", "Einsum", "LSTM", "GRU"}
    reached = {value.name for value in model.graph.input} - {t.name for t in model.graph.initializer}
    found = []
    for node in model.graph.node:
        if node.op_type not in weighted and any(name in reached for name in node.input):
            found.append(node.name)
            reached.update(node.output)
    return found if len(found) < len(model.graph.node) else []


def quotients(model: onnx.ModelProto) -> list[str]:
    """Return the nodes of each quotient of two activations, back to what it is a quotient of: linear attention's normalisation.

    Numerator and denominator of very different size come out of one product there, and share its scale. With them in integers
    efficientvit_b0 kept 6 dB of its file's outputs on OpenVINO and 25 dB on Qualcomm's HTP.
    """
    makers = {name: node for node in model.graph.node for name in node.output}
    found: dict[str, onnx.NodeProto] = {}
    waiting = [n for n in model.graph.node if n.op_type == "Div" and all(name in makers for name in n.input)]
    while waiting:
        node = waiting.pop()
        if node.name in found:
            continue
        found[node.name] = node
        for before in (makers[name] for name in node.input if name in makers):
            of_activations = all(name in makers for name in before.input)
            same = ("Slice", "Pad", "Transpose", "ReduceSum", *(("MatMul",) if of_activations else ("Add", "Mul")))
            if before.op_type in same:
                waiting.append(before)
    return list(found)


def _covers(pattern: str, module: str) -> bool:
    """A pattern covers a module when it matches it or a module around it."""
    parts = module.split(".")
    return any(fnmatch.fnmatchcase(".".join(parts[:n]), pattern) for n in range(1, len(parts) + 1))


def _examples(known: Mapping[str, object] | list[str]) -> str:
    return f". There are {', '.join(list(known)[:8])}{' ...' if len(known) > 8 else ''}"
