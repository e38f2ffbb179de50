"""What is checked of QNN without any of Qualcomm's software."""

import numpy as np
import onnx
import pytest
from backends import qnn_nets as nets
from onnx import TensorProto, helper

from edgekd.backends import qnn
from edgekd.backends.qnn_binary import inspect, soc_of
from edgekd.backends.qnn_graph import prepared, signed_activations
from edgekd.errors import BadInput, Missing
from edgekd.recipe import VariantRecipe
from edgekd.targets import load_target


def context(folder, told=b"soc_type=SM8650;arch=75;", beside=False, extra=()):
    """A context file such as ONNX Runtime writes: around the binary, which says what it is for."""
    cache = b"\x00\x01" + told + b"\xff" * 8
    if beside:
        (folder / "model_qnn.bin").write_bytes(cache)
        cache = b"model_qnn.bin"
    node = helper.make_node(
        "EPContext",
        ["image"],
        ["y"],
        domain="com.microsoft",
        embed_mode=int(not beside),
        main_context=1,
        ep_cache_context=cache,
    )
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in ("image", "y")]
    made = helper.make_model(helper.make_graph([node, *extra], "g", ends[:1], ends[1:]))
    file = folder / "model.onnx"
    onnx.save(made, file)
    return file


@pytest.mark.parametrize(
    ("name", "soc"),
    [
        ("snapdragon-8-gen-2", (43, "SM8550", 73)),
        ("snapdragon-8-gen-3", (57, "SM8650", 75)),
        ("snapdragon-8-elite", (69, "SM8750", 79)),
    ],
)
def test_the_shipped_targets_name_their_soc(name, soc):
    target = load_target(name)
    found = soc_of(target.options)
    assert (found.model, found.name, found.arch) == soc
    assert target.precision == "fp16"
    assert target.quantizer == "qnn"
    assert target.static


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"soc_model": 9999}, r"soc_model 9999 is unknown; known are .*57 \(SM8650, v75\)"),
        ({"soc_model": None}, "needs options.soc_model"),
        ({"htp_arch": 74}, r"htp_arch 74 does not exist on soc_model 57 \(SM8650\), which is v75"),
        ({"soc": 57}, "unknown option `soc`"),
    ],
)
def test_a_snapdragon_that_does_not_exist_is_refused(options, says, tmp_path):
    import re

    target = nets.target(**options)
    told = [
        qnn.refuses(VariantRecipe(name="v", method="none").scheme, target),
        qnn.refuses_graph(nets.save(nets.convnet(), tmp_path), target),
        *qnn.wrong(context(tmp_path), target),
    ]
    assert len(told) == 3
    assert all(re.search(says, text) for text in told)


def test_the_soc_in_the_binary_is_checked(tmp_path):
    assert qnn.wrong(context(tmp_path), nets.target()) == []
    assert qnn.wrong(context(tmp_path, beside=True), nets.target()) == []
    (wrong,) = qnn.wrong(context(tmp_path, b"soc_type=SM8550;arch=73;"), nets.target())
    assert "compiled for SM8550 (v73), and A phone is SM8650 (v75)" in wrong
    (wrong,) = qnn.wrong(context(tmp_path, b"nothing"), nets.target())
    assert "compiled for unknown" in wrong


def test_a_binary_that_is_missing_is_bad_input(tmp_path):
    file = context(tmp_path, beside=True)
    (tmp_path / "model_qnn.bin").unlink()
    with pytest.raises(BadInput, match=r"`model_qnn\.bin` is not beside it"):
        inspect(file)


def test_a_binary_is_looked_for_beside_its_file_alone(tmp_path):
    (tmp_path / "deeper").mkdir()
    file = context(tmp_path / "deeper")
    made = onnx.load(str(file))
    for attribute in made.graph.node[0].attribute:
        if attribute.name == "ep_cache_context":
            attribute.s = b"../secret.bin"
        if attribute.name == "embed_mode":
            attribute.i = 0
    onnx.save(made, file)
    (tmp_path / "secret.bin").write_bytes(b"soc_type=SM8650;arch=75;")
    with pytest.raises(BadInput, match="not beside it"):
        inspect(file)


def test_what_lies_beside_the_compiled_part_is_wrong(tmp_path):
    file = context(tmp_path, extra=[helper.make_node("Relu", ["y"], ["z"])])
    (wrong,) = qnn.wrong(file, nets.target())
    assert wrong.startswith("Relu lie outside the compiled part")


def test_a_file_that_was_not_compiled_is_wrong(tmp_path):
    (wrong,) = qnn.wrong(nets.save(nets.convnet(), tmp_path), nets.target())
    assert "no QNN context binary" in wrong


def test_a_broken_file_is_bad_input(tmp_path):
    file = tmp_path / "model.onnx"
    file.write_bytes(b"not a graph")
    with pytest.raises(BadInput, match="cannot be read as ONNX"):
        qnn.wrong(file, nets.target())


