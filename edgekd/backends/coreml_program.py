"""A torch graph as a Core ML program, its quantized weights in Core ML's own compressed forms.

coremltools converts the network in floating point, with a pass of ours in its pipeline that puts a compressed constant in the
place of every constant with the very values of a stored weight. Weights that were quantized beside a BatchNorm are replaced
first of all: no pass can fold anything into a compressed constant, so the BatchNorm stays. Weights that were quantized with it
folded in are replaced after coremltools has folded it too, but for tables that are looked up: where the places are constants, such as
positions in a text of fixed length, it would look them up itself first.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import BadInput
from .coreml_weights import Form, Linear
from .half import LARGEST

if TYPE_CHECKING:
    import torch

    from ..export.graph import Graph

_PASS = "edgekd::store_weights"
_TABLES = "edgekd::store_tables"
_WITHIN = "edgekd::within_half"
_LAST = "common::add_fp16_cast"
"""What comes after all that folds one constant into another."""
_MOST = 3e4
"""Stands for numbers that 16-bit floats do not hold: added to another of like size it still is one."""


@dataclass(frozen=True)
class Weight:
    """A stored weight: how Core ML shall hold it, the float32 values that stand in the network, and how far these may be off."""

    form: Form
    values: np.ndarray
    tolerance: np.ndarray | float = 0.0


def convert(
    graph: Graph, weights: Mapping[str, Weight], release: str, *, half: bool = True, images: bool = False, folded: bool = False
) -> Any:
    """Return the graph as a coremltools MLModel for one sample at a time. Raises BadInput for what Core ML cannot express.

    weights: the stored ones by name. release: of coremltools.target, such as "iOS17". half: compute in float16.
    images: inputs of pictures, uint8 (n, H, W, 1 or 3), become Core ML's image type, gray or RGB. folded: the weights hold the
    BatchNorm after them already.
    """
    with quiet():
        import coremltools as ct

        example = {name: _one_sample(graph, name) for name in graph.inputs}
        pictures = {name for name, value in example.items() if images and is_picture(value)}
        module = _entered(graph.module.to("cpu").eval(), [name in pictures for name in graph.inputs])
        given = {name: _as_given(value, name in pictures) for name, value in example.items()}
        inputs = [_described(ct, name, value, name in pictures) for name, value in given.items()]
        outputs = [ct.TensorType(name=name, dtype=np.float32) for name in graph.outputs]
        errors: list[Exception] = []
        for trace in (_exported, _traced):  # names are those of torch's exporter, where its route converts
            passes = ct.PassPipeline.DEFAULT
            job = _register(_Job(dict(weights), set(weights)))
            passes.insert_pass(passes.passes.index(_LAST) if folded else 0, _PASS)
            passes.set_options(_PASS, {"job": job})
            if half:
                passes.insert_pass(passes.passes.index(_LAST), _WITHIN)  # what was folded into constants by then, too
                passes.insert_pass(0, _WITHIN)
            if folded:
                passes.insert_pass(0, _TABLES)
                passes.set_options(_TABLES, {"job": job})
            try:
                made = ct.convert(
                    trace(module, tuple(given.values())),
                    convert_to="mlprogram",
                    inputs=inputs,
                    outputs=outputs,
                    minimum_deployment_target=getattr(ct.target, release),
                    compute_precision=ct.precision.FLOAT16 if half else ct.precision.FLOAT32,
                    pass_pipeline=passes,
                    skip_model_load=True,
                )
            except Exception as error:  # torch and coremltools raise anything
                errors.append(error)
                continue
            if job.left:
                name = min(job.left)
                raise BadInput(
                    f"graph `{graph.name}`: the stored weight `{name}` is none of the converted program's constants, and would be "
                    "lost: the variant is of another network, or coremltools made another tensor of it; name its layer in `keep`"
                )
            return made
    reason = (str(errors[0]).strip() or type(errors[0]).__name__).splitlines()[0].rstrip(".")
    raise BadInput(
        f"coremltools cannot convert {_operation(errors[0])}graph `{graph.name}`: {reason}. Replace that operation in the network"
    )


def _operation(error: Exception) -> str:
    """Return "operation `KIND` (NAME) of " for the node of a torch program that coremltools was at; "" when it was at none."""
    at = error.__traceback__
    while at is not None:
        node = at.tb_frame.f_locals.get("node")
        if at.tb_frame.f_code.co_name == "convert_single_node" and node is not None:
            return f"operation `{node.kind}` (node {node.name}) of "
        at = at.tb_next
    return ""


@dataclass(frozen=True)
class _Job:
    """What the pass is to place, and the names of what it has not placed yet."""

    weights: dict[str, Weight]
    left: set[str]

    def find(self, values: np.ndarray) -> Form | None:
        """Return how to store a constant of the program, when it is a stored weight: of those near enough, the nearest."""
        best: tuple[float, Form] | None = None
        names: list[str] = []  # of all that are as near: weights may be equal
        for name, weight in self.weights.items():
            for turned in (False, True) if values.ndim == 2 else (False,):
                stored = weight.values.T if turned else weight.values
                if stored.shape != values.shape:
                    continue
                slack = weight.tolerance.T if turned and isinstance(weight.tolerance, np.ndarray) else weight.tolerance
                apart = np.abs(values - stored)
                if not (apart <= slack).all():
                    continue
                far = float(apart.max(initial=0))
                if best is None or far < best[0]:
                    best, names = (far, weight.form.transposed() if turned else weight.form), []
                if far == best[0]:
                    names.append(name)
        self.left.difference_update(names)
        return best and best[1]


def _register(job: _Job) -> _Job:
    """Make the passes known to coremltools, once; return the job."""
    from coremltools.converters.mil.mil import Builder as mb
    from coremltools.converters.mil.mil.passes.graph_pass import AbstractGraphPass
    from coremltools.converters.mil.mil.passes.helper import block_context_manager
    from coremltools.converters.mil.mil.passes.pass_registry import PASS_REGISTRY, register_pass

    if _PASS in PASS_REGISTRY:
        return job

    @register_pass(namespace=_PASS.partition("::")[0])
    class store_weights(AbstractGraphPass):
        job: _Job | None = None
        tables = False

        def apply(self, prog: Any) -> None:
            for function in prog.functions.values():
                self._block(function)

        @block_context_manager
        def _block(self, block: Any) -> None:
            assert self.job is not None
            for op in list(block.operations):
                for inner in op.blocks:
                    self._block(inner)
                value: Any = op.outputs[0].val if op.op_type == "const" else None
                if self.tables and not (
                    value is not None and {child.op_type for child in op.outputs[0].child_ops} == {"gather"}
                ):
                    continue
                found = self.job.find(value) if getattr(value, "dtype", None) == np.float32 else None
                if found is None:
                    continue
                stored = _constant(found, op)
                block.replace_uses_of_var_after_op(anchor_op=op, old_var=op.outputs[0], new_var=stored, force_replace=True)
                block.remove_ops([op])

    @register_pass(namespace=_WITHIN.partition("::")[0])
    class within_half(AbstractGraphPass):
        """Masks of transformers hold the smallest float32: in 16 bits that is -inf, and 0 times it NaN."""

        def apply(self, prog: Any) -> None:
            for function in prog.functions.values():
                self._block(function)

        @block_context_manager
        def _block(self, block: Any) -> None:
            for op in list(block.operations):
                for inner in op.blocks:
                    self._block(inner)
                value: Any = op.outputs[0].val if op.op_type == "const" else None
                beyond = (
                    np.isfinite(value) & (np.abs(value) > LARGEST) if getattr(value, "dtype", None) == np.float32 else np.False_
                )
                if not beyond.any():
                    continue
                within = np.where(beyond, np.copysign(np.float32(_MOST), value), value)
                smaller = mb.const(val=within, name=f"{op.name}_within", before_op=op)
                block.replace_uses_of_var_after_op(anchor_op=op, old_var=op.outputs[0], new_var=smaller, force_replace=True)
                block.remove_ops([op])

    @register_pass(namespace=_TABLES.partition("::")[0])
    class store_tables(store_weights):
        tables = True

    return job


def _constant(form: Form, op: Any) -> Any:
    """Put the compressed constant before `op`; return its variable."""
    from coremltools.converters.mil._deployment_compatibility import AvailableTarget
    from coremltools.converters.mil.mil import Builder as mb
    from coremltools.converters.mil.mil import types
    from coremltools.converters.mil.mil.block import is_current_opset_version_compatible_with as has

    name: dict[str, Any] = {"name": f"{op.name}_stored", "before_op": op}

    def integers(values: np.ndarray, kind: str) -> np.ndarray:
        return values.astype(types.nptype_from_builtin(types.string_to_builtin(kind)))

    if isinstance(form, Linear):
        signed = form.q.dtype == np.int8
        kind = f"{'' if signed else 'u'}int{form.bits}"
        bounds = (-(1 << form.bits - 1), 1 << form.bits - 1) if signed else (0, 1 << form.bits)
        whole = (form.zero == np.rint(form.zero)).all() and form.zero.min() >= bounds[0] and form.zero.max() < bounds[1]
        zero = integers(form.zero, kind) if whole else form.zero
        if has(AvailableTarget.iOS18):
            offset = {"offset": zero} if form.zero.any() else {}
            return mb.constexpr_blockwise_shift_scale(data=integers(form.q, kind), scale=form.scale, **offset, **name)
        axis = next((axis for axis, n in enumerate(form.scale.shape) if n > 1), 0)
        one = () if form.scale.size == 1 else (-1,)
        return mb.constexpr_affine_dequantize(
            quantized_data=form.q, zero_point=zero.reshape(one), scale=form.scale.reshape(one), axis=np.int32(axis), **name
        )
    if has(AvailableTarget.iOS18):
        indices = integers(form.indices, f"uint{form.bits}")
        return mb.constexpr_lut_to_dense(indices=indices, lut=form.points[..., None], **name)
    stream = np.unpackbits(form.indices.reshape(-1, 1), axis=1, count=form.bits, bitorder="little")
    return mb.constexpr_lut_to_dense(
        indices=np.packbits(stream, bitorder="little"),
        lut=form.points.reshape(-1),
        shape=np.array(form.indices.shape, np.uint32),
        **name,
    )


def is_picture(value: torch.Tensor) -> bool:
    """Say whether an input is pictures: uint8 (n, H, W, 1 or 3)."""
    import torch

    return value.dtype == torch.uint8 and value.ndim == 4 and value.shape[3] in (1, 3)


def _one_sample(graph: Graph, name: str) -> torch.Tensor:
    """Return the example as one sample, as long as it may get along its other dynamic axes, with zeros at the end."""
    import torch

    value = graph.example[name]
    for axis, label in graph.dynamic.get(name, {}).items():
        if axis == 0:
            value = value[:1]
        elif label in graph.longest:
            more = list(value.shape)
            more[axis] = graph.longest[label] - value.shape[axis]
            value = torch.cat([value, value.new_zeros(more)], dim=axis)
    return value


def _as_given(value: torch.Tensor, picture: bool) -> torch.Tensor:
    """Return the example as Core ML hands it over: a picture as float32 (1, C, H, W) in 0-255, integers as int32."""
    import torch

    if picture:
        return torch.empty(1, *value.shape[-1:], *value.shape[1:3]).copy_(value.permute(0, 3, 1, 2))
    kind = torch.float32 if value.is_floating_point() else torch.int32
    return torch.empty(value.shape, dtype=kind).copy_(value)  # laid out afresh: torch.export's route refuses other strides


def _described(ct: Any, name: str, value: torch.Tensor, picture: bool) -> Any:
    if not picture:
        return ct.TensorType(name=name, shape=tuple(value.shape), dtype=np.float32 if value.is_floating_point() else np.int32)
    layout = ct.colorlayout.GRAYSCALE if value.shape[1] == 1 else ct.colorlayout.RGB
    return ct.ImageType(name=name, shape=tuple(value.shape), color_layout=layout)


def _entered(module: torch.nn.Module, pictures: list[bool]) -> torch.nn.Module:
    """Return the module behind its door: pictures come channels first, as Core ML's images do."""
    import torch

    class Entered(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, *given: torch.Tensor) -> Any:
            turned = [x.permute(0, 2, 3, 1) if picture else x for x, picture in zip(given, pictures, strict=True)]
            return self.inner(*turned)

    return Entered().eval()


