"""Dynamic quantization: weights in int8, and each layer's activations scaled anew at each call. No samples, no training.

For networks of matrix products, such as transformers: ONNX Runtime's int8 kernels beat those of floating point there, and a scale
that fits the very sentence costs less accuracy than one that fits the average of all. Made of ONNX's own operators:
DynamicQuantizeLinear, MatMulInteger. Tables that are looked up (embeddings) are int8 with a scale for each row.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import BadInput
from .variant import Variant
from .weights_only import is_table, symmetric_int8

if TYPE_CHECKING:
    import onnx

    from ..recipe import VariantRecipe
    from . import Job


def refuses(config: VariantRecipe) -> str | None:
    """Say what of the scheme dynamic cannot do; None when it can. It makes uniform 8-bit weights and 8-bit activations."""
    weights, activations, defaults = config.weights, config.activations, type(config).model_fields["calibration"].default
    can = "dynamic makes uniform 8-bit weights (granularity tensor or channel) and 8-bit activations"
    if weights is None or activations is None:
        return can
    if weights.bits != 8:
        return f"weights of {weights.bits} bits; {can}"
    if weights.kind != "uniform":
        return f"weights of kind {weights.kind}; {can}"
    if weights.granularity == "group":
        return f"groups of {weights.group} weights; {can}"
    if weights.symmetric is False:
        return f"asymmetric weights; {can}, the weights symmetric"
    if activations.bits != 8:
        return f"activations of {activations.bits} bits; {can}"
    if activations.symmetric:
        return "symmetric activations: what scales them at each call goes from their smallest to their largest; leave `symmetric` out"
    if config.calibration.model_copy(update={"overflow_fix": defaults.overflow_fix}) != defaults:
        return "calibration samples: dynamic needs none; leave `calibration` out, but for its overflow_fix"
    return None


def make(config: VariantRecipe, job: Job, folder: Path) -> Variant:
    """Quantize every source graph. Raises BadInput for an unknown module in `keep`, and where no weights would become int8."""
    import onnx

    from ..export.onnx import save
    from .keep import kept_nodes
    from .post_training import counts, folded, overflow_fix, tidy

    narrow, why = overflow_fix(config, job.targets)
    per_channel = config.weights is None or config.weights.granularity != "tensor"
    graphs, facts = {}, {}
    for name, source in job.source.items():
        model = folded(onnx.load(str(source)))
        keep = kept_nodes(config.keep, model, source)
        made = quantize(model, keep, per_channel=per_channel, largest=63 if narrow else 127)
        tidy(made)
        graphs[name] = folder / source.name
        save(made, graphs[name])
        facts[name] = counts(made) | {"kept": keep}
    if not any(told["int8"] for told in facts.values()):
        raise BadInput(
            f"quantize `{config.name}`: dynamic quantizes products with weights (MatMul, Gemm), and this student has none that are "
            "not kept; use method ptq, which quantizes convolutions too"
        )
    told = {"nodes": facts, "overflow_fix": {"on": narrow, "why": why}}
    return Variant(config.name, "dynamic", config.scheme, folder, graphs, reference="graph", facts=told)


def quantize(model: onnx.ModelProto, keep: Collection[str], *, per_channel: bool = True, largest: int = 127) -> onnx.ModelProto:
    """Return the model with products y = x w + b computed as s_x s_w (x_q - z_x) w_q + b.

    w_q = round(w / s_w), s_w = max|w| / largest for each output channel (or the tensor); x_q, s_x and z_x are what
    DynamicQuantizeLinear makes of x: s_x = (max - min) / 255, both with 0. A table that is looked up keeps a scale a row, unless it
    has few numbers. Nodes named in `keep`, convolutions, biases and products of two activations stay as they are. A weight that is
    a table too, turned around (tied embeddings), is stored once.
    """
    import onnx

    from ..export.edit import drop_unused, set_nodes

    made = onnx.ModelProto()
    made.CopyFrom(model)
    rewrite = _Rewrite(made, keep, per_channel, largest)
    nodes: list[onnx.NodeProto] = []
    for node in made.graph.node:
        nodes += rewrite.node(node)
    set_nodes(made, nodes)
    drop_unused(made)
    return made


class _Rewrite:
    """One model while it is rewritten."""

    def __init__(self, model: onnx.ModelProto, keep: Collection[str], per_channel: bool, largest: int) -> None:
        from onnx import numpy_helper

        self.graph, self.keep, self.per_channel, self.largest = model.graph, keep, per_channel, largest
        self.tensors = {tensor.name: tensor for tensor in self.graph.initializer}
        self.turned = {  # what is a weight with its axes exchanged -> that weight
            node.output[0]: node.input[0]
            for node in self.graph.node
            if node.op_type == "Transpose" and node.input[0] in self.tensors and len(self.tensors[node.input[0]].dims) == 2
        }
        self.scaled: dict[str, list[str]] = {}
        self.column: set[str] = set()
        self.stored: dict[tuple[str, bool], tuple[str, str]] = {}
        self.tables = {
            node.input[0]: self.tensors[node.input[0]]
            for node in self.graph.node
            if node.op_type == "Gather"
            and node.name not in keep
            and node.input[0] in self.tensors
            and is_table(node, numpy_helper.to_array(self.tensors[node.input[0]]))
        }
        self.turned |= self._twins()
        kept = {name for node in self.graph.node if node.name in keep for name in node.input}
        self.kept = kept | {self.turned[name] for name in kept if name in self.turned}

    def node(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Return what stands in a node's place."""
        if node.name in self.keep:
            return [node]
        if node.op_type == "Gather" and node.input[0] in self.tables and node.input[0] not in self.kept:
            return self._looked_up(node)
        if (weights := self._weights(node)) is not None:
            return self._product(node, *weights)
        return [node]

    def _weights(self, node: onnx.NodeProto) -> tuple[str, bool] | None:
        """Return (initializer, whether its rows are the output channels) of a product that can be in int8."""
        attributes = {a.name: a for a in node.attribute}
        name = node.input[1] if node.op_type in ("MatMul", "Gemm") else ""
        rows = False
        if node.op_type == "Gemm":
            scales = [attributes[key].f for key in ("alpha", "beta") if key in attributes]
            if any(scale != 1 for scale in scales) or ("transA" in attributes and attributes["transA"].i):
                return None
            rows = "transB" in attributes and bool(attributes["transB"].i)
        if name in self.turned:
            name, rows = self.turned[name], not rows
        tensor = self.tensors.get(name)
        if tensor is None or tensor.data_type != 1 or len(tensor.dims) != 2 or name in self.kept:
            return None
        return name, rows

    def _product(self, node: onnx.NodeProto, name: str, rows: bool) -> list[onnx.NodeProto]:
        from onnx import TensorProto, helper

        y = node.output[0]
        made: list[onnx.NodeProto] = []
        x, scale, zero = self._scaled(node.input[0], made)
        w, w_scale = self._integers(name, rows)
        if rows:
            made.append(helper.make_node("Transpose", [w], [f"{y}.w"], name=f"{y}.w", perm=[1, 0]))
            w = f"{y}.w"
        bias = list(node.input[2:3]) if node.op_type == "Gemm" and len(node.input) > 2 and node.input[2] else []
        product = f"{y}.product" if bias else y
        made += [
            helper.make_node("MatMulInteger", [x, w, zero], [f"{y}.sums"], name=f"{y}.sums"),
            helper.make_node("Cast", [f"{y}.sums"], [f"{y}.float"], name=f"{y}.float", to=TensorProto.FLOAT),
            helper.make_node("Mul", [scale, w_scale], [f"{y}.scale"], name=f"{y}.scale"),
            helper.make_node("Mul", [f"{y}.float", f"{y}.scale"], [product], name=product if bias else node.name),
        ]
        return made + [helper.make_node("Add", [product, b], [y], name=node.name) for b in bias]

    def _scaled(self, x: str, made: list[onnx.NodeProto]) -> list[str]:
        """Return the names of x's integers, scale and zero point; what several layers read is quantized once."""
        from onnx import helper

        if x not in self.scaled:
            self.scaled[x] = [f"{x}.q", f"{x}.q.scale", f"{x}.q.zero"]
            made.append(helper.make_node("DynamicQuantizeLinear", [x], self.scaled[x], name=f"{x}.q"))
        return self.scaled[x]

    def _integers(self, name: str, rows: bool) -> tuple[str, str]:
        """Store a weight in int8; return the names of its integers and its scale.

        rows: one scale a row, not one a column.
        """
        from onnx import numpy_helper

        if (name, rows) not in self.stored:
            weights = numpy_helper.to_array(self.tensors[name])
            axis = None if not self.per_channel else 0 if rows else 1
            q, scale = symmetric_int8(weights, axis, self.largest)
            end = ".rows" if rows else ".columns"
            parts = {f"{name}{end}": q, f"{name}{end}.scale": scale}
            self.graph.initializer.extend(numpy_helper.from_array(values, key) for key, values in parts.items())
            self.stored[name, rows] = tuple(parts)  # type: ignore[assignment]
        return self.stored[name, rows]

    def _twins(self) -> dict[str, str]:
        """Return weight -> table, for each weight that is one turned around: an exporter stores tied embeddings twice."""
        from onnx import numpy_helper

        found, array = {}, numpy_helper.to_array
        weights = {n.input[1] for n in self.graph.node if n.op_type == "MatMul" and n.name not in self.keep}
        for weight in sorted(weights & self.tensors.keys()):
            for table, tensor in self.tables.items():
                shapes = list(self.tensors[weight].dims), list(tensor.dims)[::-1]
                if shapes[0] == shapes[1] and np.array_equal(array(self.tensors[weight]).T, array(tensor)):
                    found[weight] = table
        return found

    def _looked_up(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        from onnx import TensorProto, helper

        table, y = node.input[0], node.output[0]
        w, scale = self._integers(table, rows=True)
        made = [
            helper.make_node("Gather", [w, node.input[1]], [f"{y}.row"], name=f"{y}.row"),
            helper.make_node("Cast", [f"{y}.row"], [f"{y}.whole"], name=f"{y}.whole", to=TensorProto.FLOAT),
        ]
        by = scale
        if self.per_channel:
            column = self._column(scale)
            made.append(helper.make_node("Gather", [column, node.input[1]], [f"{y}.step"], name=f"{y}.step"))
            by = f"{y}.step"
        return [*made, helper.make_node("Mul", [f"{y}.whole", by], [y], name=node.name)]

    def _column(self, scale: str) -> str:
        """Return a tensor of scales with an axis of one at its end, which what is looked up needs."""
        from onnx import numpy_helper

        name = f"{scale}.column"
        if name not in self.column:
            self.column.add(name)
            values = next(numpy_helper.to_array(tensor) for tensor in self.graph.initializer if tensor.name == scale)
            self.graph.initializer.append(numpy_helper.from_array(values[:, None].copy(), name))
        return name
