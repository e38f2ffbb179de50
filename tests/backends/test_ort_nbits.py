import dataclasses
import functools

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekd.backends import onnxruntime as backend
from edgekd.backends import ort_form, ort_nbits
from edgekd.export.graph import Graph
from edgekd.quantize import fake, packed, weights_only
from edgekd.quantize.layers import weights_of
from edgekd.quantize.symmetric import Symmetric
from edgekd.quantize.uniform import MinMax
from edgekd.quantize.variant import Variant, file_runner
from edgekd.recipe import Scheme, Weights
from edgekd.targets import load_target

torch = pytest.importorskip("torch")
nn = torch.nn
TOKENS, WIDTH = 150, 64


class Tied(nn.Module):
    """A table, a layer, and the table again as output layer: a language model without attention."""

    def __init__(self, tied: bool = True) -> None:
        super().__init__()
        self.table, self.layer, self.head = nn.Embedding(TOKENS, WIDTH), nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH)
        self.out = nn.Linear(WIDTH, TOKENS, bias=False)
        if tied:
            self.out.weight = self.table.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.out(self.head(torch.relu(self.layer(self.table(ids)))))


@functools.cache
def _written(folder, kind, size: int, bits: int, tied: bool) -> tuple[bytes, nn.Module]:
    torch.manual_seed(0)
    net = Tied(tied).eval()
    fake.attach(net, {name: kind(size, bits) for name in weights_of(net)})
    encoded = fake.bake(net)
    ids = torch.zeros(2, 3, dtype=torch.int64)
    graph = Graph("model", net, ("ids",), ("y",), {"ids": ids}, {"ids": {0: "batch", 1: "tokens"}})
    packed.write(graph, encoded, folder / "packed.onnx", opset=21)
    return (folder / "packed.onnx").read_bytes(), net


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("shared")


def written(folder, quantizer, tied: bool = True) -> tuple[onnx.ModelProto, nn.Module]:
    """Return the file of a network with quantized weights, and that network."""
    content, net = _written(folder, type(quantizer), quantizer.size, quantizer.bits, tied)
    return onnx.load_from_string(content), net


def run(model: onnx.ModelProto, folder, exact: bool = False, **inputs: np.ndarray) -> np.ndarray:
    onnx.save(model, folder / "model.onnx")
    return file_runner({"model": folder / "model.onnx"}, exact=exact)("model", inputs)["y"]


def kinds(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


IDS = np.array([[0, 5, 149], [7, 7, 1]])


@pytest.mark.parametrize("quantizer", [Symmetric(32, 4), Symmetric(16, 4), MinMax(16, 4), MinMax(TOKENS * WIDTH, 4)])
def test_it_computes_what_the_network_does(shared, tmp_path, quantizer):
    model, net = written(shared, quantizer)
    made, count = ort_nbits.fuse(model)
    assert count == 3
    assert kinds(made).count("MatMulNBits") == 3
    with torch.no_grad():
        expected = net(torch.from_numpy(IDS)).numpy()
    for exact in (True, False):
        np.testing.assert_allclose(run(made, tmp_path, exact, ids=IDS), expected, rtol=1e-4, atol=1e-5)


def test_symmetric_weights_need_nothing_beside(shared):
    """Zero is a level in them: no zero points, and nothing is left to be added."""
    made, _ = ort_nbits.fuse(written(shared, Symmetric(32, 4))[0])
    assert not {"MatMul", "DequantizeLinear", "Transpose"} & set(kinds(made))
    assert not any(".zero" in tensor.name or ".rest" in tensor.name for tensor in made.graph.initializer)


def test_tied_weights_are_stored_once_and_looked_up_as_stored(shared):
    made, _ = ort_nbits.fuse(written(shared, Symmetric(32, 4))[0])
    assert "GatherBlockQuantized" in kinds(made)
    weights = TOKENS * WIDTH + 2 * 32 * WIDTH
    stored = sum(numpy_helper.to_array(t).nbytes for t in made.graph.initializer if t.data_type == TensorProto.UINT8)
    assert stored == weights // 2


def test_untied_tables_stay_as_they_were(shared, tmp_path):
    model, net = written(shared, Symmetric(32, 4), tied=False)
    made, count = ort_nbits.fuse(model)
    assert count == 3
    assert "Gather" in kinds(made)
    with torch.no_grad():
        np.testing.assert_allclose(run(made, tmp_path, ids=IDS), net(torch.from_numpy(IDS)).numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "quantizer", [Symmetric(32, 8), Symmetric(32, 3), MinMax(20, 4)], ids=["8 bits", "3 bits", "across rows"]
)
def test_what_it_is_not_fast_for_or_cannot_hold_stays(shared, quantizer):
    model, _ = written(shared, quantizer)
    assert ort_nbits.fuse(model) == (model, 0)


@pytest.mark.parametrize("rows", [True, False])
def test_int8_weights_with_activations_in_int8(tmp_path, rows):
    """ptq's: symmetric, by columns of a MatMul or rows of a Gemm."""
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((WIDTH, 48)).astype(np.float32)
    kind, stands = ("Gemm", np.ascontiguousarray(weights.T)) if rows else ("MatMul", weights)
    node = helper.make_node(kind, ["x", "w"], ["y"], name="layer", **({"transB": 1} if rows else {}))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size]) for name, size in (("x", WIDTH), ("y", 48))]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], [numpy_helper.from_array(stands, "w")])
    plain = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    quantized = weights_only.quantize_weights(plain, ())
    assert ort_nbits.fuse(quantized)[1] == 0
    made, count = ort_nbits.fuse(quantized, level=4)
    assert count == 1
    x = rng.standard_normal((5, WIDTH)).astype(np.float32)
    step = np.abs(weights).max(0) / 127
    expected = x @ (np.rint(weights / step) * step)
    off = run(made, tmp_path, x=x) - expected
    assert 10 * np.log10(np.square(expected).sum() / np.square(off).sum()) > 35


