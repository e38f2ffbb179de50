"""Encoder-decoders as two graphs, and decoder-only models that read and write in one row: the same numbers as transformers'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import translation

from edgekd.errors import BadInput
from edgekd.export import onnx
from edgekd.export.graph import torch_runner
from edgekd.models import LoadedModel, restore, save, seq2seq_lm
from edgekd.models.seq2seq_lm import Seq2SeqLM, SourceThenTarget, check_lengths, graphs
from edgekd.quantize.variant import file_runner
from edgekd.recipe import Model
from edgekd.text.generate import generate

ROWS = 40

NETWORKS = {
    "t5gemma": lambda: translation.t5gemma(ROWS),
    "t5gemma, untied": lambda: translation.t5gemma(ROWS, tie_word_embeddings=False),
    "t5gemma that slides and caps": lambda: translation.t5gemma(
        ROWS,
        encoder=2,
        decoder=2,
        layer_types=["sliding_attention", "full_attention"],
        sliding_window=3,
        attn_logit_softcapping=5.0,
        final_logit_softcapping=3.0,
        tie_word_embeddings=False,
    ),
    "t5": lambda: translation.t5(rows=ROWS),
    "t5, gated and untied": lambda: translation.t5(rows=ROWS, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "mt5": lambda: translation.t5(ROWS, "MT5"),
}


def batch(seed: int = 0) -> dict[str, torch.Tensor]:
    """Four pairs of different lengths, padded after the text."""
    rng = np.random.default_rng(seed)
    lengths = {"input": (7, 2, 5, 9), "output": (3, 6, 1, 4)}
    made = {}
    for side, mask in (("input", "attention_mask"), ("output", "output_mask")):
        longest = max(lengths[side])
        real = np.arange(longest)[None] < np.array(lengths[side])[:, None]
        made[f"{side}_ids"] = torch.from_numpy(np.where(real, rng.integers(4, ROWS, real.shape), 0))
        made[mask] = torch.from_numpy(real.astype(np.int64))
    return made


def rows(given: dict[str, torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Each pair without its padding, (1, source) and (1, target)."""
    return [
        (given["input_ids"][n][given["attention_mask"][n] > 0][None], given["output_ids"][n][given["output_mask"][n] > 0][None])
        for n in range(len(given["input_ids"]))
    ]


@pytest.mark.parametrize("kind", NETWORKS)
def test_target_logits_are_those_of_transformers_pair_by_pair(kind: str) -> None:
    net = translation.network(NETWORKS[kind]())
    given = batch()
    with torch.no_grad():
        made = Seq2SeqLM(net, start=2).target_logits(given)
        wanted = []
        for source, target in rows(given):
            before = torch.cat([torch.tensor([[2]]), target[:, :-1]], dim=1)
            wanted.append(net(input_ids=source, decoder_input_ids=before, use_cache=False).logits[0])
    assert made.shape == (14, ROWS)
    torch.testing.assert_close(made, torch.cat(wanted), rtol=1e-4, atol=1e-5)
    assert made.std() > 0.1  # the networks have something to say


def test_a_decoder_only_model_stands_at_the_same_tokens() -> None:
    net = translation.network(translation.decoder_only(ROWS))
    given = batch()
    with torch.no_grad():
        made = SourceThenTarget(net).target_logits(given)
        wanted = []
        for source, target in rows(given):
            whole = net(torch.cat([source, target], dim=1)).logits[0]
            s, t = source.shape[1], target.shape[1]
            wanted.append(whole[s - 1 : s - 1 + t])  # papers: sliced at [source - 1 : source - 1 + target]
    torch.testing.assert_close(made, torch.cat(wanted), rtol=1e-4, atol=1e-5)


def test_gradients_reach_every_weight() -> None:
    net = translation.network(translation.t5gemma(ROWS, dropout_rate=0.1)).train()
    Seq2SeqLM(net, start=2).target_logits(batch()).square().mean().backward()
    assert all(parameter.grad is not None and bool(parameter.grad.abs().sum() > 0) for parameter in net.parameters())


def prompts(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.integers(4, ROWS, rng.integers(1, 12)) for _ in range(count)]


def greedy(net: Any, prompt: np.ndarray, start: int, new: int, cache: bool = True) -> list[int]:
    """What transformers writes after one prompt, without padding."""
    net.generation_config.decoder_start_token_id = start
    made = net.generate(
        input_ids=torch.from_numpy(prompt)[None], max_new_tokens=new, do_sample=False, num_beams=1, eos_token_id=1, pad_token_id=0,
        use_cache=cache,
    )  # fmt: skip
    return made[0, 1:].tolist()


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        "t5gemma, untied",
        pytest.param("t5gemma that slides and caps", marks=pytest.mark.exhaustive),
        pytest.param("t5, gated and untied", marks=pytest.mark.exhaustive),
    ],
)
def test_exported_graphs_write_the_tokens_of_transformers(kind: str, tmp_path: Path) -> None:
    net = translation.network(NETWORKS[kind](), seed=3)
    model = Seq2SeqLM(net, start=2).eval()
    made = graphs(model)
    assert [graph.name for graph in made] == ["encoder", "decoder"]
    for graph in made:
        onnx.write(graph, tmp_path / f"{graph.name}.onnx")
    run = file_runner({graph.name: tmp_path / f"{graph.name}.onnx" for graph in made})
    asked = prompts(50)
    # transformers 4.57 lets the cache of cross-attention slide too, and forgets the source's beginning: there, without a cache
    wanted = [greedy(net, prompt, 2, 12, cache="slides" not in kind) for prompt in asked]
    for first in range(0, 50, 10):  # ten at a time: of different lengths, so that there is padding
        some = asked[first : first + 10]
        longest = max(map(len, some))
        ids = np.stack([np.pad(prompt, (0, longest - len(prompt))) for prompt in some])
        mask = np.stack([np.arange(longest) < len(prompt) for prompt in some]).astype(np.int64)
        written = generate(run, ids, mask, max_new=12, eos=1, pad=0, start=2)
        for row, expected in zip(written.tolist(), wanted[first : first + 10], strict=True):
            assert row[: len(expected)] == expected
            assert not any(row[len(expected) :])
    assert len({tuple(one) for one in wanted}) > 10  # not one answer for all


