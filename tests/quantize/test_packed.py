import json

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from torch import nn

from edgekd import divergence
from edgekd.export import onnx as export
from edgekd.export.graph import Graph, torch_runner
from edgekd.preprocess import Preprocessed
from edgekd.quantize import fake, packed, packing
from edgekd.quantize.codebook import Codebook
from edgekd.quantize.encoded import Encoded
from edgekd.quantize.weights_only import quantize_weights
from edgekd.recipe import Preprocess


def encode(weights, granularity, bits, codebook=False):
    """Quantize in NumPy. granularity: weights a bucket, or "tensor" or "channel"."""
    sizes = {"tensor": weights.size, "channel": weights.size // weights.shape[0]}
    size = sizes.get(granularity) or min(granularity, weights.size)
    flat = weights.reshape(-1)
    buckets = np.append(flat, np.full(-flat.size % size, flat[-1])).reshape(-1, size).astype(np.float32)
    low, levels = buckets.min(1), 2**bits
    span = np.maximum(buckets.max(1) - low, np.float32(1e-6))
    if codebook:
        points = np.sort(np.random.default_rng(bits).random(levels)).astype(np.float32)
        indices = np.abs((buckets - low[:, None])[..., None] / span[:, None, None] - points).argmin(-1)
        return Encoded(indices.astype(np.uint8), span, low, points, levels, weights.shape)
    scale = span / np.float32(levels - 1)
    indices = np.clip(np.rint((buckets - low[:, None]) / scale[:, None]), 0, levels - 1).astype(np.uint8)
    return Encoded(indices, scale, low, None, levels, weights.shape)


def bake(net, granularity, bits, codebook=False, keep=()):
    """Quantize each matrix or kernel of a network; return name -> Encoded."""
    made = {}
    for name, parameter in net.named_parameters():
        if parameter.ndim > 1 and name not in keep:
            made[name] = encode(parameter.detach().numpy(), granularity, bits, codebook)
            parameter.data = torch.from_numpy(made[name].decoded())
    return made


def session(model, level=99):
    """Load a model as it is (level 0), or optimized; return (session, the nodes that run)."""
    import tempfile

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel(level)
    with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
        options.optimized_model_filepath = file.name
        made = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return made, onnx.load(file.name).graph.node


def weights_in(model, names, level):
    """Return the named tensors as the runtime computes them."""
    whole = onnx.ModelProto.FromString(model.SerializeToString())
    del whole.graph.output[:]
    whole.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    inputs = {
        v.name: np.ones([d.dim_value or 1 for d in v.type.tensor_type.shape.dim], helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type))
        for v in whole.graph.input
    }  # fmt: skip
    return dict(zip(names, session(whole, level)[0].run(names, inputs), strict=True))


class Zoo(nn.Module):
    """A layer of each kind, on (n, 3, 8, 8)."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 12, 3, padding=1, groups=2)
        self.depthwise = nn.Conv2d(12, 12, 3, stride=2, padding=1, groups=12, bias=False)
        self.bn2 = nn.BatchNorm2d(12)
        self.up = nn.ConvTranspose2d(12, 6, 2, stride=2)
        self.tokens = nn.Linear(6, 10)
        self.line = nn.Conv1d(10, 5, 3)
        self.head = nn.Linear(5 * 62, 7)

    def forward(self, x):
        x = torch.relu(self.bn(self.conv(x)))
        x = torch.relu(self.bn2(self.depthwise(self.grouped(x))))
        x = torch.relu(self.up(x)).flatten(2).transpose(1, 2)
        x = self.line(torch.relu(self.tokens(x)).transpose(1, 2))
        return self.head(x.flatten(1))


class Tied(nn.Module):
    """Token ids (n, 5) -> scores, by one table for the way in and the way out."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.mixer = nn.Linear(6, 6)
        self.out = nn.Linear(6, 11, bias=False)
        self.out.weight = self.embedding.weight

    def forward(self, ids):
        return self.out(torch.relu(self.mixer(self.embedding(ids))))


