"""What ONNX Runtime really computes of an ONNX file: its operators after the runtime's own rewriting, here, on this processor."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from .things import HEAVY, HEAVY_INTEGER, GraphFacts, Thing

_INTEGER = HEAVY_INTEGER | {"QLinearMatMul", "MatMulIntegerToFloat", "QAttention"}
_CONVERSIONS = {"QuantizeLinear", "DynamicQuantizeLinear", "DequantizeLinear"}


def executed(thing: Thing, known: GraphFacts) -> GraphFacts | None:
    """Return `known` with the counts of the graphs that the runtime executes; None where it cannot be told.

    A file says where numbers are rounded to int8, not what is computed in it: ONNX Runtime replaces a float operator by an int8
    one only where its result is rounded again at once, in a type that it has a kernel for. What it does not replace, it computes in
    float on values that it expands at every call.
    """
    if thing.backend != "onnxruntime":
        return None
    kinds: list[str] = []
    with TemporaryDirectory() as scratch:
        for place, file in enumerate(thing.files.values()):
            found = _rewritten(file, Path(scratch) / f"{place}.onnx")
            if found is None:
                return None
            kinds += found
    in_float, in_integers = sum(kind in HEAVY for kind in kinds), sum(kind in _INTEGER for kind in kinds)
    return replace(
        known,
        nodes=len(kinds),
        conversions=sum(kind in _CONVERSIONS for kind in kinds),
        heavy=in_float + in_integers,
        heavy_float=in_float,
    )


def _rewritten(file: Path, scratch: Path) -> list[str] | None:
    """Return the operators of a graph as the runtime has them after loading it."""
    import onnx
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4  # that the result is for this processor alone is no warning here
    options.intra_op_num_threads = 1
    options.optimized_model_filepath = str(scratch)
    try:
        ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        return [node.op_type for node in onnx.load(str(scratch), load_external_data=False).graph.node]
    except Exception:  # the binding's exceptions share no base; above 2 GB it cannot write one file
        return None