def test_cross_attention_is_computed_by_the_encoder_alone(tmp_path: Path) -> None:
    net = translation.network(translation.t5gemma(ROWS))
    encoder, decoder = graphs(Seq2SeqLM(net, start=2))
    assert encoder.outputs == ("present.0.encoder.key", "present.0.encoder.value")
    assert decoder.outputs == ("logits", "present.0.decoder.key", "present.0.decoder.value")
    ran = {}
    for graph in (encoder, decoder):
        onnx.write(graph, tmp_path / f"{graph.name}.onnx")
        ran[graph.name] = {name for of in onnx.modules_of(tmp_path / f"{graph.name}.onnx").values() for name in of}
    crosses = {side: "model.decoder.layers.0.cross_attn." + side for side in ("q_proj", "k_proj", "v_proj")}
    assert crosses["q_proj"] in ran["decoder"]
    assert not {crosses["k_proj"], crosses["v_proj"]} & ran["decoder"]
    assert crosses["q_proj"] not in ran["encoder"]
    assert {crosses["k_proj"], crosses["v_proj"]} <= ran["encoder"]


def test_cut_vocabulary_reaches_the_graphs() -> None:
    model = Seq2SeqLM(translation.network(translation.t5gemma(ROWS)), start=2)
    model.vocabulary = 30
    assert model.target_logits(batch()).shape == (14, 30)
    _encoder, decoder = graphs(model)
    with torch.no_grad():
        logits, *_ = decoder.module(*decoder.example.values())
    assert logits.shape == (2, 3, 30)


def load(folder: Path, tokens: Path, **given: Any) -> LoadedModel:
    config = Model(model=f"hf:{folder}", tokenizer=str(tokens), **given)
    return seq2seq_lm(config, role="student", seed=0, need_weights=False)


def test_saved_and_loaded_again(tmp_path: Path) -> None:
    tokens = translation.tokenizer(tmp_path / "tokens")
    student = load(translation.saved(translation.t5gemma(), tmp_path / "net"), tokens, arguments={"share_embeddings": True})
    assert isinstance(student.module, Seq2SeqLM)
    save(student, tmp_path / "run")
    config = Model(model=str(tmp_path / "run"))
    again = seq2seq_lm(config, role="student", seed=1, need_weights=True)
    ids = torch.tensor([[4, 5, 1]])
    for model in (student, again, restore(tmp_path / "run", student)):
        tables = [
            stack.get_input_embeddings().weight for stack in (model.module.net.get_encoder(), model.module.net.get_decoder())
        ]
        assert tables[0] is tables[1]
        run = torch_runner(graphs(model.module))
        assert generate(run, ids.numpy(), max_new=4, start=2).tolist() == [greedy(student.module.net, ids[0].numpy(), 2, 4)]
    own = load(tmp_path / "net", tokens)
    assert own.parameters - student.parameters == len(translation.TOKENS) * 32


def test_the_tokenizer_says_what_a_decoder_begins_with(tmp_path: Path) -> None:
    folder = translation.saved(translation.t5(), tmp_path / "net", weights=True)
    made = load(folder, translation.tokenizer(tmp_path / "without", begin=False))
    assert made.module.start == 0  # T5's padding
    with pytest.raises(BadInput, match=r"begins with token 0, and by its tokenizer .'<s>', 2"):
        load(folder, translation.tokenizer(tmp_path / "with"))
    fresh = load(translation.saved(translation.t5(), tmp_path / "fresh"), tmp_path / "with")
    assert fresh.module.start == 2 == fresh.module.net.config.decoder_start_token_id


def test_other_architectures_are_refused_by_name(tmp_path: Path) -> None:
    from transformers import BartConfig

    config = BartConfig(
        vocab_size=16, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=32,
    )  # fmt: skip
    with pytest.raises(BadInput, match=r"BartForConditionalGeneration .bart.*t5gemma, t5, mt5"):
        load(translation.saved(config, tmp_path / "bart"), translation.tokenizer(tmp_path / "tokens"))


def test_a_context_that_is_too_short(tmp_path: Path) -> None:
    tokens = translation.tokenizer(tmp_path / "tokens")
    student = load(translation.saved(translation.t5gemma(), tmp_path / "net"), tokens)
    check_lengths(student, 64, 64)
    with pytest.raises(BadInput, match="65 tokens do not fit its encoder's context of 64"):
        check_lengths(student, 65, 10)
    teacher = load(translation.saved(translation.decoder_only(), tmp_path / "decoder"), tokens)
    check_lengths(teacher, 40, 24)
    with pytest.raises(BadInput, match="40 tokens and 25 to write do not fit its context of 64"):
        check_lengths(teacher, 40, 25)


def test_shared_embeddings_need_an_encoder(tmp_path: Path) -> None:
    folder = translation.saved(translation.decoder_only(), tmp_path / "decoder")
    with pytest.raises(BadInput, match="share_embeddings: this model has no encoder"):
        load(folder, translation.tokenizer(tmp_path / "tokens"), arguments={"share_embeddings": True})
