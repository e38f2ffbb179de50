"""What one call of an ONNX graph has to compute and to move, counted from the file.

Arithmetic: macs.py has the conventions. Bytes:
- weights_bytes: all constants as the file stores them; 4-bit weights are half a byte each.
- weights_read_bytes: constants as a loaded model reads them in one call, each once. What a DequantizeLinear expands is read as it
  is stored; what other nodes make of constants (packed weights that are expanded on loading) is read expanded. Of a table only
  the rows that are looked up.
- io_bytes: the graph's inputs and outputs.
- activation_bytes: every other tensor written once and read by each node that takes it. A quantized model's tensors between
  DequantizeLinear and QuantizeLinear are counted as the integers they are computed from and to.
Nodes that depend on constants and shapes alone cost nothing: a runtime computes them on loading, or they are a few numbers.
"""

from __future__ import annotations

from collections import ChainMap, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, prod
from pathlib import Path
from typing import TYPE_CHECKING

from . import macs as arithmetic
from .shapes import Shape, bodies, bytes_of, inner, shaped

if TYPE_CHECKING:
    import onnx

_EIGHT_BITS_OR_LESS = {2, 3, 21, 22, 25, 26}
_INDICES = {7, 9, 13}
"""int64, bool and uint64 constants say where and how, they are no weights."""
_LOOKUPS = {"Gather", "GatherElements", "GatherND", "GatherBlockQuantized", "Slice"}
_RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
_SHAPES_ALONE = {"Shape", "Size"}
_MATRICES = {"QLinearConv": (0, 3), "QLinearMatMul": (0, 3)}


@dataclass(frozen=True)
class NodeCost:
    """One node's share. integer: its MACs have two operands of 8 bits or less. activation_bytes: what it reads and writes."""

    name: str
    op: str
    macs: int
    flops: int
    weight_bytes: int
    activation_bytes: int
    integer: bool = False

    @property
    def bytes(self) -> int:
        """All bytes the node reads and writes."""
        return self.weight_bytes + self.activation_bytes


@dataclass(frozen=True)
class Cost:
    """What one call costs; see above for what is counted.

    flops: 2 x macs and all other arithmetic. int8_macs: those of `macs` both of whose operands are quantized to 8 bits or less.
    nodes: those that cost anything, in the graph's order. notes: what was assumed or could not be counted, in sentences.
    """

    macs: int
    flops: int
    int8_macs: int
    weights_bytes: int
    weights_read_bytes: int
    io_bytes: int
    activation_bytes: int
    nodes: tuple[NodeCost, ...]
    notes: tuple[str, ...] = ()


def cost(file: Path, shapes: Mapping[str, Sequence[int]]) -> Cost:
    """Count what one call of an ONNX file costs on inputs of these `shapes` (name -> lengths of the axes).

    Raises BadInput when the file is no ONNX or the shapes don't fit its inputs. A node whose shapes stay unknown is left out and
    named in `notes`.
    """
    found = shaped(Path(file), shapes)
    scope = _Scope(found.graph, found.shapes, found.types, {}, set())
    scope.count()
    graph, constants = found.graph, {tensor.name for tensor in found.graph.initializer}
    ends = [value.name for value in (*graph.input, *graph.output) if value.name not in constants]
    return Cost(
        macs=sum(node.macs for node in scope.nodes),
        flops=sum(node.flops for node in scope.nodes),
        int8_macs=sum(node.macs for node in scope.nodes if node.integer),
        weights_bytes=found.stored_bytes,
        weights_read_bytes=sum(scope.weights.values()),
        io_bytes=sum(scope.size(name) for name in ends),
        activation_bytes=scope.between(),
        nodes=tuple(scope.nodes),
        notes=tuple(scope.notes),
    )


