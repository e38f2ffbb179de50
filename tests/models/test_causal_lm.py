"""Causal language models with a flat cache: the tokens are transformers' own, in torch and as an ONNX file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_causal
import torch
from tiny_causal import NEW, left, prompts, theirs
from torch import nn

from edgekd.errors import BadInput
from edgekd.export import onnx
from edgekd.export.graph import Running, torch_runner
from edgekd.models.causal_lm import CausalLM, check, context_of, decoder_graph
from edgekd.quantize.variant import file_runner
from edgekd.text.generate import generate

KINDS = {
    "LlamaConfig": {}, "Qwen2Config": {"tie_word_embeddings": True}, "Qwen3Config": {}, "GPT2Config": {},
    "MistralConfig": {"sliding_window": 5},
    "Gemma2Config": {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]},
}  # fmt: skip


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Running]:
    """A Llama with grouped heads, and its ONNX file in ONNX Runtime."""
    net = tiny_causal.network()
    file = tmp_path_factory.mktemp("llama") / "decoder.onnx"
    onnx.write(decoder_graph(CausalLM(net).eval()), file)
    return net, file_runner({"decoder": file}, exact=False)


def test_the_files_tokens_are_transformers_on_50_prompts(llama: tuple[nn.Module, Running]) -> None:
    net, run = llama
    ended = 0
    for prompt in prompts(50):
        wanted = theirs(net, prompt[None], np.ones((1, len(prompt)), np.int64))
        assert generate(run, prompt[None], max_new=NEW, eos=tiny_causal.END).tolist() == wanted.tolist()
        ended += wanted.shape[1] < NEW
    assert 0 < ended < 50  # some end, some go on


def test_the_files_tokens_are_transformers_in_a_left_padded_batch(llama: tuple[nn.Module, Running]) -> None:
    net, run = llama
    ids, mask = left(prompts(50))
    assert generate(run, ids, mask, max_new=NEW, eos=tiny_causal.END).tolist() == theirs(net, ids, mask).tolist()


def test_the_file_says_what_its_axes_are(llama: tuple[nn.Module, Running]) -> None:
    told = llama[1].interfaces()["decoder"]
    shapes = {one["name"]: one["shape"] for side in ("inputs", "outputs") for one in told[side]}
    assert shapes["input_ids"] == shapes["position_ids"] == ["batch", "tokens"]
    assert shapes["attention_mask"] == ["batch", "past + tokens"]
    assert shapes["logits_to_keep"] == ["kept"]
    assert shapes["past_key_values.1.value"] == ["batch", 2, "past", 8]
    assert shapes["logits"] == ["batch", "kept", 30]
    assert list(shapes)[-4:] == ["present.0.key", "present.0.value", "present.1.key", "present.1.value"]


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_transformers_for_every_kind_of_decoder(kind: str) -> None:
    net = tiny_causal.network(kind, **KINDS[kind])
    check(net, kind)
    run = torch_runner([decoder_graph(CausalLM(net).eval())])
    ids, mask = left(prompts(12))
    assert generate(run, ids, mask, max_new=NEW, eos=tiny_causal.END).tolist() == theirs(net, ids, mask).tolist()


def test_target_logits_are_those_of_every_token_but_the_first_without_padding() -> None:
    net = tiny_causal.network()
    ids = torch.tensor([[3, 4, 5, 6], [7, 8, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    with torch.no_grad():
        made = CausalLM(net).target_logits({"input_ids": ids, "attention_mask": mask})
        wanted = torch.cat([net(input_ids=ids[:1]).logits[0, :3], net(input_ids=ids[1:, :2]).logits[0, :1]])
        cut = CausalLM(net, vocabulary=9).target_logits({"input_ids": ids, "attention_mask": mask})
    assert made.shape == (4, 30)
    assert torch.allclose(made, wanted, atol=1e-5)
    assert torch.allclose(cut, wanted[:, :9], atol=1e-5)


def test_an_architecture_that_takes_no_such_cache_is_refused() -> None:
    from edgekd.models.transformers_model import transformers_here

    transformers = transformers_here()
    bloom = transformers.BloomForCausalLM(transformers.BloomConfig(vocab_size=30, hidden_size=32, n_layer=1, n_head=4))
    for net in (bloom, nn.Linear(2, 2)):
        with pytest.raises(BadInput, match=r"student: x: .* does not work with a key-value cache"):
            check(net, "student: x")


def test_the_context_is_the_configurations(tmp_path: Path) -> None:
    assert context_of(tiny_causal.network(context=48)) == 48
    assert context_of(tiny_causal.network("GPT2Config", context=40)) == 40


def test_a_student_takes_layers_of_its_teacher(tmp_path: Path) -> None:
    from edgekd import models
    from edgekd.recipe import Model

    teacher = Model(model=f"hf:{tiny_causal.model(tmp_path / 'teacher')}")
    whole = models.causal_lm(teacher, role="teacher", seed=0, need_weights=True)
    both, last = (
        models.causal_lm(
            teacher.model_copy(update={"teacher_layers": layers}), role="student", seed=0, need_weights=True, teacher=whole
        )
        for layers in ((0, 1), (1,))
    )
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():
        assert torch.equal(both.module.net(input_ids=ids).logits, whole.module.net(input_ids=ids).logits)
    assert len(last.module.net.model.layers) == 1
    mine, theirs = (one.module.net.model for one in (last, whole))
    assert torch.equal(mine.layers[0].mlp.up_proj.weight, theirs.layers[1].mlp.up_proj.weight)
    assert torch.equal(mine.embed_tokens.weight, theirs.embed_tokens.weight)
