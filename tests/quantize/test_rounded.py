"""That convolutions of a variant are computed in integers by ONNX Runtime whatever function follows, and what that costs."""

import time
import warnings

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional

from edgekd.bench.executed import executed
from edgekd.bench.things import Thing, facts
from edgekd.quantize import Job, make, rounded
from edgekd.quantize.variant import file_runner
from edgekd.recipe import Activations, VariantRecipe
from edgekd.targets import Target, load_target

INT8 = VariantRecipe(
    name="int8",
    weights={"bits": 8},
    activations={"bits": 8},
    calibration={"samples": 8, "batch_size": 8, "overflow_fix": "off"},
)
ONNX_RUNTIME = Target("x", "X", "onnxruntime", stores=("w8a8",))
NAMES = ("y0", "y1", "y2")
FUNCTIONS = {
    "HardSwish": functional.hardswish,
    "HardSigmoid": lambda x: (0.2 * x + 0.5).clamp(0, 1),  # ONNX's, where alpha is not given
    "SiLU": functional.silu,
    "Gelu": functional.gelu,
    "LeakyRelu": lambda x: functional.leaky_relu(x, 0.01),
    "Sigmoid": torch.sigmoid,
    "Relu": functional.relu,
}


class Net:
    """Three convolutions, the second of them depthwise, each with the function after it; a mean and a linear layer. As ONNX and in torch."""

    def __init__(self, function, file):
        rng = np.random.default_rng(0)
        self.function, self.file = function, file
        shapes = {"first": (16, 3, 3, 3), "depthwise": (16, 1, 3, 3), "last": (24, 16, 1, 1), "head": (24, 10)}
        self.weights = {
            name: (rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]) if len(shape) == 4 else shape[0])).astype(np.float32)
            for name, shape in shapes.items()
        }
        self.images = rng.integers(0, 256, (16, 16, 16, 3), dtype=np.uint8)
        self.mean, self.deviation = (
            np.float32([100, 120, 140]).reshape(1, 3, 1, 1),
            np.float32([60, 50, 40]).reshape(1, 3, 1, 1),
        )
        onnx.save(self._model(), file)

    def _model(self):
        nodes = [
            helper.make_node("Transpose", ["image"], ["turned"], "turn", perm=[0, 3, 1, 2]),
            helper.make_node("Cast", ["turned"], ["float"], "cast", to=TensorProto.FLOAT),
            helper.make_node("Sub", ["float", "mean"], ["centred"], "centre"),
            helper.make_node("Div", ["centred", "deviation"], ["x0"], "scale"),
        ]
        for number, name in enumerate(("first", "depthwise", "last")):
            pads, group = ([1] * 4, 16 if name == "depthwise" else 1) if name != "last" else ([0] * 4, 1)
            nodes.append(helper.make_node("Conv", [f"x{number}", name], [f"y{number}"], name, pads=pads, group=group))
            nodes += self._after(f"y{number}", f"x{number + 1}")
        nodes.append(helper.make_node("ReduceMean", ["x3", "axes"], ["pooled"], "pool", keepdims=0))
        nodes.append(helper.make_node("Gemm", ["pooled", "head"], ["logits"], "head"))
        ends = [
            helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 16, 16, 3]),
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10]),
        ]
        constants = {**self.weights, "mean": self.mean, "deviation": self.deviation, "axes": np.int64([2, 3])}
        tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
        graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)

    def _after(self, name, result):
        if self.function != "SiLU":
            return [helper.make_node(self.function, [name], [result], result)]
        return [
            helper.make_node("Sigmoid", [name], [f"{name}.gate"], f"{name}.gate"),
            helper.make_node("Mul", [name, f"{name}.gate"], [result], result),
        ]

    def in_torch(self):
        after, w = FUNCTIONS[self.function], {name: torch.from_numpy(value) for name, value in self.weights.items()}
        x = torch.from_numpy(self.images).permute(0, 3, 1, 2).float()
        x = (x - torch.from_numpy(self.mean)) / torch.from_numpy(self.deviation)
        x = after(functional.conv2d(x, w["first"], padding=1))
        x = after(functional.conv2d(x, w["depthwise"], padding=1, groups=16))
        return (after(functional.conv2d(x, w["last"])).mean((2, 3)) @ w["head"]).numpy()

    def variant(self, folder, *targets, symmetric=False):
        recipe = INT8.model_copy(update={"activations": Activations(bits=8, symmetric=symmetric)})
        batches = [{"image": self.images[:8]}, {"image": self.images[8:]}]
        return make(recipe, Job({"model": self.file}, targets or (ONNX_RUNTIME,), lambda name, settings: batches), folder)


def computed(file):
    thing = Thing("int8", "onnxruntime", {"model": file})
    return executed(thing, facts(file))


def run(file, images):
    return file_runner({"model": file})("model", {"image": images})["logits"]


