"""Language models on every kind of runtime: those whose shapes may change write what torch writes, others refuse them with the reason."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_causal
import translation

from edgekd.backends import backend_of, web
from edgekd.export import artifact
from edgekd.export import onnx as export
from edgekd.export.graph import Running, torch_runner
from edgekd.parity import compare
from edgekd.quantize.variant import Variant
from edgekd.recipe import Gate, Recipe, Scheme
from edgekd.targets import load_target
from edgekd.tasks import task_of
from edgekd.text.generate import Sampling, generate


@dataclass(frozen=True)
class Made:
    """A tiny language model: its graphs and files, samples of their inputs, prompts, and how it generates from them."""

    graphs: list[Any]
    variant: Variant
    golden: dict[str, dict[str, np.ndarray]]
    prompts: tuple[np.ndarray, np.ndarray]
    settings: dict[str, int]


@pytest.fixture(scope="module", params=["causal", pytest.param("encoder-decoder", marks=pytest.mark.exhaustive)])
def made(request, tmp_path_factory) -> Made:
    folder: Path = tmp_path_factory.mktemp("lm")
    if request.param == "causal":
        (folder / "text.txt").write_text(tiny_causal.text(300))
        data = {"source": str(folder / "text.txt"), "max_tokens": 16, "test_fraction": 0.3, "validation_fraction": 0.3}
        student: dict[str, Any] = {"model": f"hf:{tiny_causal.model(folder / 'net')}"}
        task_name, end, begin = "causal-lm", tiny_causal.END, 0
    else:
        data = {"source": str(translation.data(folder / "data")), "input": "en", "output": "de", "max_tokens": 8}
        student = {"model": f"hf:{translation.saved(translation.t5gemma(), folder / 'net', weights=True)}"}
        student["tokenizer"] = str(translation.tokenizer(folder / "tokens"))
        task_name, end, begin = "seq2seq-lm", 1, 2
    recipe = Recipe.model_validate({"task": task_name, "data": data, "student": student})
    task = task_of(task_name)
    splits = task.splits(recipe)
    graphs = task.graphs(task.models(recipe, splits)[1], splits)
    for graph in graphs:
        export.write(graph, folder / f"{graph.name}.onnx")
    files = {graph.name: folder / f"{graph.name}.onnx" for graph in graphs}
    batch = splits.test.take(np.arange(4))
    prompts = batch["input_ids"][:, :6], batch["attention_mask"][:, :6]
    return Made(
        graphs, Variant("fp32", "none", Scheme(), folder, files, "torch"), task.golden(torch_runner(graphs), splits.test, np.arange(3)),
        prompts, {"max_new": 8, "eos": end, "pad": 0, "start": begin},
    )  # fmt: skip


FIXED = ("iphone-ios17", "iphone-ios18", "mac", "intel-npu", "snapdragon-8-gen-3", "jetson-orin-nano", "nvidia-gpu")


@pytest.mark.parametrize("name", FIXED)
def test_a_cache_that_grows_is_refused_where_shapes_are_fixed(made, name):
    target = load_target(name)

    told = backend_of(target.backend).refuses_graph(made.variant.graphs["decoder"], target)
    assert ("fixed shapes" if target.static else "lengths from 1 to a known one") in told
    assert "a language model's key-value cache gets longer with every token" in told
    assert "onnxruntime-cpu, browser or intel-cpu" in told


@pytest.mark.parametrize("name", ["onnxruntime-cpu", "android-cpu", "browser", "intel-cpu"])
def test_what_ships_writes_what_torch_writes(made, name, tmp_path):
    target = load_target(name)
    backend = backend_of(target.backend)
    if reason := backend.missing() or (backend.executes(target).why if backend.executes(target).by is None else None):
        pytest.skip(reason)
    assert all(backend.refuses_graph(file, target) is None for file in made.variant.graphs.values())
    network = torch_runner(made.graphs)
    shipped = artifact.make(
        made.variant, target, tmp_path, golden=made.golden, reference=network, gate=Gate(), graphs=lambda: made.graphs
    )
    sessions = {graph: backend.load(file, target) for graph, file in shipped.graphs.items()}
    inputs, outputs = shipped.golden()
    for graph, given in inputs.items():
        assert compare(outputs[graph], sessions[graph].run(given)).relative < 1e-4, graph
    run = Running(lambda graph, given: sessions[graph].run(given), lambda: shipped.record["graphs"])
    for sampling in (
        None,
        Sampling(temperature=3.0, seed=1),
    ):  # drawn, their words vary, whatever untrained networks find likeliest
        written, wanted = (generate(each, *made.prompts, **made.settings, sampling=sampling) for each in (run, network))
        np.testing.assert_array_equal(written, wanted)
    assert len(np.unique(written)) > 2
    web.close_browsers()