def zoo(seed=0):
    torch.manual_seed(seed)
    net = Zoo()
    for bn in (net.bn, net.bn2):  # as after training: no two tensors alike, nothing zero
        bn.weight.data.uniform_(0.5, 1.5), bn.bias.data.normal_(), bn.running_mean.normal_(), bn.running_var.uniform_(0.5, 2)
    return net.eval()


def graph_of(net):
    module = Preprocessed(net, Preprocess(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))).eval()
    image = torch.zeros(1, 8, 8, 3, dtype=torch.uint8)
    return Graph("model", module, ("image",), ("logits",), {"image": image}, {"image": {0: "batch"}})


def graph_of_tied(net):
    return Graph("model", net.eval(), ("ids",), ("y",), {"ids": torch.zeros(2, 5, dtype=torch.int64)}, {"ids": {0: "batch"}})


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    """The operations that run of a Zoo in full precision."""
    path = tmp_path_factory.mktemp("plain") / "model.onnx"
    export.write(graph_of(zoo()), path)
    return sorted(node.op_type for node in session(onnx.load(str(path)))[1])


# --- bytes -------------------------------------------------------------------------------------


@given(bits=st.integers(1, 8), count=st.integers(0, 70), seed=st.integers(0, 99))
def test_every_index_takes_exactly_its_bits_and_comes_back(bits, count, seed):
    indices = np.random.default_rng(seed).integers(0, 2**bits, count).astype(np.uint8)
    data = packing.pack(indices, bits)
    assert data.dtype == np.uint8
    assert data.size == -(-count // 8) * bits
    found = []
    for group in data.reshape(-1, bits):  # 8 indices: fields of 1, 2, 4 (or 8) bits, each in its own bytes, lowest bits first
        values, below, stream = [0] * 8, 0, [int(b) >> i & 1 for b in group for i in range(8)]
        for width in (1, 2, 4, 8):
            if bits & width:
                for at in range(8):
                    for bit in range(width):
                        values[at] |= stream.pop(0) << below + bit
                below += width
        found += values
    assert found[:count] == indices.tolist()
    assert not any(found[count:])


def test_bytes_worked_by_hand():
    assert packing.pack(np.array([1, 2, 3, 0, 2], np.uint8), 2).tolist() == [0b00111001, 0b10]
    assert packing.pack(np.array([[0xA, 0x3], [0xF, 0x1]], np.uint8), 4).tolist() == [0x3A, 0x1F, 0, 0]
    assert packing.pack(np.array([0b101, 0b010, 0b111], np.uint8), 3).tolist() == [0b101, 0b00110110 & 0b111111, 0]


@settings(deadline=None, max_examples=80)
@given(
    bits=st.integers(1, 8), codebook=st.booleans(), levels=st.integers(2, 256), buckets=st.integers(1, 9), size=st.integers(1, 40),
    cut=st.integers(0, 39), seed=st.integers(0, 99), level=st.sampled_from([0, 99]),
)  # fmt: skip
def test_the_function_gives_the_very_weights(bits, codebook, levels, buckets, size, cut, seed, level):
    levels = max(min(levels, 2**bits), 2 ** (bits - 1) + 1)
    rng = np.random.default_rng(seed)
    indices = rng.integers(0, levels, (buckets, size)).astype(np.uint8)
    scale, offset = (rng.normal(size=buckets).astype(np.float32) for _ in "so")
    points = np.sort(rng.normal(size=levels)).astype(np.float32) if codebook else None
    one = Encoded(indices, scale, offset, points, levels, (buckets * size - cut % size, 1))
    assert one.bits == bits
    (call,), tensors = packed._unpacked("w", one)
    out = helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, one.shape)
    graph = helper.make_graph([call], "one", [], [out], tensors)
    imports = [helper.make_opsetid("", 20), helper.make_opsetid(packing.DOMAIN, 1)]
    model = helper.make_model(graph, functions=[packing.function(bits, codebook, 20)], opset_imports=imports, ir_version=10)
    onnx.checker.check_model(model)
    np.testing.assert_array_equal(session(model, level)[0].run(None, {})[0], one.decoded())