def sqnr(expected, made):
    return 10 * np.log10((expected**2).sum() / ((made - expected) ** 2).sum())


@pytest.mark.parametrize("function", FUNCTIONS)
def test_convolutions_are_computed_in_integers_whatever_follows(function, tmp_path):
    net = Net(function, tmp_path / "model.onnx")
    made = net.variant(tmp_path / "int8")
    assert computed(made.graphs["model"]).heavy == 4
    assert computed(made.graphs["model"]).heavy_float == 0
    assert made.facts["nodes"]["model"]["rounded"] == (0 if function == "Relu" else 3)
    assert sqnr(net.in_torch(), run(made.graphs["model"], net.images)) > 25


def test_a_runtime_that_fuses_the_function_gets_the_file_without_the_roundings(tmp_path):
    net = Net("HardSwish", tmp_path / "model.onnx")
    intel = load_target("intel-cpu")
    assert intel.quantizer == "fused"
    made = net.variant(tmp_path / "int8", ONNX_RUNTIME, intel)
    usual, fused = (made.for_target(target).graphs["model"] for target in (ONNX_RUNTIME, intel))
    kinds = [[node.op_type for node in onnx.load(file).graph.node] for file in (usual, fused)]
    assert kinds[0].count("QuantizeLinear") == kinds[1].count("QuantizeLinear") + 3
    assert computed(fused).heavy_float == 3
    widths = [[t.dims[-1] for t in onnx.load(file).graph.initializer if t.dims[:2] == [1, 3]] for file in (usual, fused)]
    assert widths == [[16, 16], [1, 1]]  # the normalisation's constants: of a row of the picture where channels come last
    before, after = (sqnr(net.in_torch(), run(file, net.images)) for file in (fused, usual))
    assert after > before - 4  # two roundings where there was one: 3 dB, were they alike


def test_symmetric_activations_have_zero_in_the_middle(tmp_path):
    net = Net("SiLU", tmp_path / "model.onnx")
    model = onnx.load(net.variant(tmp_path / "int8", symmetric=True).graphs["model"])
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    zeros = [tensors[node.input[2]] for node in model.graph.node if node.op_type == "QuantizeLinear" and node.input[0] in NAMES]
    assert zeros == [128] * 3
    assert sqnr(net.in_torch(), run(net.file.parent / "int8" / "model.onnx", net.images)) > 22


def test_the_range_ends_where_the_function_is_flat(tmp_path):
    net = Net("HardSwish", tmp_path / "model.onnx")
    net.weights["first"] *= 8  # far below -3, where HardSwish is zero
    onnx.save(net._model(), net.file)
    model = onnx.load(net.variant(tmp_path / "int8").graphs["model"])
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    (rounding,) = (node for node in model.graph.node if node.op_type == "QuantizeLinear" and node.input[0] == "y0")
    scale, zero = (tensors[name].astype(np.float64) for name in rounding.input[1:])
    x = torch.from_numpy(net.images).permute(0, 3, 1, 2).float()
    seen = functional.conv2d((x - net.mean) / net.deviation, torch.from_numpy(net.weights["first"]), padding=1)
    assert float(seen.min()) < -30
    assert -zero * scale == pytest.approx(-3, abs=0.3)
    assert (255 - zero) * scale == pytest.approx(float(seen.max()), rel=0.05)


def test_what_the_graph_gives_is_not_rounded_anew(tmp_path):
    """A convolution whose result leaves the graph, moved but not calculated with, stays as NNCF has it."""
    net = Net("HardSwish", tmp_path / "model.onnx")
    model = onnx.load(net.variant(tmp_path / "int8").graphs["model"])
    assert rounded.unrounded(model) == []
    for node in list(model.graph.node):
        if node.name == "y2.quantize":
            (last,) = (n for n in model.graph.node if "y2" in n.output)
            last.output[0] = "moved"
            node.input[0] = "moved"
            model.graph.node.append(helper.make_node("Identity", ["moved"], ["seen"], "see"))
    assert rounded.unrounded(model) == ["moved"]
    model.graph.output.append(helper.make_tensor_value_info("seen", TensorProto.FLOAT, None))
    assert rounded.unrounded(model) == []


