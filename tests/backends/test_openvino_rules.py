"""What OpenVINO computes otherwise than the ONNX file says, and is refused for."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from edgekd.backends import openvino as backend
from edgekd.parity import compare
from edgekd.targets import load_target

CPU = load_target("intel-cpu")


@pytest.mark.parametrize("ceil_mode", [0, 1])
@pytest.mark.parametrize("count_include_pad", [0, 1])
@pytest.mark.parametrize(
    ("size", "kernel", "stride", "pad"), [(8, 3, 2, 1), (7, 3, 2, 1), (8, 3, 2, 0), (8, 2, 3, 1), (9, 3, 3, 1)]
)
def test_means_that_openvino_gets_wrong_are_refused_and_no_others(
    tmp_path, size, kernel, stride, pad, ceil_mode, count_include_pad
):
    openvino = pytest.importorskip("openvino", reason="openvino is not installed: pip install 'edgekd[openvino]'")
    told = {"ceil_mode": ceil_mode, "count_include_pad": count_include_pad}
    shape = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [pad] * 4}
    node = helper.make_node("AveragePool", ["x"], ["y"], name="pool", **shape, **told)
    ends = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, size, size])]
    out = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    model = helper.make_model(
        helper.make_graph([node], "g", ends, out), opset_imports=[helper.make_opsetid("", 20)], ir_version=9
    )
    onnx.save(model, tmp_path / "m.onnx")
    x = np.random.default_rng(0).normal(size=(1, 1, size, size)).astype(np.float32)
    made = openvino.Core().compile_model(tmp_path / "m.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})({"x": x})[0]
    right = torch.nn.functional.avg_pool2d(torch.from_numpy(x), kernel, stride, pad, bool(ceil_mode), bool(count_include_pad))
    wrong = compare({"y": right.numpy()}, {"y": made}).relative > 1e-5
    said = backend.refuses_graph(tmp_path / "m.onnx", CPU)
    assert (said is not None) == wrong
    assert not wrong or "averages wrongly in pool (AveragePool)" in said