def _exported(module: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> Any:
    import torch

    with torch.no_grad():
        made = torch.export.export(module, given, strict=False).run_decompositions(_decompositions())
    given_back = set(made.graph_signature.user_outputs)
    for node in made.graph.nodes:
        first = next((user for user in node.users if user.name.startswith("getitem") and user.args[1] == 0), None)
        if "batch_norm" in node.name and first is not None and first.name not in given_back:
            first.name, node.name = node.name, first.name  # what torch's ONNX files call the output
    return made


def _decompositions() -> dict[Any, Any]:
    """Return what stands for operations that coremltools reads wrongly or not at all in a torch.export program."""
    import torch

    aten = torch.ops.aten

    def new_ones(x: torch.Tensor, size: list[int], dtype: torch.dtype | None = None, **_: Any) -> Any:
        return torch.full(size, 1, dtype=dtype or x.dtype)

    def where_scalar(condition: torch.Tensor, x: torch.Tensor, other: float) -> Any:
        return torch.where(condition, x, torch.full((), other, dtype=x.dtype))

    def logical(operation: Any) -> Any:
        return lambda a, b: operation(a, b) if a.dtype == b.dtype == torch.bool else NotImplemented

    def gelu(x: torch.Tensor, approximate: str = "none") -> Any:
        if approximate == "none":
            return NotImplemented  # kept as it is; coremltools takes the other for it too
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    return {
        aten.gelu.default: gelu,
        aten.new_ones.default: new_ones,
        aten.where.ScalarOther: where_scalar,
        aten.alias.default: torch.clone,
        aten.bitwise_or.Tensor: logical(torch.logical_or),
        aten.bitwise_and.Tensor: logical(torch.logical_and),
        aten.__or__.Tensor: torch.logical_or,
        aten.__and__.Tensor: torch.logical_and,
        aten.__xor__.Tensor: torch.logical_xor,
    }


def _traced(module: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> Any:
    import torch

    with torch.no_grad():
        return torch.jit.trace(module, given, check_trace=False)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep coremltools' bars and notes out of the terminal; errors come as exceptions."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