def test_where_rounding_costs_too_much_convolutions_stay_as_nncf_has_them(tmp_path):
    """Channels of sizes from 0.01 to 10 that are normalised one by one: one scale for all keeps nothing of the small ones."""
    rng = np.random.default_rng(0)
    first, last = (rng.normal(size=(8, 8, 3, 3)).astype(np.float32) / 9 for _ in range(2))
    first *= np.logspace(-2, 1, 8, dtype=np.float32).reshape(8, 1, 1, 1)
    constants = {"first": first, "last": last, "ones": np.ones(8, np.float32), "zeros": np.zeros(8, np.float32)}
    nodes = [
        helper.make_node("Conv", ["image", "first"], ["a"], "first", pads=[1] * 4),
        helper.make_node("InstanceNormalization", ["a", "ones", "zeros"], ["b"], "norm"),
        helper.make_node("Conv", ["b", "last"], ["logits"], "last", pads=[1] * 4),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 8, 12, 12]) for name in ("image", "logits")]
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), tmp_path / "model.onnx")
    images = rng.normal(size=(8, 8, 12, 12)).astype(np.float32)
    made = make(
        INT8,
        Job({"model": tmp_path / "model.onnx"}, (ONNX_RUNTIME,), lambda name, settings: [{"image": images}]),
        tmp_path / "m",
    )
    x = functional.instance_norm(functional.conv2d(torch.from_numpy(images), torch.from_numpy(first), padding=1))
    expected = functional.conv2d(x, torch.from_numpy(last), padding=1).numpy()
    assert sqnr(expected, run(made.graphs["model"], images)) > 25
    facts = made.facts["nodes"]["model"]
    assert facts["rounded"] == 0
    assert facts["left_unrounded"]["convolutions"] == 1
    assert facts["left_unrounded"]["sqnr_db"]["on"] < 10


def quantized_by_hand(after, result, file, count=1):
    """x -> int8 -> Conv that takes it as it is -> `after`, as many times as told: the result of each Conv is a multiple of 0.1."""
    constants = {
        "step": np.float32(0.1),
        "zero": np.uint8(100),
        "one": np.int8([[[[1]]]]),
        "unit": np.float32(1),
        "none": np.int8(0),
    }
    nodes = [helper.make_node("DequantizeLinear", ["one", "unit", "none"], ["w"])]
    for n in range(count):
        nodes += [
            helper.make_node("QuantizeLinear", [f"x{n}" if n else "x", "step", "zero"], [f"q{n}"]),
            helper.make_node("DequantizeLinear", [f"q{n}", "step", "zero"], [f"d{n}"]),
            helper.make_node("Conv", [f"d{n}", "w"], [f"c{n}"]),
            *after(f"c{n}", f"x{n + 1}" if n + 1 < count else result),
        ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 1, 1, "width"]) for name in ("x", result)]
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors), opset_imports=opsets, ir_version=9)
    onnx.save(model, file)
    return model


def test_a_function_that_the_graph_ends_with(tmp_path):
    model = quantized_by_hand(lambda x, y: [helper.make_node("HardSwish", [x], [y])], "y", tmp_path / "before.onnx")
    x = np.linspace(-10, 5, 151, dtype=np.float32).reshape(1, 1, 1, -1)
    assert rounded.round_results(model, [{"x": x}], symmetric=False) == 1
    onnx.save(model, tmp_path / "after.onnx")
    tensors = {tensor.name: numpy_helper.to_array(tensor).astype(np.float64) for tensor in model.graph.initializer}
    (scale, zero) = next(
        [tensors[name] for name in node.input[1:]]
        for node in model.graph.node
        if node.op_type == "QuantizeLinear" and node.input[0] == "c0"
    )
    assert -zero * scale == pytest.approx(-3, abs=0.1)  # below, HardSwish is zero
    assert (255 - zero) * scale == pytest.approx(5, abs=0.1)
    made = file_runner({"m": tmp_path / "after.onnx"})("m", {"x": x})["y"]
    np.testing.assert_allclose(made, x * np.clip(x / 6 + 0.5, 0, 1), atol=1.4 * scale / 2)


@pytest.mark.parametrize("function", ["Elu", "x/x", "com.microsoft"])
def test_functions_that_overflow_have_no_value_or_are_not_onnxs(function, tmp_path):
    """No warning, no error; where a function cannot be followed, all that was seen is kept."""
    nodes = {
        "Elu": lambda x, y: [helper.make_node("Elu", [x], [y])],
        "x/x": lambda x, y: [helper.make_node("Div", [x, x], [y])],
        "com.microsoft": lambda x, y: [helper.make_node("Gelu", [x], [y], domain="com.microsoft")],
    }
    model = quantized_by_hand(nodes[function], "y", tmp_path / "before.onnx")
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.float32(1), "step"))
    x = np.float32([-40 if function == "com.microsoft" else 0, 1, 120]).reshape(1, 1, 1, -1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rounded.round_results(model, [{"x": x}], symmetric=False)
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert tensors["c0.scale"] * 255 == pytest.approx(x.max() - x.min(), rel=2e-3)


def test_time_does_not_grow_with_the_square_of_the_layers(tmp_path):
    model = quantized_by_hand(lambda x, y: [helper.make_node("HardSwish", [x], [y])], "y", tmp_path / "before.onnx", 800)
    began = time.process_time()
    found = rounded._functions(model, rounded.unrounded(model))
    assert len(found) == 800
    assert all(found.values())
    assert time.process_time() - began < 3  # it takes 0.3; where each layer was looked for in the whole file, 5.7
