"""The form in which a graph ships for ONNX Runtime: as it is, or with operators of ONNX Runtime's own where they are faster.

What a file was made into stands in its metadata, and why something was not.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import first_line
from ..export.onnx import save
from ..parity import compare

if TYPE_CHECKING:
    import onnx

    from ..export.graph import Arrays

KEY = "edgekd.form"
"""Of the metadata that tells the form, as JSON."""

_MAX_ERROR = 5e-5
"""Largest difference to the plain form, relative to the largest output: a quarter of what the gate allows."""
_MIN_SQNR_DB = 25.0
"""The same where activations are rounded at each call: a difference in the last digit moves some of them to the next integer."""

ROUNDED = "MatMulNBits, int8 activations"
"""The one step that rounds what was not rounded before."""

Step = Callable[["onnx.ModelProto"], tuple["onnx.ModelProto", int]]


def formed(model: onnx.ModelProto, steps: Mapping[str, Step], load: Callable[..., Any]) -> onnx.ModelProto:
    """Return the model after those steps that find something, and whose outputs stay what they were; else as it was.

    steps: name -> (model -> (model, how many places were changed)). load: (file, exact) -> session; exact: of the plain graph, the arithmetic as written. What came of it is in the
    model's metadata: {"MultiHeadAttention": 6} or {"MultiHeadAttention": "why not"}; nothing where no step found a place.
    """
    import onnx

    told: dict[str, int | str] = {}
    for name, step in steps.items():
        made, count = step(model)
        if not count:
            continue
        reason = _departs(model, made, load, rounds=name == ROUNDED)
        told[name] = reason or count
        model = model if reason else made
    if not told:
        return model
    marked = onnx.ModelProto()
    marked.CopyFrom(model)
    marked.metadata_props.add(key=KEY, value=json.dumps(told))
    return marked


def told(file: Path) -> dict[str, int | str]:
    """Return what formed() left in a file's metadata; {} where it did nothing."""
    import onnx

    model = onnx.load(str(file), load_external_data=False)
    return next((dict(json.loads(p.value)) for p in model.metadata_props if p.key == KEY), {})


def _departs(plain: onnx.ModelProto, made: onnx.ModelProto, load: Callable[..., Any], rounds: bool) -> str | None:
    """Say why a form is not what it was made from, by running both; None where the outputs agree."""
    from .onnxruntime import interface

    with TemporaryDirectory() as folder:
        outputs = []
        for name, model in (("plain", plain), ("formed", made)):
            file = Path(folder) / f"{name}.onnx"
            save(model, file)
            try:
                session = load(file, exact=name == "plain")
                made_of = [session.run(inputs) for inputs in trials(interface(file)["inputs"])]
            except Exception as error:  # of the binding, which share no base
                why = first_line(error).replace(f"{folder}/", "")[:200]  # the folder's name changes, the file must not
                return f"{'left as it was' if name == 'formed' else 'not tried'}: the {name} graph does not run ({why})"
            outputs.append({f"{key} of call {n}": value for n, call in enumerate(made_of) for key, value in call.items()})
    near = compare(*outputs)
    rounds = rounds or any(node.op_type == "DynamicQuantizeLinear" or _in_int8(node) for node in plain.graph.node)
    if (near.sqnr_db >= _MIN_SQNR_DB) if rounds else (near.relative <= _MAX_ERROR):
        return None
    return f"left as it was: outputs differ by {near.relative:.2g} of the largest ({near.sqnr_db:.0f} dB)"


def _in_int8(node: onnx.NodeProto) -> bool:
    """Say whether a product rounds its activations at each call."""
    return node.op_type == "MatMulNBits" and any(a.name == "accuracy_level" and a.i == 4 for a in node.attribute)


def rounds(form: Mapping[str, Any]) -> bool:
    """Say whether a form rounds activations that the variant leaves in floating point."""
    return isinstance(form.get(ROUNDED), int)


def trials(declared: list[dict[str, Any]]) -> list[Arrays]:
    """Make the inputs of the calls that are tried: two samples; of a decoder two prompts, a step behind two, and several tokens behind one."""
    past, tokens = _axis(declared, "past", 2), _axis(declared, "input_ids", 1)
    if past is None or tokens is None:
        return [trial_inputs(declared)]
    return [trial_inputs(declared), *(trial_inputs(declared, rows, {past: 5, tokens: read}) for rows, read in ((2, 1), (1, 3)))]


def trial_inputs(declared: list[dict[str, Any]], samples: int = 2, axes: Mapping[str, int] | None = None) -> Arrays:
    """Make inputs of so many samples; in masks the first of several ends in padding, or begins with it where a cache is full. axes: lengths."""
    from ..bench.scenarios import random_inputs

    made = random_inputs(declared, samples, vocabulary=16, axes=axes)  # no vocabulary is smaller
    for name, values in made.items():
        if name.endswith("to_keep"):  # the first token is always there
            made[name] = np.zeros_like(values)
        if samples > 1 and "mask" in name and values.ndim == 2 and values.shape[1] > 3:
            made[name] = values = np.array(values)
            values[0, slice(0, 2) if axes else slice(-3, None)] = 0
    return made


def _axis(declared: list[dict[str, Any]], begins: str, place: int) -> str | None:
    """Return what the open axis at `place` is called, of the first input whose name begins so; None where there is none."""
    shape: list[Any] = next((one["shape"] for one in declared if one["name"].startswith(begins)), [])
    return shape[place] if len(shape) > place and isinstance(shape[place], str) and shape[place] else None
