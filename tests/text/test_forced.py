"""What graphs say of texts that are there already, against transformers' own forward passes, text by text."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny_causal
import torch
import translation

from edgekd.export.graph import Running, torch_runner
from edgekd.models.causal_lm import CausalLM, decoder_graph
from edgekd.models.seq2seq_lm import Seq2SeqLM, SourceThenTarget, graphs
from edgekd.text import forced

ROWS = len(translation.TOKENS)
BATCH = {
    "input_ids": np.array([[4, 5, 6, 1], [7, 1, 0, 0], [8, 9, 1, 0]]),
    "attention_mask": np.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]]),
    "output_ids": np.array([[10, 1, 0], [11, 12, 1], [13, 14, 1]]),
    "output_mask": np.array([[1, 1, 0], [1, 1, 1], [1, 1, 1]]),
}
START, PAD = 2, 0


def log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    return wide - wide.max(-1, keepdims=True) - np.log(np.exp(wide - wide.max(-1, keepdims=True)).sum(-1, keepdims=True))


def logits_of(net: Any, source: list[int], target: list[int]) -> np.ndarray:
    """Return transformers' logits of each token of a target, (tokens, vocabulary)."""
    with torch.no_grad():
        if net.config.is_encoder_decoder:
            before = torch.tensor([[START, *target[:-1]]])
            return net(input_ids=torch.tensor([source]), decoder_input_ids=before, use_cache=False).logits[0].numpy()
        whole = net(torch.tensor([source + target])).logits[0].numpy()
        return whole[len(source) - 1 : len(source) - 1 + len(target)]


def pairs() -> list[tuple[list[int], list[int]]]:
    cut = [[ids[mask > 0].tolist() for ids, mask in zip(BATCH[a], BATCH[b], strict=True)] for a, b in
           (("input_ids", "attention_mask"), ("output_ids", "output_mask"))]  # fmt: skip
    return list(zip(*cut, strict=True))


@pytest.fixture(params=["t5gemma", "t5", "decoder_only"])
def net(request: pytest.FixtureRequest) -> Any:
    return translation.network(getattr(translation, request.param)(), seed=4)


def runner(net: Any) -> Running:
    model = Seq2SeqLM(net, START) if net.config.is_encoder_decoder else SourceThenTarget(net)
    return torch_runner(graphs(model.eval()))


def test_log_probabilities_of_targets(net: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run, asked = runner(net), []

    def counted(name: str, inputs: Any) -> dict[str, np.ndarray]:
        made = run(name, inputs)
        asked.append(made["logits"].size if "logits" in made else 0)
        return made

    counting = Running(counted, run.interfaces)
    made = forced.target_logprob(counting, BATCH, start=START, pad=PAD)
    for row, (source, target) in zip(made, pairs(), strict=True):
        wanted = log_softmax(logits_of(net, source, target))[np.arange(len(target)), target]
        np.testing.assert_allclose(row[: len(target)], wanted, atol=2e-4)
        assert not row[len(target) :].any()
    assert made.dtype == np.float32
    assert max(asked) == 2 * 3 * ROWS  # one text first, then all others at once
    asked.clear()
    monkeypatch.setattr(forced, "SCORES", 3 * ROWS)
    one_by_one = forced.target_logprob(counting, BATCH, start=START, pad=PAD)
    np.testing.assert_allclose(one_by_one, made, atol=1e-5)
    assert max(asked) == 3 * ROWS


def test_the_last_tokens_behind_a_cache(net: Any) -> None:
    run = runner(net)
    given = forced.last_step(run, BATCH, start=START, pad=PAD, tokens=1)
    assert given["decoder"]["input_ids"].tolist() == BATCH["output_ids"][:, 1:2].tolist()
    logits = run("decoder", given["decoder"])["logits"][:, -1]
    for row, (source, target) in list(zip(logits, pairs(), strict=True))[1:]:  # the first target is over before
        np.testing.assert_allclose(row, logits_of(net, source, target)[-1], atol=2e-4)


def test_scores_at_places_and_behind_half_a_text() -> None:
    net = tiny_causal.network()
    run = torch_runner([decoder_graph(CausalLM(net).eval())])
    ids = np.random.default_rng(0).integers(1, 30, (2, 9))
    with torch.no_grad():
        whole = net(torch.from_numpy(ids)).logits.numpy()
    places = np.array([0, 3, 7])
    np.testing.assert_allclose(forced.scores_at(run, ids, np.ones_like(ids), places), whole[:, places], atol=1e-4)
    given = forced.halfway(run, ids, np.ones_like(ids), 6)["decoder"]
    assert given["input_ids"].tolist() == ids[:, 6:].tolist()
    assert given["past_key_values.1.value"].shape[2] == 6
    np.testing.assert_allclose(run("decoder", given)["logits"][:, -1], whole[:, -1], atol=1e-4)


def test_judged_is_a_log_softmax_even_of_large_scores() -> None:
    logits = (np.random.default_rng(1).normal(size=(4, 5, 11)) * 200).astype(np.float32)
    before = logits.copy()
    targets = np.random.default_rng(2).integers(0, 11, (4, 5))
    told, likeliest = forced.judged(logits, targets)
    wanted = np.take_along_axis(log_softmax(logits), targets[..., None], -1)[..., 0]
    np.testing.assert_allclose(told, wanted, rtol=1e-5, atol=1e-4)
    assert (likeliest == logits.argmax(-1)).all()
    assert (told.dtype, likeliest.dtype) == (np.float32, np.int32)
    assert (logits == before).all()
    logits[0, 0, 3] = np.nan
    told, _ = forced.judged(logits, targets)
    assert np.isnan(told[0, 0])
    assert np.isfinite(told[1:]).all()


def test_a_graph_that_is_no_language_model() -> None:
    run = Running(lambda name, inputs: {}, lambda: {"model": {"inputs": [], "outputs": []}})
    with pytest.raises(TypeError, match="no language model"):
        forced.target_logprob(run, BATCH, start=START, pad=PAD)
