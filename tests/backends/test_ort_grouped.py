"""A decoder's attention as GroupQueryAttention, and a cache that grows in place: tokens and numbers stay what they were."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import tiny_causal
from tiny_causal import NEW, left, prompts, theirs
from torch import nn

from edgekd.backends import onnxruntime as backend
from edgekd.backends import ort_grouped
from edgekd.export import artifact as artifacts
from edgekd.export import onnx as export
from edgekd.export.graph import torch_runner
from edgekd.models.causal_lm import CausalLM, decoder_graph
from edgekd.quantize.variant import Variant, file_runner
from edgekd.recipe import Gate, Scheme
from edgekd.targets import load_target
from edgekd.text.generate import generate

CONTEXT = 128


def exported(folder: Path, kind: str = "LlamaConfig", **others: Any) -> tuple[nn.Module, Variant]:
    """A tiny network and its plain ONNX file."""
    net = tiny_causal.network(kind, context=CONTEXT, **others)
    folder.mkdir(exist_ok=True)
    export.write(decoder_graph(CausalLM(net).eval()), folder / "decoder.onnx")
    return net, Variant("fp32", "none", Scheme(), folder, {"decoder": folder / "decoder.onnx"}, "torch")


def shipped(variant: Variant, folder: Path, **options: str) -> Path:
    folder.mkdir()
    target = dataclasses.replace(load_target("onnxruntime-cpu"), options=options)
    return backend.convert(variant, target, folder)["decoder"]


def kinds(file: Path) -> list[str]:
    return [node.op_type for node in onnx.load(file).graph.node]


@dataclasses.dataclass(frozen=True)
class Made:
    net: nn.Module
    variant: Variant
    file: Path


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A Llama whose key heads serve two query heads each, as it ships."""
    folder = tmp_path_factory.mktemp("llama")
    net, variant = exported(folder / "plain")
    return Made(net, variant, shipped(variant, folder / "made"))


def test_the_file_says_what_it_was_made_into(llama: Made) -> None:
    form = backend.form(llama.file)
    assert form.pop("past_key_values") == ort_grouped.CONTRACT
    assert form == {"SimplifiedLayerNormalization": 5, "Gather": 1, "GroupQueryAttention": 2, "joint products": 2}
    found = kinds(llama.file)
    assert found.count("RotaryEmbedding") == 4  # queries and keys of two layers
    assert not {"Softmax", "Pow", "Neg", "Slice", "LessOrEqual"} & set(found)
    assert backend.interface(llama.file) == backend.interface(llama.variant.graphs["decoder"])


def test_tokens_are_transformers_on_50_prompts(llama: Made) -> None:
    run = file_runner({"decoder": llama.file}, exact=False)
    ended = 0
    for prompt in prompts(50):
        wanted = theirs(llama.net, prompt[None], np.ones((1, len(prompt)), np.int64))
        assert generate(run, prompt[None], max_new=NEW, eos=tiny_causal.END).tolist() == wanted.tolist()
        ended += wanted.shape[1] < NEW
    assert 0 < ended < 50  # some end, some go on


def test_tokens_are_transformers_past_the_room_that_a_cache_has_at_first(llama: Made) -> None:
    run, prompt = file_runner({"decoder": llama.file}, exact=False), np.array([[1, 2, 4]])
    wanted = theirs(llama.net, prompt, np.ones_like(prompt), new=100)
    assert wanted.shape[1] == 100  # it does not end before
    assert generate(run, prompt, max_new=100, eos=tiny_causal.END).tolist() == wanted.tolist()


def test_tokens_are_transformers_in_a_left_padded_batch(llama: Made) -> None:
    run = file_runner({"decoder": llama.file}, exact=False)
    ids, mask = left(prompts(50))
    assert generate(run, ids, mask, max_new=NEW, eos=tiny_causal.END).tolist() == theirs(llama.net, ids, mask).tolist()


def called(past: int, tokens: int, rows: int, padding: int = 0) -> dict[str, np.ndarray]:
    """One call's inputs; the first row begins with padding."""
    rng = np.random.default_rng(7)
    mask = np.ones((rows, past + tokens), np.int64)
    mask[0, :padding] = 0
    made = {
        "input_ids": rng.integers(1, 30, (rows, tokens)),
        "attention_mask": mask,
        "position_ids": np.maximum(mask.cumsum(1) - 1, 0)[:, past:],
        "logits_to_keep": np.arange(tokens),
    }
    cache = {f"past_key_values.{n}.{part}": (rows, 2, past, 8) for n in range(2) for part in ("key", "value")}
    return made | {name: rng.standard_normal(shape).astype(np.float32) for name, shape in cache.items()}