def test_blocks_worked_by_hand():
    """Two rows of 16 in one bucket each: offset -0.5 is zero point 1 of a step of 0.5, -0.25 is none."""
    from edgekd.quantize.encoded import Encoded

    indices = np.tile(np.arange(16, dtype=np.uint8), (2, 1))
    scale = np.array([0.5, 1.0], np.float32)
    whole = ort_nbits.blocks_of(Encoded(indices, scale, np.array([-0.5, -3.0], np.float32), None, 16, (2, 16)), rows=True)
    assert whole.rest is None
    assert whole.zero.tolist() == [[1], [3]]
    assert whole.scale.tolist() == [[0.5], [1.0]]
    between = ort_nbits.blocks_of(Encoded(indices, scale, np.array([-0.25, -3.0], np.float32), None, 16, (2, 16)), rows=True)
    assert between.zero is None
    assert between.rest.tolist() == [[3.75], [5.0]]  # offset + 8 steps


def variant(shared, tmp_path) -> Variant:
    folder = tmp_path / "variant"
    folder.mkdir()
    onnx.save(written(shared, Symmetric(32, 4))[0], folder / "packed.onnx")
    scheme = Scheme(weights=Weights(bits=4, group=32, symmetric=True))
    return Variant("w4", "round-to-nearest", scheme, folder, {"model": folder / "packed.onnx"}, "torch")


@pytest.mark.parametrize(
    ("options", "form"),
    [
        ({}, {}),  # no cache: many tokens at once
        ({"weights": "stored"}, {"MatMulNBits": 3}),
        ({"weights": "stored", "activations": "int8"}, {ort_form.ROUNDED: 3}),
        ({"weights": "expanded"}, {}),
    ],
)
def test_the_target_says_how_weights_are_multiplied(shared, tmp_path, options, form):
    target = dataclasses.replace(load_target("onnxruntime-cpu"), options=options)
    (tmp_path / "made").mkdir()
    file = backend.convert(variant(shared, tmp_path), target, tmp_path / "made")["model"]
    assert backend.form(file) == form
    assert ort_form.rounds(backend.form(file)) == (options.get("activations") == "int8")


def test_graphs_that_read_a_cache_get_weights_as_stored(shared, tmp_path):
    made = variant(shared, tmp_path)
    model = onnx.load(made.graphs["model"])
    model.graph.input.append(helper.make_tensor_value_info("past_key_values.0.key", TensorProto.FLOAT, ["batch", 1, "past", 4]))
    onnx.save(model, made.graphs["model"])
    (tmp_path / "made").mkdir()
    file = backend.convert(made, load_target("onnxruntime-cpu"), tmp_path / "made")["model"]
    assert backend.form(file) == {"MatMulNBits": 3}