def quantized(kind, zero):
    nodes = [
        ("Transpose", ["image"], ["t"], {"perm": [0, 3, 1, 2]}),
        ("QuantizeLinear", ["t", "s", "z"], ["q"], {}),
        ("DequantizeLinear", ["q", "s", "z"], ["x"], {}),
        ("QuantizeLinear", ["weight", "s", "zw"], ["qw"], {}),
        ("DequantizeLinear", ["qw", "s", "zw"], ["w"], {}),
        ("Conv", ["x", "w"], ["y"], {}),
    ]
    tensors = {
        "s": np.float32(0.1), "z": np.array(zero, kind), "zw": np.uint8(128), "weight": np.ones((3, 3, 1, 1), np.float32),
    }  # fmt: skip
    return nets.model(nodes, tensors, outputs=(3, 8, 8), opset=21, dtype=TensorProto.FLOAT)


@pytest.mark.parametrize(("kind", "zero", "found"), [("u1", 128, []), ("u2", 9, []), ("i1", 0, ["t"]), ("i2", 0, ["t"])])
def test_signed_activations_are_found(kind, zero, found, tmp_path):
    made = quantized(kind, zero)
    assert signed_activations(made) == found
    wrong = qnn.wrong(nets.save(made, tmp_path), nets.target())
    assert any("signed integers (t)" in text for text in wrong) == bool(found)


def test_bytes_become_numbers_without_a_cast():
    made = prepared(nets.convnet())
    kinds = [node.op_type for node in made.graph.node]
    assert "Cast" not in kinds
    assert kinds[:2] == ["Transpose", "DequantizeLinear"]
    assert [axis.dim_value for axis in made.graph.input[0].type.tensor_type.shape.dim] == [1, 8, 8, 3]
    import onnxruntime

    x = nets.pictures(1)
    run = lambda made: onnxruntime.InferenceSession(made.SerializeToString()).run(None, {"image": x})[0]  # noqa: E731
    assert np.array_equal(run(made), run(nets.convnet()))


@pytest.mark.parametrize(
    ("parts", "refused"),
    [
        ({"method": "none"}, None),
        ({"weights": {"bits": 8}, "activations": {"bits": 8}}, None),
        ({"weights": {"bits": 8}, "activations": {"bits": 16}}, None),
        ({"weights": {"bits": 8}}, "stores no w8: HTP's compiler expands weights"),
        ({"weights": {"bits": 4}}, "as large as fp32's; quantize activations too"),
        ({"weights": {"bits": 4, "kind": "codebook"}}, "stores no w4c"),
        ({"weights": {"bits": 4}, "activations": {"bits": 8}}, "cannot store w4a8"),
    ],
)
@pytest.mark.parametrize("name", ["snapdragon-8-gen-2", "snapdragon-8-gen-3", "snapdragon-8-elite"])
def test_what_can_be_stored(name, parts, refused):
    told = qnn.refuses(VariantRecipe(name="v", **parts).scheme, load_target(name))
    assert told is None if refused is None else refused in told


def test_without_the_simulator_the_list_of_operators_is_asked(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    einsum = nets.convnet([("Einsum", ["r", "r"], ["c"], {"equation": "bchw,bchw->bchw"})])
    refused = qnn.refuses_graph(nets.save(einsum, tmp_path), nets.target())
    assert refused.startswith("A phone has no Einsum (node n6); use layers without")
    assert qnn.refuses_graph(nets.save(nets.convnet(), tmp_path), nets.target()) is None


def test_opset_and_open_shapes_are_refused(tmp_path):
    new = nets.convnet()
    new.opset_import[0].version = 22
    assert "opset 22 is above 21" in qnn.refuses_graph(nets.save(new, tmp_path), nets.target())
    found = nets.model([("NonZero", ["image"], ["n"], {}), ("Cast", ["n"], ["y"], {"to": 1})], {}, outputs=("found",))
    assert "takes fixed shapes alone, and the size of what n0 (NonZero) gives depends" in qnn.refuses_graph(
        nets.save(found, tmp_path), nets.target()
    )


def test_missing_software_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if "qnn" in name else object())
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("sys.platform", "linux")
    means = qnn.executes(nets.target())
    assert means.by is None
    assert means.why == "onnxruntime-qnn not installed here: pip install onnxruntime-qnn"
    with pytest.raises(Missing, match="pip install onnxruntime-qnn"):
        qnn.load(context(tmp_path), nets.target())
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    assert "x86-64 Linux alone" in qnn.missing()


def test_there_is_no_exact_reading_of_a_binary(tmp_path):
    assert qnn.load(context(tmp_path), nets.target(), exact=True) is None


def test_the_interface_is_that_of_one_sample(tmp_path):
    told = qnn.interface(context(tmp_path))
    assert told["inputs"] == [{"name": "image", "dtype": "float32", "shape": [1, 2]}]