# --- files -------------------------------------------------------------------------------------

SCHEMES = {  # granularity, bits, codebook, highest opset -> the opset that the file needs, its type, DequantizeLinear nodes
    "w8 channel": (("channel", 8), 21, (20, "UINT8", 7)),
    "w8 tensor": (("tensor", 8), 21, (20, "UINT8", 7)),
    "w4 channel": (("channel", 4), 21, (21, "UINT4", 7)),
    "w4g16": ((16, 4), 21, (21, "UINT4", 7)),
    "w4g16 for opset 20": ((16, 4), 20, (20, "UINT8", 0)),
    "w2g7": ((7, 2), 21, (20, "UINT8", 0)),
    "w2g7 as opset 25": ((7, 2), 25, (25, "UINT2", 7)),
    "w3 channel": (("channel", 3), 21, (20, "UINT8", 0)),
    "w2cg16": ((16, 2, True), 21, (20, "UINT8", 0)),
    "w8cg64": ((64, 8, True), 21, (20, "UINT8", 0)),
}


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_file_computes_with_the_very_weights_and_runs_as_the_full_precision_one(tmp_path, scheme, usual):
    how, highest, (opset, kind, dequantized) = SCHEMES[scheme]
    net = zoo()
    encoded = bake(net, *how)
    graph, path = graph_of(net), tmp_path / "model.onnx"
    packed.write(graph, encoded, path, opset=highest)
    model = onnx.load(str(path))
    onnx.checker.check_model(model, full_check=True)
    assert next(i.version for i in model.opset_import if not i.domain) == opset
    types = {t.name: onnx.TensorProto.DataType.Name(t.data_type) for t in model.graph.initializer}
    assert {types[f"{name}.q"] for name in encoded} == {kind}
    assert sum(node.op_type == "DequantizeLinear" for node in model.graph.node) == dequantized
    assert not {t.name for t in model.graph.initializer} & encoded.keys()  # none in full precision beside
    assert [i.name for i in model.graph.input] == ["image"]

    image = np.random.default_rng(1).integers(0, 256, (3, 8, 8, 3)).astype(np.uint8)
    expected = torch_runner([graph])("model", {"image": image})["logits"]
    shipped = packed.foldable(model)
    onnx.checker.check_model(shipped, full_check=True)
    for file in (model, shipped):
        for level in (0, 99):
            for name, values in weights_in(file, list(encoded), level).items():
                np.testing.assert_array_equal(values, encoded[name].decoded(), err_msg=name)
            for batch in (1, 3):
                made = session(file, level)[0].run(None, {"image": image[:batch]})[0]
                assert np.abs(made - expected[:batch]).max() < 1e-5 * np.abs(expected).max()
    _, runs = session(shipped)
    assert sorted(node.op_type for node in runs) == usual  # nothing is left to expand


@pytest.mark.parametrize("bits", [4, 3])
def test_tied_weights_are_stored_once_and_an_embedding_is_one_of_them(tmp_path, bits):
    torch.manual_seed(0)
    net = Tied()
    encoded = bake(net, 8, bits)
    assert list(encoded) == ["embedding.weight", "mixer.weight"]
    graph = graph_of_tied(net)
    ids = np.random.default_rng(0).integers(0, 11, (3, 5))
    expected = torch_runner([graph])("model", {"ids": ids})["y"]
    sizes = []
    for names in (
        encoded,
        {"out.weight" if "emb" in n else n: e for n, e in encoded.items()},
        encoded | {"out.weight": encoded["embedding.weight"]},
    ):
        packed.write(graph, names, tmp_path / "model.onnx")
        model = onnx.load(str(tmp_path / "model.onnx"))
        for file in (model, packed.foldable(model)):
            made = session(file)[0].run(None, {"ids": ids})[0]
            np.testing.assert_allclose(made, expected, atol=1e-6)
        sizes.append(sum(len(t.raw_data) for t in model.graph.initializer))
    assert len(set(sizes)) == 1


