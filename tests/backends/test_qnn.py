"""QNN where Qualcomm's compiler and simulator are installed."""

import dataclasses
import hashlib
import os
import subprocess
import sys

import numpy as np
import onnx
import pytest
from backends import qnn_nets as nets

from edgekd.backends import onnxruntime as cpu
from edgekd.backends import qnn
from edgekd.backends.qnn_graph import prepared
from edgekd.backends.qnn_process import Process
from edgekd.errors import BadInput
from edgekd.parity import compare
from edgekd.quantize.variant import Variant
from edgekd.recipe import VariantRecipe
from edgekd.targets import load_target

pytestmark = pytest.mark.skipif(qnn.missing() is not None, reason=str(qnn.missing()))

TARGETS = ("snapdragon-8-gen-2", "snapdragon-8-gen-3", "snapdragon-8-elite")


def variant(file, **parts):
    scheme = VariantRecipe(name="v", **(parts or {"method": "none"})).scheme
    return Variant("v", "none", scheme, file.parent, {"model": file}, "graph")


def converted(made, folder, target, **parts):
    (folder / "out").mkdir(exist_ok=True)
    return qnn.convert(variant(nets.save(made, folder), **parts), target, folder / "out")["model"]


def reference(images):
    """The convnet in NumPy: float64, straight from its definition."""
    w = {t.name: onnx.numpy_helper.to_array(t).astype(np.float64) for t in nets.convnet().graph.initializer}
    x = np.pad(images.astype(np.float64).transpose(0, 3, 1, 2) / 64 - 2, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3))
    conv = np.einsum("nihwab,oiab->nohw", windows, w["w"]) + w["b"][:, None, None]
    return np.maximum(conv, 0).mean((2, 3)) @ w["m"]


@pytest.mark.parametrize("name", TARGETS)
def test_full_precision_computes_what_numpy_does_on_every_snapdragon(name, tmp_path):
    target = load_target(name)
    file = converted(nets.convnet(), tmp_path, target)
    images = nets.pictures(3)
    session = qnn.load(file, target)
    made = session.run({"image": images, "unused": images})
    assert made["y"].shape == (3, 10)
    assert compare({"y": reference(images)}, made).sqnr_db > 55  # half precision
    (provider,) = session.providers
    assert provider == "QNNExecutionProvider"
    assert session.providers[provider] >= 7  # Transpose to MatMul
    assert qnn.wrong(file, target) == []
    assert qnn.interface(file)["inputs"] == [{"name": "image", "dtype": "uint8", "shape": [1, 8, 8, 3]}]
    assert sorted(p.name for p in file.parent.iterdir()) == ["model.onnx"]


def test_htp_takes_a_byte_for_a_truth_value_in_a_cast(tmp_path):
    """Why prepared() writes DequantizeLinear."""
    made = nets.convnet()
    cast = nets.save(made, tmp_path)
    images = nets.pictures(1)
    fixed = nets.save(onnx.shape_inference.infer_shapes(_one(made)), tmp_path, "cast")
    right = nets.save(prepared(onnx.load(str(cast))), tmp_path, "right")
    ratios = []
    for file in (fixed, right):
        process = Process(file.name)
        process.ask(do="load", file=str(file), options={"soc_model": 57})
        ratios.append(compare({"y": reference(images)}, process.ask({"image": images}, do="run")[1]).sqnr_db)
    assert ratios[0] < 10
    assert ratios[1] > 55


def _one(model):
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    return model


def test_the_same_graph_gives_the_same_bytes(tmp_path):
    target = nets.target()
    digests = set()
    for name in ("here", "another/folder"):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        digests.add(hashlib.sha256(converted(nets.convnet(), folder, target).read_bytes()).hexdigest())
    assert len(digests) == 1


def test_a_binary_for_another_snapdragon_is_caught(tmp_path):
    """The simulator would run it without complaint."""
    file = converted(nets.convnet(), tmp_path, nets.target(soc_model=43))
    process = Process("other")
    process.ask(do="load", file=str(file), options={"soc_model": 57})
    (wrong,) = qnn.wrong(file, nets.target())
    assert "compiled for SM8550 (v73)" in wrong
    with pytest.raises(BadInput, match=r"compiled for SM8550 \(v73\), and A phone is SM8650"):
        qnn.load(file, nets.target())


def test_an_operator_that_htp_does_not_take_is_named(tmp_path):
    einsum = nets.convnet([("Einsum", ["r", "r"], ["e"], {"equation": "bchw,bchw->bchw"}), ("Relu", ["e"], ["c"], {})])
    refused = qnn.refuses_graph(nets.save(einsum, tmp_path), nets.target())
    assert "HTP does not take Einsum (node n6)" in refused
    assert "Conv" not in refused
    with pytest.raises(BadInput, match=r"graph model for phone: HTP does not take Einsum"):
        converted(einsum, tmp_path, nets.target())
    assert not list((tmp_path / "out").iterdir())


