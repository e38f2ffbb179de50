"""Generation: greedy and sampled, padded on either side, stopped at the end; a decoder of plain NumPy says what is right."""

from __future__ import annotations

import numpy as np
import pytest

from edgekd.errors import BadInput
from edgekd.export.graph import Running
from edgekd.text.generate import Sampling, generate, kept_probabilities, left_padded

VOCABULARY, END, PAD = 11, 1, 0
TABLE = np.random.default_rng(3).standard_normal((64, VOCABULARY)).astype(np.float32)


def decoder(calls: list[dict[str, np.ndarray]] | None = None, encoder: bool = False) -> Running:
    """A language model whose next token depends on the sum of (position + 1) * id over all real tokens, kept in its cache."""

    def run(graph: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if calls is not None:
            calls.append({"graph": np.array(graph), **inputs})
        if graph == "encoder":
            read = (inputs["input_ids"] * inputs["attention_mask"]).sum(1)
            return {"last_hidden_state": read[:, None, None].astype(np.float32)}
        ids, past = inputs["input_ids"], inputs["past_key_values.0.key"]
        real = inputs["attention_mask"][:, -ids.shape[1] :] if "attention_mask" in inputs else np.ones_like(ids)
        places = inputs.get("position_ids", np.broadcast_to(np.arange(past.shape[2], past.shape[2] + ids.shape[1]), ids.shape))
        fresh = (ids * (places + 1) * real).astype(np.float32)[:, None, :, None]
        cache = np.concatenate([past, fresh], axis=2)
        sums = past.sum((1, 2, 3))[:, None] + np.cumsum(fresh[:, 0, :, 0], axis=1)
        if encoder:
            sums = sums + inputs["encoder_hidden_states"][:, 0]
        logits = np.where(real[..., None] > 0, TABLE[sums.astype(int) % len(TABLE)], 9 - TABLE[0])  # nonsense after padding
        return {"logits": logits[:, inputs["logits_to_keep"]] if "logits_to_keep" in inputs else logits, "present.0.key": cache}

    def tensor(name: str, *shape: int | str, dtype: str = "int64") -> dict:
        return {"name": name, "dtype": dtype, "shape": list(shape)}

    cache = tensor("past_key_values.0.key", "batch", 1, "past", 1, dtype="float32")
    logits = [{"name": "logits", "dtype": "float32", "shape": []}, {"name": "present.0.key", "dtype": "float32", "shape": []}]
    if encoder:
        states = tensor("encoder_hidden_states", "batch", "source", 1, dtype="float32")
        told = {
            "encoder": {
                "inputs": [tensor("input_ids", "batch", "source"), tensor("attention_mask", "batch", "source")],
                "outputs": [tensor("last_hidden_state", "batch", "source", 1, dtype="float32")],
            },
            "decoder": {"inputs": [tensor("input_ids", "batch", "tokens"), states, cache], "outputs": logits},
        }
    else:
        read = [tensor("input_ids", "batch", "tokens"), tensor("attention_mask", "batch", "past + tokens")]
        read += [tensor("position_ids", "batch", "tokens"), tensor("logits_to_keep", "kept"), cache]
        told = {"decoder": {"inputs": read, "outputs": logits}}
    return Running(run, lambda: told)


def by_hand(prompt: list[int], most: int, extra: int = 0) -> list[int]:
    """Write on, token by token, from the sum over everything so far."""
    ids: list[int] = []
    while len(ids) < most and END not in ids:
        everything = prompt + ids
        total = extra + sum((place + 1) * token for place, token in enumerate(everything))
        ids.append(int(TABLE[total % len(TABLE)].argmax()))
    return ids


PROMPTS = [[5, 7, 2], [9], [3, 3, 8, 10, 4, 6]]


def padded(left: bool) -> tuple[np.ndarray, np.ndarray]:
    width = max(map(len, PROMPTS))
    ids, mask = np.full((3, width), 6), np.zeros((3, width), np.int64)  # whatever stands at padding does not matter
    for row, prompt in enumerate(PROMPTS):
        at = slice(width - len(prompt), width) if left else slice(0, len(prompt))
        ids[row, at], mask[row, at] = prompt, 1
    return ids, mask


@pytest.mark.parametrize("left", [True, False])
def test_each_row_of_a_padded_batch_gets_what_it_gets_alone(left: bool) -> None:
    made = generate(decoder(), *padded(left), max_new=30, eos=END, pad=PAD)
    for row, prompt in zip(made.tolist(), PROMPTS, strict=True):
        wanted = by_hand(prompt, 30)
        assert row == wanted + [PAD] * (made.shape[1] - len(wanted))
    lengths = [len(by_hand(prompt, 30)) for prompt in PROMPTS]
    assert len(set(lengths)) > 1  # else nothing here is ever padded
    assert made.shape[1] == max(lengths)  # it stops when all have ended


def test_only_the_last_logits_are_asked_for_and_the_cache_grows() -> None:
    calls: list[dict[str, np.ndarray]] = []
    generate(decoder(calls), np.array([[5, 7, 2]]), max_new=3)
    assert [call["input_ids"].shape[1] for call in calls] == [3, 1, 1]
    assert [call["logits_to_keep"].tolist() for call in calls] == [[2], [0], [0]]
    assert [call["past_key_values.0.key"].shape[2] for call in calls] == [0, 3, 4]
    assert [call["position_ids"].tolist() for call in calls] == [[[0, 1, 2]], [[3]], [[4]]]


def test_padding_is_counted_neither_in_positions_nor_in_the_mask() -> None:
    calls: list[dict[str, np.ndarray]] = []
    generate(decoder(calls), *padded(left=True), max_new=2)
    assert calls[0]["position_ids"].tolist() == [[0, 0, 0, 0, 1, 2], [0, 0, 0, 0, 0, 0], [0, 1, 2, 3, 4, 5]]
    assert calls[1]["position_ids"].tolist() == [[3], [1], [6]]
    assert calls[1]["attention_mask"].sum(1).tolist() == [4, 2, 7]


def test_a_decoder_behind_an_encoder_begins_with_its_own_token() -> None:
    ids, mask = padded(left=False)
    made = generate(decoder(encoder=True), ids, mask, max_new=12, eos=END, pad=PAD, start=4)
    for row, prompt in zip(made.tolist(), PROMPTS, strict=True):
        wanted = by_hand([4], 12, extra=sum(prompt))
        assert row[: len(wanted)] == wanted


def test_several_ends() -> None:
    first = by_hand(PROMPTS[0], 30)
    made = generate(decoder(), np.array([PROMPTS[0]]), max_new=30, eos=[END, first[1]], pad=PAD)
    assert made.tolist() == [first[:2] if first[0] != first[1] else first[:1]]


# ---- sampling


def test_cut_probabilities_by_hand() -> None:
    logits = np.log(np.array([[0.5, 0.05, 0.25, 0.2]]))
    assert np.allclose(kept_probabilities(logits, Sampling()), [[0.5, 0.05, 0.25, 0.2]])
    squared = np.array([0.25, 0.0025, 0.0625, 0.04])
    assert np.allclose(kept_probabilities(logits, Sampling(temperature=0.5)), [squared / squared.sum()])
    assert np.allclose(kept_probabilities(logits, Sampling(top_k=2)), [[2 / 3, 0, 1 / 3, 0]])
    assert np.allclose(kept_probabilities(logits, Sampling(top_p=0.6)), [[2 / 3, 0, 1 / 3, 0]])  # 0.5 alone holds too little
    assert np.allclose(kept_probabilities(logits, Sampling(top_p=0.01)), [[1, 0, 0, 0]])
    assert np.allclose(kept_probabilities(logits, Sampling(top_k=9, top_p=1.0)), [[0.5, 0.05, 0.25, 0.2]])


def test_tokens_come_up_as_often_as_they_are_likely() -> None:
    def run(graph: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        made = decoder()(graph, inputs)
        return {**made, "logits": np.broadcast_to(np.log([0.6, 0.3, 0.1]), (len(inputs["input_ids"]), 1, 3))}

    made = generate(Running(run, decoder().interfaces), np.ones((400, 1), int), max_new=5, sampling=Sampling(seed=7))
    shares = np.bincount(made.reshape(-1), minlength=3) / made.size
    assert np.abs(shares - [0.6, 0.3, 0.1]).max() < 0.04  # 2000 draws: 3.6 standard deviations of the first


def test_a_seed_gives_the_same_text_whatever_stands_beside_it() -> None:
    ids = np.array([[5, 7, 2], [5, 7, 2]])
    one, two = (generate(decoder(), ids, max_new=8, sampling=Sampling(seed=seed)) for seed in (1, 2))
    assert (one == generate(decoder(), ids, max_new=8, sampling=Sampling(seed=1))).all()
    assert (one[:1] == generate(decoder(), ids[:1], max_new=8, sampling=Sampling(seed=1))).all()
    assert (one != two).any()
    assert (one[0] != one[1]).any()  # equal prompts, draws of their own


def test_a_vanishing_temperature_is_greedy() -> None:
    ids, mask = padded(left=True)
    cold = generate(decoder(), ids, mask, max_new=9, eos=END, pad=PAD, sampling=Sampling(temperature=1e-4))
    assert (cold == generate(decoder(), ids, mask, max_new=9, eos=END, pad=PAD)).all()


# ---- what is refused


def test_left_padded_moves_tokens_and_cuts_what_no_row_uses() -> None:
    ids, mask = left_padded(np.array([[1, 2, 9, 9], [9, 3, 9, 9]]), np.array([[1, 1, 0, 0], [0, 1, 0, 0]]), PAD)
    assert ids.tolist() == [[1, 2], [PAD, 3]]
    assert mask.tolist() == [[1, 1], [0, 1]]


@pytest.mark.parametrize(
    ("ids", "mask"), [(np.zeros((1, 0)), None), (np.ones((2, 2)), np.array([[1, 1], [0, 0]])), (np.zeros((0, 3)), None)]
)
def test_an_empty_prompt(ids: np.ndarray, mask: np.ndarray | None) -> None:
    with pytest.raises(BadInput, match="no tokens"):
        generate(decoder(), ids, mask, max_new=2)


def test_a_prompt_longer_than_the_context() -> None:
    with pytest.raises(BadInput, match=r"prompt of 6 tokens and 5 new ones .* context of 10: shorten the prompt to 5 tokens"):
        generate(decoder(), *padded(left=True), max_new=5, context=10)
    assert generate(decoder(), *padded(left=True), max_new=4, context=10).shape == (3, 4)


@pytest.mark.parametrize(
    "wrong", [{"temperature": 0}, {"top_k": 0}, {"top_p": 0}, {"top_p": 1.2}, {"temperature": float("nan")}]
)
def test_settings_that_mean_nothing(wrong: dict[str, float]) -> None:
    with pytest.raises(BadInput, match=next(iter(wrong))):
        Sampling(**wrong)  # type: ignore[arg-type]