class Cond(nn.Module):
    """A layer inside a branch."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.unused = nn.Linear(4, 4)

    def forward(self, x):
        return torch.cond(x.sum() > 0, lambda x: self.inner(x), lambda x: x.sin(), (x,))


@pytest.mark.parametrize("size", [6, 5])  # a dead row; the same in buckets that leave a tail of one
def test_constant_buckets_of_a_codebook_are_stored_as_they_are(tmp_path, size):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 6))
    net[0].weight.data[2] = 0
    weights = net[0].weight.detach().clone()
    fake.attach(net, {"0.weight": Codebook(size, 4, net[0].weight)})
    encoded = fake.bake(net)
    for at in range(12, 18) if size == 6 else [35]:
        assert net[0].weight.detach().flatten()[at] == weights.flatten()[at]
    graph = Graph("model", net.eval(), ("x",), ("y",), {"x": torch.zeros(2, 6)}, {"x": {0: "batch"}})
    packed.write(graph, encoded, tmp_path / "model.onnx")
    model = onnx.load(str(tmp_path / "model.onnx"))
    for level in (0, 99):
        found = weights_in(model, ["0.weight"], level)["0.weight"]
        np.testing.assert_array_equal(found, net[0].weight.detach().numpy())


def test_weights_inside_a_branch_and_weights_that_nothing_uses(tmp_path):
    torch.manual_seed(0)
    net = Cond().eval()
    encoded = bake(net, "channel", 4)
    graph = Graph("model", net, ("x",), ("y",), {"x": torch.ones(2, 4)}, {"x": {0: "batch"}})
    packed.write(graph, encoded, tmp_path / "model.onnx")
    model = onnx.load(str(tmp_path / "model.onnx"))
    assert [t.name for t in model.graph.initializer if t.name.endswith(".q")] == ["inner.weight.q"]
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    for sign in (1, -1):
        given = sign * np.abs(x)
        expected = torch_runner([graph])("model", {"x": given})["y"]
        for file in (model, packed.foldable(model)):
            np.testing.assert_allclose(session(file)[0].run(None, {"x": given})[0], expected, atol=1e-6)


def test_an_offset_that_is_a_whole_multiple_becomes_a_zero_point(tmp_path):
    net = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))
    rng, encoded = np.random.default_rng(0), {}
    for at, bits in ((0, 8), (1, 4)):
        shape = tuple(net[at].weight.shape)
        scale = rng.uniform(0.1, 1, shape[0] if at == 0 else 1).astype(np.float32)
        whole = np.float32(2 ** (bits - 1))
        indices = rng.integers(0, 2**bits, (len(scale), net[at].weight.numel() // len(scale))).astype(np.uint8)
        encoded[f"{at}.weight"] = Encoded(indices, scale, -scale * whole, None, 2**bits, shape)
        net[at].weight.data = torch.from_numpy(encoded[f"{at}.weight"].decoded())
    graph = Graph("model", net.eval(), ("x",), ("y",), {"x": torch.zeros(2, 6)}, {"x": {0: "batch"}})
    packed.write(graph, encoded, tmp_path / "model.onnx")
    model = onnx.load(str(tmp_path / "model.onnx"))
    assert [node.op_type for node in model.graph.node] == ["DequantizeLinear", "DequantizeLinear", "Gemm", "Gemm"]
    zeros = {t.name: numpy_helper.to_array(t).astype(int) for t in model.graph.initializer if t.name.endswith("zero")}
    assert zeros["0.weight.zero"].tolist() == [128] * 4
    assert zeros["1.weight.zero"].tolist() == 8
    for file in (model, packed.foldable(model)):
        for name, values in weights_in(file, list(encoded), 99).items():
            one = encoded[name]
            by_hand = (one.indices.astype(np.float32) - 2 ** (one.bits - 1)) * one.scale[:, None]
            np.testing.assert_array_equal(values, by_hand.reshape(one.shape))
            np.testing.assert_allclose(values, one.decoded(), atol=2**-22 * np.abs(one.offset).max())


def test_nodes_know_their_modules_and_the_layer_that_departs_is_found(tmp_path):
    net = zoo()
    encoded = bake(net, 16, 4, keep=("head.weight",))
    graph, path = graph_of(net), tmp_path / "model.onnx"
    packed.write(graph, encoded, path)
    modules, model = export.modules_of(path), onnx.load(str(path))
    assert {node.name for node in model.graph.node} == modules.keys()
    layers = [modules[n.name][0] for n in model.graph.node if n.op_type in ("Conv", "ConvTranspose", "MatMul", "Gemm")]
    assert layers == ["conv", "grouped", "depthwise", "up", "tokens", "line", "head"]
    assert {modules[n.name][0] for n in model.graph.node if n.op_type == "DequantizeLinear"} == set(layers) - {"head"}
    assert "bn2" in export.module_names(path)
    assert {t.name for t in model.graph.initializer} > {"head.weight", "head.bias", "bn.running_var", "conv.weight.q"}

    image = np.random.default_rng(1).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    reference, _ = divergence.torch_tensors(graph, {"image": image})
    assert divergence.first(reference, path, {"image": image}, modules, max_error=1e-4) is None
    for tensor in model.graph.initializer:
        if tensor.name == "up.weight.scale":
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 2, tensor.name))
    onnx.save(model, path)
    assert divergence.first(reference, path, {"image": image}, modules, max_error=1e-4).module == "up"


def test_weights_that_are_not_baked_or_not_there_are_refused(tmp_path):
    net = zoo()
    encoded = bake(net, "channel", 8)
    net.up.weight.data += 1e-3
    with pytest.raises(ValueError, match=r"the values of `up.weight` are not those"):
        packed.write(graph_of(net), encoded, tmp_path / "model.onnx")
    with pytest.raises(ValueError, match=r"has no weight `down.weight`"):
        packed.write(graph_of(net), {"down.weight": encoded["up.weight"]}, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


class Paper(nn.Sequential):
    """The 0.3M student of Polino et al. (2018)."""

    def __init__(self):
        layers, inside = [], 3
        for at, width in enumerate((50, 25, 25, 10)):
            layers += [nn.Conv2d(inside, width, 5, padding=2), nn.ReLU(), nn.BatchNorm2d(width)]
            layers += [nn.MaxPool2d(2)] if at in (1, 3) else []
            inside = width
        layers += [nn.Flatten(), nn.Linear(640, 400), nn.ReLU(), nn.BatchNorm1d(400), nn.Linear(400, 10)]
        super().__init__(*layers)
        for part in self:
            if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
                part.running_mean.normal_(), part.running_var.uniform_(1, 2)
                part.weight.data.normal_(), part.bias.data.normal_()


@pytest.mark.slow
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("codebook", [False, True], ids=["uniform", "codebook"])
def test_a_file_is_within_a_twentieth_of_its_arithmetic_size(tmp_path, bits, codebook):
    torch.manual_seed(0)
    net = Paper().eval()
    encoded = bake(net, 256, bits, codebook)
    weights = sum(p.numel() for p in net.parameters() if p.ndim > 1)
    assert 310_000 < weights < 320_000
    rest = sum(p.numel() for p in net.parameters() if p.ndim == 1) + sum(b.numel() for b in net.buffers() if b.ndim)
    buckets = sum(-(-p.numel() // 256) for p in net.parameters() if p.ndim > 1)
    arithmetic = weights * bits / 8 + 8 * buckets + 4 * 2**bits * codebook * len(encoded) + 4 * rest
    image = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    module = Preprocessed(net, Preprocess(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)))
    graph = Graph("model", module, ("image",), ("logits",), {"image": image}, {"image": {0: "batch"}})
    packed.write(graph, encoded, tmp_path / "model.onnx")
    shipped = packed.foldable(onnx.load(str(tmp_path / "model.onnx")))
    for size in ((tmp_path / "model.onnx").stat().st_size, shipped.ByteSize()):
        assert arithmetic < size < 1.05 * arithmetic


def test_the_same_bytes_every_time_and_nothing_of_the_machine(tmp_path):
    made = []
    for folder in ("one", "two"):
        net = zoo()
        encoded = bake(net, 16, 3)
        packed.write(graph_of(net), dict(sorted(encoded.items(), reverse=folder == "two")), tmp_path / folder / "model.onnx")
        made.append({f.name: f.read_bytes() for f in (tmp_path / folder).iterdir()})
    assert made[0] == made[1]
    assert set(made[0]) == {"model.onnx", "model.modules.json"}
    assert b"site-packages" not in made[0]["model.onnx"]
    assert set(json.loads(made[0]["model.modules.json"])) == {"modules", "nodes"}


# --- foldable ----------------------------------------------------------------------------------


def test_weight_only_files_of_other_makers_become_foldable_and_others_stay(tmp_path, usual):
    net = zoo()
    graph, path = graph_of(net), tmp_path / "model.onnx"
    export.write(graph, path)
    image = {"image": np.random.default_rng(1).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)}
    for per_channel in (True, False):
        model = quantize_weights(onnx.load(str(path)), ["head"], per_channel)
        made = packed.foldable(model)
        assert not any(node.op_type == "DequantizeLinear" for node in made.graph.node)
        exact, same = (session(file, 0)[0].run(None, image)[0] for file in (model, made))
        np.testing.assert_array_equal(same, exact)
        assert sorted(n.op_type for n in session(made)[1]) == usual
    one = helper.make_tensor_value_info
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wd"]),
        helper.make_node("MatMul", ["xd", "wd"], ["y"]),
    ]
    constants = {"s": np.float32(0.1), "z": np.uint8(3), "w": np.ones((2, 2), np.uint8)}
    tensors = [numpy_helper.from_array(np.asarray(values), name) for name, values in constants.items()]
    ends = [one("x", 1, [1, 2])], [one("y", 1, [1, 2])]
    both = helper.make_model(helper.make_graph(nodes, "both", *ends, tensors), opset_imports=[helper.make_opsetid("", 20)])
    assert packed.foldable(both) == both


@settings(deadline=None, max_examples=40)
@given(
    kind=st.sampled_from(["UINT8", "INT8", "UINT4", "INT4", "INT32"]), shape=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    layout=st.sampled_from(["scalar", "one", "axis"]), at=st.integers(0, 2), negative=st.booleans(), zero=st.booleans(),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_foldable_gives_what_dequantize_linear_does(kind, shape, layout, at, negative, zero, seed):
    rng, axis = np.random.default_rng(seed), at % len(shape)
    low, high = {"UINT8": (0, 256), "INT8": (-128, 128), "UINT4": (0, 16), "INT4": (-8, 8), "INT32": (-9999, 9999)}[kind]
    beside = {"scalar": [], "one": [1], "axis": [shape[axis]]}[layout]
    data_type = onnx.TensorProto.DataType.Value(kind)

    def integers(name, dims):
        return helper.make_tensor(name, data_type, dims, rng.integers(low, high, dims).reshape(-1).tolist())

    scale = numpy_helper.from_array(rng.normal(size=beside).astype(np.float32), "s")
    tensors = [integers("q", shape), scale] + [integers("z", beside)] * (zero and kind != "INT32")
    attributes = {"axis": axis - len(shape) * negative} if layout == "axis" else {}
    node = helper.make_node("DequantizeLinear", [t.name for t in tensors], ["y"], name="y", **attributes)
    out = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, shape)
    graph = helper.make_graph([node], "one", [], [out], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    made = packed.foldable(model)
    assert {n.op_type for n in made.graph.node} <= {"Cast", "Sub", "Mul"}
    for level in (0, 99):
        expected, same = (session(file, level)[0].run(None, {})[0] for file in (model, made))
        np.testing.assert_array_equal(same, expected)