def test_an_operator_is_named_where_htp_takes_none_at_all(tmp_path):
    """Then the log of ONNX Runtime names no node."""
    nodes = [("Einsum", ["image", "w"], ["y"], {"equation": "bhwc,cd->bd"})]
    alone = nets.model(nodes, {"w": np.ones((3, 10), np.float32)}, dtype=onnx.TensorProto.FLOAT)
    refused = qnn.refuses_graph(nets.save(alone, tmp_path), nets.target())
    assert "HTP does not take Einsum (node n0)" in refused
    assert "did not load" not in refused


@pytest.fixture
def half_on_the_cpu(tmp_path):
    """A compiled file with a node outside of the compiled part, which the CPU could compute."""
    file = converted(nets.convnet(), tmp_path, nets.target())
    model = onnx.load(str(file))
    model.graph.node[0].output[0] = "inside"
    model.graph.node.append(onnx.helper.make_node("Einsum", ["inside"], ["y"], name="outside", equation="bc->bc"))
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("inside", onnx.TensorProto.FLOAT, [1, 10]))
    del model.opset_import[:]
    model.opset_import.extend([onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("com.microsoft", 1)])
    onnx.save(model, file)
    return file


def test_no_part_of_a_graph_falls_back_to_the_cpu(half_on_the_cpu):
    process = Process("half")
    with pytest.raises(BadInput, match=r"HTP does not take .*Einsum \(node outside\)"):
        process.ask(do="load", file=str(half_on_the_cpu), options={"soc_model": 57})


def test_no_part_of_a_graph_falls_back_to_the_cpu_in_check_py(half_on_the_cpu):
    code = (
        "import sys; from pathlib import Path\n"
        "from edgekd.export.check_parts import onnxruntime_qnn as part\n"
        "part.open_session(Path(sys.argv[1]), 1)\n"
    )
    run = subprocess.run([sys.executable, "-c", code, str(half_on_the_cpu)], capture_output=True, text=True)
    assert run.returncode != 0
    assert "fallback to CPU EP has been explicitly disabled" in run.stderr.splitlines()[-1]


def test_a_wrong_backend_path_is_no_silent_cpu(tmp_path):
    nowhere = nets.target(backend_path="/nowhere/libQnnHtp.so")
    with pytest.raises(BadInput, match="nothing of the graph was taken by QNN"):
        converted(nets.convnet(), tmp_path, nowhere)
    refused = qnn.refuses_graph(nets.save(nets.convnet(), tmp_path), nowhere)
    assert "HTP backend did not load (Unable to load backend, error: /nowhere/libQnnHtp.so" in " ".join(refused.split())
    file = converted(nets.convnet(), tmp_path, nets.target())
    with pytest.raises(BadInput, match="nothing of the graph was taken by QNN"):
        qnn.load(file, nowhere)


def signed(kind, folder):
    """A Softmax between two QDQ pairs, its tensors in signed or unsigned integers of the same scale."""
    zero = {"i1": 0, "u1": 128}[kind]
    nodes = []
    for at, (before, after) in enumerate([("t", "x"), ("soft", "y")]):
        nodes.append(
            [
                ("QuantizeLinear", [before, f"s{at}", "z"], [f"q{at}"], {}),
                ("DequantizeLinear", [f"q{at}", f"s{at}", "z"], [after], {}),
            ]
        )
    parts = [("Identity", ["image"], ["t"], {}), *nodes[0], ("Softmax", ["x"], ["soft"], {"axis": -1}), *nodes[1]]
    tensors = {"s0": np.float32(3 / 128), "s1": np.float32(1 / 127), "z": np.array(zero, kind)}
    made = nets.model(parts, tensors, outputs=nets.PIXELS, axes=(1,), dtype=onnx.TensorProto.FLOAT)
    return nets.save(made, folder, kind)


def test_signed_activations_are_wrong_on_htp_and_refused(tmp_path):
    x = {"image": np.random.default_rng(0).uniform(-2, 2, (1, *nets.PIXELS)).astype(np.float32)}
    ratios = {}
    for kind in ("u1", "i1"):
        file = signed(kind, tmp_path)
        process = Process(kind)
        process.ask(do="load", file=str(file), options={"soc_model": 57})
        ratios[kind] = compare(cpu.load(file, exact=True).run(x), process.ask(x, do="run")[1]).sqnr_db
    assert ratios["u1"] > 30
    assert ratios["i1"] < 5
    parts = {"weights": {"bits": 8}, "activations": {"bits": 8}}
    with pytest.raises(BadInput, match=r"quantized to signed integers \(t\)"):
        qnn.convert(variant(tmp_path / "i1.onnx", **parts), nets.target(), tmp_path)


def test_a_weights_only_variant_is_not_converted(tmp_path):
    with pytest.raises(BadInput, match="expands weights that are quantized alone"):
        converted(nets.convnet(), tmp_path, nets.target(), weights={"bits": 8})


