"""The reasons that a verdict gives, against what ONNX Runtime's own profile says that it executed."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekd.bench import compare
from edgekd.bench.executed import executed
from edgekd.bench.things import Thing, facts

VNNI = "this CPU has no VNNI or dot product instructions, so sums of int8 products take several instructions instead of one"


def convolutions(path: Path, plain: int, then_float: int, quantized: bool = True) -> Path:
    """Write convolutions one after the other, inputs and weights rounded to int8; the last ones with a HardSigmoid before their
    result is rounded, which leaves ONNX Runtime nothing to compute in int8 there."""
    nodes, floats = [], {"scale": np.float32(0.05)}
    integers = {"zero": np.uint8(0), "codes": np.ones((4, 4, 1, 1), np.int8), "signed": np.int8(0)}
    value = "image"
    for number in range(plain + then_float):
        if quantized:
            nodes += [
                helper.make_node("QuantizeLinear", [value, "scale", "zero"], [f"q{number}"]),
                helper.make_node("DequantizeLinear", [f"q{number}", "scale", "zero"], [f"d{number}"]),
                helper.make_node("DequantizeLinear", ["codes", "scale", "signed"], [f"w{number}"]),
            ]
        weights = f"w{number}" if quantized else "floats"
        nodes.append(helper.make_node("Conv", [f"d{number}" if quantized else value, weights], [f"c{number}"]))
        value = f"c{number}"
        if number >= plain:
            nodes.append(helper.make_node("HardSigmoid", [value], [f"h{number}"]))
            value = f"h{number}"
    nodes += [
        helper.make_node("QuantizeLinear", [value, "scale", "zero"], ["last"]),
        helper.make_node("DequantizeLinear", ["last", "scale", "zero"], ["y"]),
    ] if quantized else [helper.make_node("Identity", [value], ["y"])]  # fmt: skip
    known = floats | integers if quantized else {"floats": np.ones((4, 4, 1, 1), np.float32)}
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4, 8, 8]) for name in ("image", "y")]
    stored = [numpy_helper.from_array(np.asarray(array), name) for name, array in known.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def profiled(file: Path, scratch: Path) -> Counter[str]:
    """Count the operators that ran in one call, by the runtime's profile."""
    options = ort.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(scratch / "profile")
    session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    session.run(None, {"image": np.ones((1, 4, 8, 8), np.float32)})
    events = json.loads(Path(session.end_profiling()).read_text())
    return Counter(one["args"]["op_name"] for one in events if one["name"].endswith("_kernel_time"))


def compared(files: dict[str, Path], seconds: float, **more: object) -> dict[str, object]:
    things = [Thing(name, "onnxruntime", {"model": file}) for name, file in files.items()]
    found = {thing.label: facts(thing.file) for thing in things}
    samples = {"fp32": np.full((10, 5), 1e-3), "int8": np.full((10, 5), seconds)}
    providers = {thing.label: {"CPU": 4} for thing in things}
    (told,) = compare.compare(things, samples, found, 1, providers, one_control=True, **more)  # type: ignore[arg-type]
    return told


@pytest.mark.parametrize(("plain", "then_float"), [(3, 1), (1, 3)])
def test_what_is_executed_is_what_the_profile_says(tmp_path: Path, plain: int, then_float: int):
    file = convolutions(tmp_path / "int8.onnx", plain, then_float)
    ran = profiled(file, tmp_path)
    assert (ran["QLinearConv"], ran["Conv"] + ran["FusedConv"]) == (plain, then_float)
    known = facts(file)
    assert (known.heavy, known.heavy_float) == (4, 0), "the file alone does not tell"
    runs = executed(Thing("int8", "onnxruntime", {"model": file}), known)
    assert runs is not None
    assert (runs.heavy, runs.heavy_float) == (4, then_float)
    assert runs.conversions == ran["QuantizeLinear"] + ran["DequantizeLinear"]
    assert runs.nodes == sum(ran.values())
    assert executed(Thing("int8", "openvino", {"model": file}), known) is None


def test_slow_instructions_come_first_where_most_of_what_is_executed_are_sums_in_them(tmp_path: Path):
    files = {
        "fp32": convolutions(tmp_path / "fp32.onnx", 8, 0, quantized=False),
        "int8": convolutions(tmp_path / "int8.onnx", 8, 0),
    }
    told = compared(files, 1.01e-3, vnni=False)
    assert told["verdict"] == "no difference seen between int8 and fp32 (0.95-1.03)"
    nodes = sum(profiled(files["int8"], tmp_path).values())
    assert told["why"] == f"{VNNI}; 2 of the {nodes} nodes that the runtime executes only convert between int8 and float"
    assert "VNNI" not in str(compared(files, 1.01e-3, vnni=True)["why"])
    assert "VNNI" not in str(compared(files, 1.01e-3)["why"]), "nothing is said of a processor that is not known"


def test_floats_come_first_where_the_runtime_leaves_most_in_float(tmp_path: Path):
    files = {
        "fp32": convolutions(tmp_path / "fp32.onnx", 1, 3, quantized=False),
        "int8": convolutions(tmp_path / "int8.onnx", 1, 3),
    }
    told = compared(files, 1.8e-3, vnni=False)
    assert told["verdict"] == "int8 is 1.80x SLOWER than fp32 (1.73-1.87)"
    assert str(told["why"]).startswith("3 of 4 convolutions and matrix products are computed in float; ")
    assert str(told["why"]).endswith(VNNI)
    assert compared(files, 0.5e-3, vnni=False)["why"] is None, "it is faster: nothing to explain"


def test_of_another_device_the_file_alone_is_known(tmp_path: Path):
    files = {
        "fp32": convolutions(tmp_path / "fp32.onnx", 3, 1, quantized=False),
        "int8": convolutions(tmp_path / "int8.onnx", 3, 1),
    }
    told = compared(files, 1.8e-3, vnni=False, device="ssh://pi")
    assert told["why"] == (
        "14 of the file's 19 nodes only convert between int8 and float "
        f"(the runtime merges those around operators that it computes in int8); {VNNI}"
    )


def test_nothing_is_said_of_int8_instructions_where_nothing_is_computed_in_int8(tmp_path: Path):
    file = convolutions(tmp_path / "int8.onnx", 0, 2)
    runs = executed(Thing("int8", "onnxruntime", {"model": file}), facts(file))
    reasons = compare.why(facts(file), 1e-5, {"CPU": 5, "NPU": 1}, False, runs)
    assert reasons[0] == "2 of 2 convolutions and matrix products are computed in float"
    assert [reason.split(" (")[0] for reason in reasons[2:]] == [
        "the model is tiny",
        "the graph is split between CPU 5, NPU 1 nodes: tensors are copied between them",
    ]
    assert not any("VNNI" in reason for reason in reasons)