@pytest.mark.parametrize(
    ("past", "tokens", "rows", "padding"), [(0, 7, 1, 0), (0, 1, 2, 0), (6, 1, 1, 0), (6, 1, 3, 2), (6, 4, 1, 3), (6, 4, 3, 2)]
)
def test_every_call_gives_what_the_network_gives(llama: Made, past: int, tokens: int, rows: int, padding: int) -> None:
    """Prompts, steps, and several tokens behind a cache; a left-padded prompt is compared where there are tokens."""
    inputs = called(past, tokens, rows, padding)
    expected = torch_runner([decoder_graph(CausalLM(llama.net).eval())])("decoder", inputs)
    made = backend.load(llama.file).run(inputs)
    assert list(made) == list(expected)
    for name, values in expected.items():
        assert made[name].shape == values.shape
        assert np.abs(made[name] - values).max() <= 1e-4 * np.abs(values).max()


def test_a_left_padded_prompt_is_right_where_there_are_tokens(llama: Made) -> None:
    inputs = called(0, 7, 2, padding=3)
    expected = torch_runner([decoder_graph(CausalLM(llama.net).eval())])("decoder", inputs)
    made = backend.load(llama.file).run(inputs)
    for name, values in expected.items():
        real = slice(3, None)
        both = [one[:, real] if name == "logits" else one[:, :, real] for one in (made[name], values)]
        assert np.isfinite(made[name]).all()
        assert np.abs(both[0] - both[1]).max() <= 1e-4 * np.abs(values).max()


# ---- the cache


def go_on(session: Any, made: dict[str, np.ndarray], token: int) -> dict[str, np.ndarray]:
    """Read one token behind what a call returned."""
    past = made["present.0.key"].shape[2]
    cache = {f"past_key_values.{name.removeprefix('present.')}": v for name, v in made.items() if name != "logits"}
    ids = np.array([[token]])
    mask, places = np.ones((1, past + 1), np.int64), np.array([[past]])
    return session.run(
        {"input_ids": ids, "attention_mask": mask, "position_ids": places, "logits_to_keep": np.array([0]), **cache}
    )


def test_a_step_writes_behind_what_was_returned_and_copies_nothing(llama: Made) -> None:
    session = backend.load(llama.file)
    first = session.run(called(0, 5, 1))
    before = {name: values.copy() for name, values in first.items()}
    then = go_on(session, first, 3)
    for name, values in first.items():
        assert values.tolist() == before[name].tolist()
        if name != "logits":
            assert np.shares_memory(values, then[name])
            assert then[name].shape[2] == 6


def test_a_text_can_be_gone_on_with_in_two_ways(llama: Made) -> None:
    session = backend.load(llama.file)
    first = session.run(called(0, 5, 1))
    one = go_on(session, first, 3)
    kept = {name: values.copy() for name, values in one.items()}
    other = go_on(session, first, 4)
    fresh = backend.load(llama.file)
    alone = go_on(fresh, fresh.run(called(0, 5, 1)), 4)
    for name in one:
        assert one[name].tolist() == kept[name].tolist()
        np.testing.assert_array_equal(other[name], alone[name])
    assert not np.array_equal(one["logits"], other["logits"])


def test_it_has_room_for_more_than_it_began_with(llama: Made) -> None:
    session = backend.load(llama.file)
    made = session.run(called(0, 2, 1))
    shared = []
    for step in range(100):
        then = go_on(session, made, 1 + step % 20)
        shared.append(np.shares_memory(made["present.1.value"], then["present.1.value"]))
        made = then
    assert made["present.1.value"].shape[2] == 102
    assert 0 < shared.count(False) <= 3  # copied to a larger place now and then, and no more than that
    ids = np.array([[*called(0, 2, 1)["input_ids"][0], *(1 + step % 20 for step in range(100))]])
    expected = torch_runner([decoder_graph(CausalLM(llama.net).eval())])(
        "decoder", {**called(0, 102, 1), "input_ids": ids, "logits_to_keep": np.array([101])}
    )
    assert np.abs(made["logits"] - expected["logits"]).max() <= 1e-4 * np.abs(expected["logits"]).max()


def test_the_file_takes_a_cache_that_is_longer_than_its_past(llama: Made) -> None:
    """As its form says: attention_mask tells how many positions count, and whatever lies behind them is not looked at."""
    session = ort.InferenceSession(llama.file, providers=["CPUExecutionProvider"])
    inputs, names = called(6, 1, 2, padding=2), [value.name for value in session.get_outputs()]
    expected = dict(zip(names, session.run(names, inputs), strict=True))
    longer = {
        name: np.concatenate([v, np.full((2, 2, 9, 8), np.nan, np.float32)], axis=2) if name.startswith("past") else v
        for name, v in inputs.items()
    }
    made = dict(zip(names, session.run(names, longer), strict=True))
    np.testing.assert_allclose(made["logits"], expected["logits"], rtol=1e-6)
    for name in names[1:]:
        assert made[name].shape[2] == 15
        np.testing.assert_allclose(made[name][:, :, :7], expected[name], rtol=1e-6)