def test_weights_alone_in_integers_are_stored_dense(tmp_path):
    """Why they are refused: int8 or float32 in the ONNX file, the binary has two bytes a weight."""
    rng = np.random.default_rng(0)
    q = rng.integers(-127, 128, (192, 1024)).astype(np.int8)
    tail = [("Flatten", ["image"], ["f"], {})]
    dense = nets.model([*tail, ("MatMul", ["f", "w"], ["y"], {})], {"w": q / np.float32(900)}, (1024,), dtype=1)
    packed = nets.model(
        [*tail, ("DequantizeLinear", ["q", "s"], ["w"], {}), ("MatMul", ["f", "w"], ["y"], {})],
        {"q": q, "s": np.float32(1 / 900)}, (1024,), dtype=1,
    )  # fmt: skip
    sizes = [converted(made, tmp_path, nets.target()).stat().st_size for made in (dense, packed)]
    assert sizes[1] > 0.98 * sizes[0] > 2 * 192 * 1024


def test_a_crash_of_the_simulator_is_told_and_survived(tmp_path):
    file = converted(nets.convnet(), tmp_path, nets.target())
    session = qnn.load(file, nets.target())
    session._process._process.kill()
    with pytest.raises(BadInput, match=r"crashed \(signal 9\)"):
        session.run({"image": nets.pictures(1)})
    again = qnn.load(file, nets.target())
    assert again.run({"image": nets.pictures(1)})["y"].shape == (1, 10)


def test_a_worker_ends_with_its_session(tmp_path):
    session = qnn.load(converted(nets.convnet(), tmp_path, nets.target()), nets.target())
    process = session._process._process
    assert process.poll() is None
    del session
    assert process.poll() is not None


def test_a_damaged_binary_is_bad_input(tmp_path):
    file = converted(nets.convnet(), tmp_path, nets.target())
    model = onnx.load(str(file))
    (cache,) = (a for a in model.graph.node[0].attribute if a.name == "ep_cache_context")
    at = cache.s.index(b"soc_type=")
    cache.s = b"\x00" * 64 + cache.s[at : at + 4000]
    onnx.save(model, file)
    with pytest.raises(BadInput, match=r"model\.onnx"):
        qnn.load(file, nets.target())


def test_this_process_keeps_its_own_onnx_runtime(tmp_path):
    qnn.load(converted(nets.convnet(), tmp_path, nets.target()), nets.target()).run({"image": nets.pictures(1)})
    assert "onnxruntime_qnn" not in sys.modules
    import onnxruntime

    assert not [device for device in onnxruntime.get_ep_devices() if "QNN" in device.ep_name]


def test_the_part_of_check_py_runs_a_compiled_file(tmp_path):
    file = converted(nets.convnet(), tmp_path, nets.target())
    images = nets.pictures(2)
    np.save(tmp_path / "x.npy", images)
    code = (
        "import sys, numpy as np; from pathlib import Path\n"
        "from edgekd.export.check_parts import onnxruntime_qnn as part\n"
        "call, seconds = part.open_session(Path(sys.argv[1]), 1)\n"
        "np.save(sys.argv[3], call({'image': np.load(sys.argv[2])})['y'])\n"
        "part.open_session(Path(sys.argv[1]), 1)\n"  # check.py opens a second one for its timing
        "print(part.version(), call.providers)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(file), str(tmp_path / "x.npy"), str(tmp_path / "y.npy")],
        capture_output=True, text=True, env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "with QNN" in run.stdout
    assert "QNNExecutionProvider" in run.stdout
    assert compare({"y": reference(images)}, {"y": np.load(tmp_path / "y.npy")}).sqnr_db > 55


def test_a_trained_student_goes_through_full_precision_and_both_kinds_of_integers(trained, tmp_path):
    from edgekd.quantize import dialects
    from edgekd.quantize.calibration import from_task
    from edgekd.recipe import Calibration

    target = load_target("snapdragon-8-gen-3")
    inputs = {"image": trained.task.inputs(trained.splits.test.take(np.arange(6)))["image"]}
    source = trained.source["model"]
    assert qnn.refuses_graph(source, target) is None
    batches = list(from_task(trained.task, trained.splits.train, Calibration(samples=64), seed=0))
    for bits, least in ((None, 50), (8, 25), (16, 45)):
        parts = {"method": "none"} if bits is None else {"weights": {"bits": 8}, "activations": {"bits": bits}}
        recipe = VariantRecipe(name="v", **parts)
        file = source
        if bits:
            file = tmp_path / f"a{bits}.onnx"
            onnx.save(dialects.quantize("qnn", source, [], batches, recipe), file)
        folder = tmp_path / str(bits)
        folder.mkdir()
        made = qnn.convert(dataclasses.replace(variant(file), scheme=recipe.scheme), target, folder)["model"]
        near = compare(cpu.load(file, exact=True).run(inputs), qnn.load(made, target).run(inputs))
        assert near.sqnr_db > least, bits
