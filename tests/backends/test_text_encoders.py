"""Text encoders on every kind of runtime: fixed lengths where it takes no others, filled up behind the text."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
import pytest
import tiny_texts
import torch

from edgekd import models
from edgekd.backends import backend_of, fixed, refuses_network, web
from edgekd.backends import onnxruntime as on_cpu
from edgekd.errors import BadInput
from edgekd.export import artifact
from edgekd.export import onnx as export
from edgekd.export.graph import Graph, torch_runner
from edgekd.models.transformers_model import transformers_here
from edgekd.parity import compare
from edgekd.quantize import Job, make, unpacked
from edgekd.quantize.variant import Variant
from edgekd.recipe import Gate, Model, Scheme, VariantRecipe
from edgekd.targets import load_target
from edgekd.tasks import task_of

LONGEST = 16


@dataclass(frozen=True)
class Encoder:
    """A tiny student, its full-precision file and one of 4-bit weights, five texts and their embeddings."""

    graph: Graph
    graphs: dict[str, list[Graph]]
    variants: dict[str, Variant]
    texts: dict[str, np.ndarray]
    embeddings: dict[str, Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Encoder:
    folder = tmp_path_factory.mktemp("encoder")
    recipe = tiny_texts.recipe(folder, tiny_texts.bert(folder / "bert", positions=160))
    task = task_of("text-embedding")
    splits = task.splits(recipe)
    _, student = task.models(recipe, splits)
    (graph,) = task.graphs(student, splits)
    export.write(graph, folder / "model.onnx")
    fp32 = Variant("fp32", "none", Scheme(), folder, {"model": folder / "model.onnx"}, "graph")
    job = Job(fp32.graphs, (), None, task, lambda: splits, lambda: student)
    made = {}
    for name, method in (("w4", "round-to-nearest"), ("w8", "ptq")):
        (folder / name).mkdir()
        config = VariantRecipe(name=name, method=method, weights={"bits": int(name[1]), "granularity": "channel"})
        made[name] = make(config, job, folder / name)
    assert made["w4"].weights is not None
    stored = unpacked.read(onnx.load(str(made["w8"].graphs["model"])))
    assert any("position_embeddings" in name for name in stored)  # large enough to be worth 8 bits
    texts = task.inputs(splits.test.take(np.arange(5)))
    assert texts["input_ids"].shape[1] < LONGEST

    def exactly(file):
        return lambda given: on_cpu.load(file, exact=True).run(given)

    runs = {name: exactly(variant.graphs["model"]) for name, variant in made.items()}
    runs["fp32"] = lambda given: torch_runner([graph])("model", given)
    rounded = task.graphs(models.restore(made["w4"].weights.parent, like=student), splits)
    return Encoder(graph, {"fp32": [graph], "w8": [graph], "w4": rounded}, {"fp32": fp32, **made}, texts, runs)


def test_the_file_says_how_long_it_gets_whatever_made_it(encoder):
    for name, variant in encoder.variants.items():
        model = onnx.load(str(variant.graphs["model"]))
        assert export.longest(model) == {"tokens": LONGEST}, name
        assert [[d.dim_param for d in v.type.tensor_type.shape.dim] for v in model.graph.input] == [["batch", "tokens"]] * 2
        made = fixed.fix_batch(model)
        assert [[d.dim_value for d in v.type.tensor_type.shape.dim] for v in made.graph.input] == [[1, LONGEST]] * 2
        assert fixed.unfit(model) is None


def test_a_fixed_file_gives_the_same_embeddings(encoder, tmp_path):
    made = fixed.fix_batch(onnx.load(str(encoder.variants["fp32"].graphs["model"])))
    export.save(made, tmp_path / "fixed.onnx")
    assert not {"Shape", "Slice"} & {node.op_type for node in made.graph.node}
    session = on_cpu.load(tmp_path / "fixed.onnx", exact=True)
    shapes = dict.fromkeys(encoder.texts, (1, LONGEST))
    found = fixed.one_by_one(session.run, encoder.texts, shapes=shapes)
    assert compare(encoder.embeddings["fp32"](encoder.texts), found).relative < 1e-5


def test_an_axis_of_unknown_length_is_refused(encoder):
    model = onnx.load(str(encoder.variants["fp32"].graphs["model"]))
    del model.metadata_props[:]
    assert "fixed shapes alone, and input_ids, attention_mask" in str(fixed.unfit(model))


def test_inputs_are_filled_up_with_zeros():
    given = {"a": np.array([[1, 2], [3, 4]]), "b": np.array([5, 6]), "c": np.ones((2, 1, 2))}
    made = fixed.filled(given, {"a": (1, 4), "c": (1, "tokens", 3)})
    assert made["a"].tolist() == [[1, 2, 0, 0], [3, 4, 0, 0]]
    assert made["b"].tolist() == [5, 6]
    assert made["c"].tolist() == [[[1, 1, 0]]] * 2
    with pytest.raises(BadInput, match=r"`a` is \(2, 2\), and the file is made for \(1, 1\)"):
        fixed.filled(given, {"a": (1, 1)})


STATIC_OPENVINO = dataclasses.replace(load_target("intel-npu"), options={"device": "CPU"}, precision="fp32")
TARGETS = {
    "onnxruntime-cpu": (load_target("onnxruntime-cpu"), ("fp32", "w4")),
    "openvino": (load_target("intel-cpu"), ("w4",)),
    "openvino, fixed": (STATIC_OPENVINO, ("fp32", "w4")),
    "coreml": (load_target("iphone-ios18"), ("fp32", "w4", "w8")),  # w8: positions are looked up in a table of 8 bits
    "qnn": (load_target("snapdragon-8-gen-3"), ("fp32",)),
    "tensorrt": (load_target("jetson-orin-nano"), ("fp32",)),
    "browser": (load_target("browser"), ("w4",)),
}


@pytest.mark.parametrize("name", TARGETS)
def test_artifacts_give_the_variants_embeddings(encoder, tmp_path, name):
    target, variants = TARGETS[name]
    backend = backend_of(target.backend)
    if reason := backend.missing():
        pytest.skip(reason)
    file = encoder.variants["fp32"].graphs["model"]
    assert (backend.refuses_graph(file, target) or refuses_network(target.backend, encoder.graph, target)) is None
    for variant in variants:
        run = encoder.embeddings[variant]
        made = artifact.make(
            encoder.variants[variant], target, tmp_path / variant, golden={"model": encoder.texts},
            reference=lambda _, given, run=run: run(given), gate=Gate(), graphs=lambda variant=variant: encoder.graphs[variant],
        )  # fmt: skip
        shapes = [one["shape"] for one in made.record["graphs"]["model"]["inputs"]]
        assert shapes == [[1, LONGEST] if target.static else ["batch", "tokens" if "openvino" not in name else "axis1"]] * 2
        inputs, outputs = made.golden()
        length = LONGEST if target.static else encoder.texts["input_ids"].shape[1]
        assert {v.shape for v in inputs["model"].values()} == {(5, length)}
        assert inputs["model"]["attention_mask"].sum() == encoder.texts["attention_mask"].sum()
        if name == "tensorrt":  # no GPU here: the file's own arithmetic, on 16-bit constants
            session = backend.load(made.graphs["model"], target, exact=True)
        elif backend.executes(target).by is None:
            pytest.skip(backend.executes(target).why)
        else:
            session = backend.load(made.graphs["model"], target)
        found = session.run(encoder.texts)  # as short as they are
        near = compare(outputs["model"], found)
        assert near.sqnr_db > (35 if target.precision == "fp16" else 90), (variant, near)
        assert not backend.wrong(made.graphs["model"], target) if hasattr(backend, "wrong") else True
    web.close_browsers()


def test_padding_does_not_count_in_core_ml(encoder, tmp_path):
    target, _ = TARGETS["coreml"]
    backend = backend_of("coreml")
    if reason := backend.missing():
        pytest.skip(reason)
    files = backend.convert(encoder.variants["fp32"], target, tmp_path, lambda: [encoder.graph])
    session = backend.load(files["model"], target)
    whole = fixed.filled(encoder.texts, dict.fromkeys(encoder.texts, (1, LONGEST)))
    other = {**whole, "input_ids": np.where(whole["attention_mask"] == 1, whole["input_ids"], 9)}
    assert compare(session.run(whole), session.run(other)).sqnr_db > 60
    with pytest.raises(BadInput, match="give less, such as fewer tokens"):
        session.run({name: np.ones((1, LONGEST + 1), np.int64) for name in encoder.texts})


def test_tensorrts_profile_spans_the_lengths(encoder, tmp_path):
    files = backend_of("tensorrt").convert(encoder.variants["fp32"], load_target("nvidia-gpu"), tmp_path)
    assert files["model"].is_file()
    told = json.loads((tmp_path / "build_engine.json").read_text())["graphs"]["model"]["profile"]
    assert told == {name: [[1, 1], [8, 4], [64, LONGEST]] for name in encoder.texts}


@pytest.mark.exhaustive
def test_a_decoder_that_embeds_texts_is_converted_to_core_ml(tmp_path):
    """Qwen3-Embedding is one: masks that transformers makes itself, the last token's state."""
    target, backend = load_target("iphone-ios18"), backend_of("coreml")
    if reason := backend.missing():
        pytest.skip(reason)
    torch.manual_seed(0)
    config = transformers_here().Qwen3Config(
        vocab_size=len(tiny_texts.WORDS) + 4, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, intermediate_size=48, max_position_embeddings=40, initializer_range=0.2,
    )  # fmt: skip
    transformers_here().Qwen3Model(config).save_pretrained(tmp_path / "net")
    tiny_texts.tokenizer(tmp_path / "net")
    asked = Model(model=f"hf:{tmp_path / 'net'}", pooling="last")
    made = models.text_encoder(asked, role="student", seed=0, need_weights=True, max_tokens=LONGEST)
    ids = torch.tensor([[2, 5, 7, 16, 9, 3], [2, 9, 3, 0, 0, 0]])
    texts = {"input_ids": ids, "attention_mask": (ids > 0).long()}
    axes = {name: {0: "batch", 1: "tokens"} for name in texts}
    graph = Graph("model", made.module, tuple(texts), ("embedding",), texts, axes, {"tokens": LONGEST})
    export.write(graph, tmp_path / "model.onnx")
    assert refuses_network("coreml", graph, target) is None
    fp32 = Variant("fp32", "none", Scheme(), tmp_path, {"model": tmp_path / "model.onnx"}, "torch")
    files = backend.convert(fp32, target, tmp_path / "out", lambda: [graph])
    given = {name: values.numpy() for name, values in texts.items()}
    found = backend.load(files["model"], target).run(given)
    assert compare(torch_runner([graph])("model", given), found).sqnr_db > 45