# ---- what stays as it is


def test_the_target_can_ask_for_the_plain_form(llama: Made, tmp_path: Path) -> None:
    file = shipped(llama.variant, tmp_path / "plain", attention="plain")
    assert backend.form(file) == {"SimplifiedLayerNormalization": 5, "Gather": 1}
    assert kinds(file).count("Softmax") == 2


def test_a_window_on_the_last_tokens_stays(tmp_path: Path) -> None:
    net, variant = exported(tmp_path / "plain", "MistralConfig", sliding_window=5)
    file = shipped(variant, tmp_path / "made")
    assert ort_grouped.OPERATOR not in backend.form(file)
    assert kinds(file).count("Softmax") == 2
    prompt = prompts(1)[0]
    run = file_runner({"decoder": file}, exact=False)
    wanted = theirs(net, prompt[None], np.ones((1, len(prompt)), np.int64))
    assert generate(run, prompt[None], max_new=NEW, eos=tiny_causal.END).tolist() == wanted.tolist()


def edited(llama: Made, edit: Any) -> tuple[onnx.ModelProto, int]:
    model = onnx.load(llama.variant.graphs["decoder"])
    nodes = {node.op_type: node for node in model.graph.node}
    edit(model, nodes)
    return ort_grouped.fuse(model)


def test_it_is_found_in_the_plain_file_at_all(llama: Made) -> None:
    assert edited(llama, lambda model, nodes: None)[1] == 2


@pytest.mark.parametrize("kind", ["LessOrEqual", "Softmax", "Greater", "And"])
def test_anything_else_in_one_layer_and_all_stay(llama: Made, kind: str) -> None:
    """Another comparison, another function, another condition on the mask."""
    other = {"LessOrEqual": "Less", "Softmax": "LogSoftmax", "Greater": "Less", "And": "Or"}[kind]
    made, count = edited(llama, lambda model, nodes: setattr(nodes[kind], "op_type", other))
    assert count == 0
    assert ort_grouped.OPERATOR not in [node.op_type for node in made.graph.node]


def test_a_cache_that_something_else_reads_stays(llama: Made) -> None:
    def edit(model: onnx.ModelProto, nodes: Any) -> None:
        model.graph.node.append(onnx.helper.make_node("ReduceMax", ["past_key_values.0.key"], ["highest"], keepdims=0))
        model.graph.output.append(onnx.helper.make_tensor_value_info("highest", onnx.TensorProto.FLOAT, []))

    assert edited(llama, edit)[1] == 0


def test_norms_between_products_and_heads(tmp_path: Path) -> None:
    net, variant = exported(tmp_path / "plain", "Qwen3Config")
    file = shipped(variant, tmp_path / "made")
    assert backend.form(file)[ort_grouped.OPERATOR] == 2
    run = file_runner({"decoder": file}, exact=False)
    ids, mask = left(prompts(8))
    assert generate(run, ids, mask, max_new=NEW, eos=tiny_causal.END).tolist() == theirs(net, ids, mask).tolist()


def test_check_py_runs_several_tokens_of_several_rows_behind_a_cache(llama: Made, tmp_path: Path) -> None:
    """On the device, where there is no edgekd: golden inputs are of that kind."""
    made = artifacts.make(
        llama.variant, load_target("onnxruntime-cpu"), tmp_path / "artifact", golden={"decoder": called(6, 4, 3, padding=2)},
        reference=torch_runner([decoder_graph(CausalLM(llama.net).eval())]), gate=Gate(),
    )  # fmt: skip
    form = made.record["graphs"]["decoder"]["form"]
    assert form["GroupQueryAttention"] == 2
    assert "longer than the past" in form["past_key_values"]
    command = [sys.executable, "-I", str(made.folder / "check.py"), "--json", "--seconds", "0"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout)["graphs"]["decoder"]["relative_error"] < 1e-4


def test_scores_that_somebody_still_holds_are_not_written_over(llama: Made) -> None:
    session = backend.load(llama.file)
    first = session.run(called(0, 1, 1))
    then = go_on(session, first, 3)
    held, copied = then["logits"], then["logits"].copy()
    part = go_on(session, then, 4)["logits"][0, -1]  # a view holds it too
    seen = part.copy()
    go_on(session, then, 5)
    assert held.tolist() == copied.tolist()
    assert part.tolist() == seen.tolist()