@dataclass
class _Scope:
    """A graph, or a branch within one, while it is counted."""

    graph: onnx.GraphProto
    shapes: Mapping[str, Shape]
    types: Mapping[str, int]
    outer_makers: Mapping[str, onnx.NodeProto]
    constants: set[str]
    """Tensors that follow from stored values alone."""
    weights: dict[str, int] = field(default_factory=dict)
    """Constant -> bytes read in one call."""
    nodes: list[NodeCost] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    fixed: set[str] = field(default_factory=set)
    """Tensors that follow from shapes and constants alone."""
    reads: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    written: set[str] = field(default_factory=set)
    inner_activations: int = 0

    def __post_init__(self) -> None:
        self.constants = self.constants | {tensor.name for tensor in self.graph.initializer}
        own = {name: node for node in self.graph.node for name in node.output if name}
        self.makers: Mapping[str, onnx.NodeProto] = ChainMap(own, dict(self.outer_makers))
        self.takers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.graph.node:
            for name in node.input:
                self.takers[name].append(node)
        self.ends = {value.name for value in self.graph.output}
        for node in self.graph.node:
            captured = any(True for _ in bodies(node))
            if captured or node.op_type in _RANDOM:
                continue
            given = [name for name in node.input if name]
            if all(name in self.constants for name in given):
                self.constants.update(node.output)
            elif node.op_type in _SHAPES_ALONE or all(name in self.constants or name in self.fixed for name in given):
                self.fixed.update(node.output)

    def count(self) -> None:
        """Fill nodes, weights, reads and written."""
        for node in self.graph.node:
            if node.op_type in ("If", "Loop", "Scan"):
                self._enter(node)
                continue
            if all(name in self.constants or name in self.fixed for name in node.output if name):
                continue
            label = node.name or f"{node.op_type} -> {node.output[0]}"
            try:
                macs, other = arithmetic.work(node, self.shape)
                weight = self._read_weights(node)
                moved = self._move(node)
            except arithmetic.Unknown as unknown:
                self.notes.append(f"{label} ({node.op_type}) is not counted: the shape of `{unknown}` is not known")
                continue
            except (IndexError, KeyError, ValueError, ZeroDivisionError) as error:
                self.notes.append(f"{label} ({node.op_type}) is not counted: it is not as ONNX describes it ({error!r})")
                continue
            if macs or other or weight or moved:
                self.nodes.append(
                    NodeCost(label, node.op_type, macs, 2 * macs + other, weight, moved, self._integer(node, macs))
                )

    def shape(self, name: str) -> Shape:
        if name not in self.shapes:
            raise arithmetic.Unknown(name)
        return self.shapes[name]

    def size(self, name: str) -> int:
        """Return the bytes of a tensor, 0 where its shape is not known."""
        return bytes_of(self.shapes[name], self.types.get(name, 1)) if name in self.shapes else 0

    def between(self) -> int:
        """Return the bytes of all that moves between nodes: without the graph's inputs and outputs, each counted once there."""
        entries = {value.name for value in self.graph.input} - self.constants
        exits = {self._lies_as(name) for name in self.ends}
        total = self.inner_activations
        for name in self.written | set(self.reads):
            reads = self.reads.get(name, [])
            total += sum(reads[1:] if name in entries else reads)
            total += self.size(name) if name in self.written and name not in exits else 0
        return total

    def _lies_as(self, name: str) -> str:
        """Return the tensor that really lies in memory: before it was renamed, and as integers where those are at hand."""
        maker = self.makers.get(name)
        while maker is not None and (
            maker.op_type in arithmetic.VIEWS or (maker.op_type == "DequantizeLinear" and name not in self.ends)
        ):
            name = maker.input[0]
            maker = self.makers.get(name)
        takers = self.takers.get(name, [])
        if maker is not None and name not in self.ends and takers and all(self._fused(taker) for taker in takers):
            return takers[0].output[0]
        return name

    def _fused(self, node: onnx.NodeProto) -> bool:
        """Whether a QuantizeLinear is the end of the node before: its input is made by a node and taken by nothing else."""
        if node.op_type != "QuantizeLinear":
            return False
        name = node.input[0]
        return name in self.makers and name not in self.ends and len(self.takers[name]) == 1

    def _move(self, node: onnx.NodeProto) -> int:
        """Note what a node reads and writes of tensors that depend on the input; return the bytes."""
        kind = node.op_type
        if kind in arithmetic.VIEWS | _SHAPES_ALONE or self._fused(node):
            return 0
        if kind == "DequantizeLinear" and node.output[0] not in self.ends:
            return 0
        total = 0
        for place, name in enumerate(dict.fromkeys(name for name in node.input if name)):
            if name in self.constants or name in self.fixed:
                continue
            source = self._lies_as(name)
            size = self.size(source)
            if kind in _LOOKUPS and place == 0:
                size = min(size, self.size(node.output[0]))
            self.reads[source].append(size)
            total += size
        for name in node.output:
            if name and (name in self.takers or name in self.ends):
                self.shape(name)
                target = self._lies_as(name)
                self.written.add(target)
                total += self.size(target)
        return total

    def _read_weights(self, node: onnx.NodeProto) -> int:
        """Note which constants a node reads in a call, and how much of each; return the bytes."""
        total = 0
        for place, name in enumerate(dict.fromkeys(name for name in node.input if name)):
            if name not in self.constants or self.types.get(name) in _INDICES or node.op_type in arithmetic.VIEWS:
                continue
            part = 1.0
            if node.op_type in _LOOKUPS and place == 0:
                part = min(1.0, prod(self.shape(node.output[0])) / max(1, prod(self.shape(name))))
            for source, size in self._stored_as(name).items():
                size = ceil(size * part)
                total += size
                self.weights[source] = max(size, self.weights.get(source, 0))
        return total

    def _stored_as(self, name: str) -> dict[str, int]:
        """Return constant -> bytes of what is read for a constant.

        Where a DequantizeLinear is among what makes it: what that takes, and what else goes in. Otherwise the constant itself.
        """
        open_ends, found, expanded = [name], dict[str, int](), False
        while open_ends:
            one = open_ends.pop()
            maker = self.makers.get(one)
            quantized = maker is not None and maker.op_type == "DequantizeLinear"
            expanded = expanded or quantized
            if quantized and maker is not None:
                found |= {source: self.size(source) for source in maker.input if source}
            elif maker is not None and maker.input:
                open_ends += [source for source in maker.input if source]
            elif self.types.get(one) not in _INDICES:
                found[one] = self.size(one)
        return found if expanded else {name: self.size(name)}

    def _integer(self, node: onnx.NodeProto, macs: int) -> bool:
        if not macs:
            return False
        if node.op_type in arithmetic.INTEGER:
            return True
        if node.op_type == "MatMulNBits":  # at this level the kernel rounds the activations to 8 bits
            return any(a.name == "accuracy_level" and a.i == 4 for a in node.attribute)
        return len(node.input) > 1 and all(self._quantized(name) for name in node.input[:2])

    def _quantized(self, name: str) -> bool:
        maker = self.makers.get(name)
        while maker is not None and maker.op_type in arithmetic.VIEWS | {"Transpose", "Slice", "Split", "Concat", "MaxPool"}:
            maker = self.makers.get(maker.input[0])
        return (
            maker is not None and maker.op_type == "DequantizeLinear" and self.types.get(maker.input[0]) in _EIGHT_BITS_OR_LESS
        )

    def _enter(self, node: onnx.NodeProto) -> None:
        """Count the branch or the body of a node as if its work stood here."""
        label = node.name or node.op_type
        graphs = dict(bodies(node))
        body = graphs.get("then_branch") or graphs.get("body")
        if body is None:
            return
        times, said = 1, "of an If the branch that is taken when the condition holds is counted"
        if node.op_type == "Scan":
            last = len(node.input) - 1
            times = self.shapes.get(node.input[last], (1,))[0]
            said = f"the body is counted {times} times"
        if node.op_type == "Loop":
            said = "the body is counted once: how often it runs is not known"
        self.notes.append(f"{label} ({node.op_type}): {said}")
        shapes, types = inner(body)
        scope = _Scope(
            body, ChainMap(shapes, dict(self.shapes)), ChainMap(types, dict(self.types)), self.makers, self.constants
        )
        scope.count()
        for one in scope.nodes:
            self.nodes.append(
                NodeCost(f"{label}/{one.name}", one.op, one.macs * times, one.flops * times, one.weight_bytes,
                         one.activation_bytes * times, one.integer)
            )  # fmt: skip
        self.inner_activations += times * scope.between()
        for name, size in scope.weights.items():
            key = name if name in self.constants else f"{label}/{name}"
            self.weights[key] = max(size, self.weights.get(key, 0))
        self.notes += scope.notes
