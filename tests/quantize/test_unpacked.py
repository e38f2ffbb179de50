"""The reader of stored weights gives back, to the bit, what the writers were given."""

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from edgekd.export.graph import Graph
from edgekd.quantize import packed, packing, unpacked
from edgekd.quantize.encoded import Encoded
from edgekd.quantize.weights_only import quantize_weights

KINDS = [(8, False, False), (8, False, True), (4, False, False), (4, False, True), (2, False, False), (3, False, False)]
KINDS += [(4, True, False), (1, True, False), (6, True, False)]
"""(bits, codebook, whole zero points)"""


class Net(nn.Module):
    """A layer for each kind of storage and each granularity, among them convolutions of both kinds."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(6)
        self.up = nn.ConvTranspose2d(6, 5, 2, stride=2)
        self.chain = nn.Sequential(*(nn.Linear(5, 5) for _ in range(3 * len(KINDS) - 2)))

    def forward(self, x):
        return self.chain(self.up(torch.relu(self.bn(self.conv(x)))).mean((2, 3)))


def graph_of(net):
    return Graph("model", net.eval(), ("x",), ("y",), {"x": torch.zeros(2, 2, 4, 4)}, {"x": {0: "batch"}})


def encode(weights, size, bits, codebook, whole):
    """Quantize in NumPy. size: weights a bucket. whole: with zero points that are whole numbers."""
    flat = weights.reshape(-1)
    buckets = np.append(flat, np.full(-flat.size % size, flat[-1])).reshape(-1, size).astype(np.float32)
    low, levels = buckets.min(1), 2**bits
    scale = np.maximum(buckets.max(1) - low, np.float32(1e-6)) / np.float32(levels - 1)
    if whole:
        low = (-scale * np.clip(np.rint(-low / scale), 0, levels - 1)).astype(np.float32)
    indices = np.clip(np.rint((buckets - low[:, None]) / scale[:, None]), 0, levels - 1)
    points = np.sort(np.random.default_rng(bits).normal(size=levels)).astype(np.float32) if codebook else None
    return Encoded(indices.astype(np.uint8), scale, low, points, levels, weights.shape)


@pytest.mark.parametrize("opset", [21, 25])  # integers of 2 bits are ONNX's own since 25, packed bytes before
def test_what_packed_writes_is_read_to_the_bit(tmp_path, opset):
    torch.manual_seed(opset)
    net = Net()
    names = [name for name, parameter in net.named_parameters() if parameter.ndim > 1]
    cases = [(granularity, *kind) for granularity in ("channel", "tensor", 7) for kind in KINDS]
    given = {}
    for name, (granularity, bits, codebook, whole) in zip(names, cases, strict=True):
        weights = net.get_parameter(name).detach().numpy()
        size = {"tensor": weights.size, "channel": weights.size // len(weights)}.get(granularity, granularity)
        given[name] = encode(weights, size, bits, codebook, whole)
        net.get_parameter(name).data = torch.from_numpy(given[name].decoded())
    packed.write(graph_of(net), given, tmp_path / "model.onnx", opset=opset)
    found = unpacked.read(onnx.load(str(tmp_path / "model.onnx")))
    assert found.keys() == given.keys()
    for name, one in given.items():
        read = found[name]
        assert np.array_equal(read.decoded(), one.decoded())
        assert read.shape == one.shape
        assert np.array_equal(read.indices, one.indices)
        assert np.array_equal(read.scale, one.scale)
        assert np.array_equal(read.offset if read.offset is not None else 0 * one.scale, one.offset)
        assert read.points is None if one.points is None else np.array_equal(read.points, one.points)


@given(bits=st.integers(1, 8), count=st.integers(1, 50), seed=st.integers(0, 99))
@settings(max_examples=60)
def test_unpacking_undoes_packing(bits, count, seed):
    indices = np.random.default_rng(seed).integers(0, 2**bits, count).astype(np.uint8)
    assert np.array_equal(unpacked.unpack(packing.pack(indices, bits), bits, count), indices)


def weights_only(per_channel):
    """A Gemm and a MatMul, whose channels lie along the first and along the last axis."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(4, 3)).astype(np.float32), rng.normal(size=(4, 5)).astype(np.float32)
    nodes = [
        helper.make_node("Gemm", ["x", "a"], ["h"], name="one", transB=1),
        helper.make_node("MatMul", ["h", "b"], ["y"], name="two"),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", s]) for n, s in (("x", 3), ("y", 5))]
    tensors = [numpy_helper.from_array(values, name) for name, values in (("a", a), ("b", b))]
    model = helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors))
    return quantize_weights(model, [], per_channel), {"a_dequantized": (a, 0), "b_dequantized": (b, 1)}


@pytest.mark.parametrize("per_channel", [True, False])
def test_int8_weights_alone_are_read_with_their_axis(per_channel):
    model, given = weights_only(per_channel)
    found = unpacked.read(model)
    assert found.keys() == given.keys()
    for name, (weights, axis) in given.items():
        scale = (np.abs(weights).max(1 - axis, keepdims=True) if per_channel else np.abs(weights).max()) / np.float32(127)
        assert np.array_equal(found[name].q, np.rint(weights / scale))
        assert found[name].axis == (axis if per_channel else None)
        assert np.allclose(found[name].decoded(), np.rint(weights / scale) * scale, rtol=1e-6)


def test_integers_of_another_maker_are_not_misread():
    model, _ = weights_only(True)
    node = next(node for node in model.graph.node if node.op_type == "DequantizeLinear")
    model.graph.initializer.append(numpy_helper.from_array(np.full(4, 3, np.int8), "zero"))
    node.input.append("zero")
    with pytest.raises(ValueError, match="zero point"):
        unpacked.read(model)
