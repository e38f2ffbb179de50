"""Vocabularies of teacher and student: told apart at once, cut to what both have, or put in one order."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import translation

from edgekd.errors import BadInput
from edgekd.text.vocabulary import Agreement, Vocabulary, agree, apply, fits, reorder, rows_of

TOKENS = translation.TOKENS
MIXED = (TOKENS[3], *TOKENS[:3], *reversed(TOKENS[4:]))  # the same tokens, other ids


@pytest.fixture
def of(tmp_path: Path) -> Any:
    """Make a vocabulary from its tokens."""

    def make(tokens: tuple[str, ...] = TOKENS, rows: int | None = None, **given: bool) -> Vocabulary:
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        return Vocabulary(translation.load(translation.tokenizer(folder, tokens, **given)), rows or len(tokens))

    return make


def test_the_same_need_nothing(of: Any) -> None:
    for policy in ("refuse", "cut", "align"):
        assert agree(of(), of(), policy) == Agreement()


def test_padding_is_refused_or_cut(of: Any) -> None:
    with pytest.raises(BadInput, match=r"same 16 tokens, padded to vocabularies of 24 and 16.*`cut` keeps the first 16 tokens"):
        agree(of(rows=24), of(), "refuse")
    for policy in ("cut", "align"):
        assert agree(of(rows=24), of(rows=20), policy).kept == 16


def test_one_begins_with_the_other(of: Any) -> None:
    longer = of((*TOKENS, "seven", "sieben"))
    for teacher, student in ((longer, of()), (of(), longer)):
        made = agree(teacher, student, "cut")
        assert (made.kept, made.order) == (16, None)
        assert "18" in made.why
        with pytest.raises(BadInput, match=r"different tokenizers, of 1[68] and 1[68] tokens, 16 of them in both.*`cut`"):
            agree(teacher, student, "refuse")
    with pytest.raises(BadInput, match=r"Set distill.vocabulary to another: `cut`"):
        agree(of(), longer, "align")  # the teacher lacks two of the student's


def test_other_ids_are_aligned(of: Any) -> None:
    teacher, student = of((*MIXED, "seven")), of(rows=20)
    made = agree(teacher, student, "align")
    assert made.kept == 16
    assert made.order is not None
    assert [teacher.tokenizer.convert_ids_to_tokens(int(n)) for n in made.order] == list(TOKENS)
    with pytest.raises(BadInput, match=r"`align` puts the teacher's tokens in the student's order"):
        agree(teacher, student, "refuse")
    with pytest.raises(
        BadInput, match=r"same 16 tokens with other ids, such as '<pad>': 1 of the teacher, 0 of the student.*`align`"
    ):
        agree(of(MIXED), of(), "cut")


def test_nothing_in_common(of: Any) -> None:
    other = of((*TOKENS[:4], *(f"w{n}" for n in range(12))))
    for policy in ("refuse", "cut", "align"):
        with pytest.raises(
            BadInput, match=r"4 of them in both \(the teacher lacks 12 of the student's tokens, such as 'one'.*Neither"
        ):
            agree(other, of(), policy)


def test_tokenizers_that_cut_text_differently(of: Any) -> None:
    teacher = of(ends=False)
    with pytest.raises(BadInput, match="same 16 tokens, but their tokenizers cut text into them differently"):
        agree(teacher, of(), "refuse")
    assert agree(teacher, of(), "cut").kept == 16


def test_a_model_that_is_too_small_for_its_tokenizer(of: Any) -> None:
    fits(of(), "student")
    with pytest.raises(
        BadInput, match=r"student: its tokenizer has ids up to 15, and the model's vocabulary has 15 entries.*vocab_size: 16"
    ):
        fits(of(rows=15), "student")


@pytest.mark.parametrize("config", [translation.decoder_only, translation.t5gemma, translation.t5])
def test_a_reordered_model_says_the_same_under_other_ids(config: Any) -> None:
    net, again = (translation.network(config(20), seed=2) for _ in range(2))
    order = np.random.default_rng(0).permutation(20)[:16]
    reorder(again, order)
    assert rows_of(again) == 16
    ids = torch.tensor([[3, 9, 15, 0]])
    given = {"decoder_input_ids": ids.flip(1)} if net.config.is_encoder_decoder else {}
    theirs = {name: torch.from_numpy(order)[values] for name, values in given.items()}
    mask = torch.ones_like(ids)
    if given:  # else transformers takes id 0 for padding
        theirs["decoder_attention_mask"] = given["decoder_attention_mask"] = mask
    with torch.no_grad():
        wanted = net(torch.from_numpy(order)[ids], attention_mask=mask, use_cache=False, **theirs).logits[..., order]
        made = again(ids, attention_mask=mask, use_cache=False, **given).logits
    torch.testing.assert_close(made, wanted)
    tied = (
        net.get_output_embeddings().weight
        is (net.get_decoder() if net.config.is_encoder_decoder else net).get_input_embeddings().weight
    )
    same = (again.get_decoder() if net.config.is_encoder_decoder else again).get_input_embeddings().weight
    assert (again.get_output_embeddings().weight is same) == tied


def test_applied_to_both() -> None:
    teacher = SimpleNamespace(net=translation.network(translation.decoder_only(20)), vocabulary=None)
    student = SimpleNamespace(net=translation.network(translation.decoder_only(20)), vocabulary=None)
    apply(Agreement(16, np.arange(16)[::-1].copy()), teacher, student)
    assert (teacher.vocabulary, student.vocabulary, rows_of(teacher.net), rows_of(student.net)) == (16, 16, 16, 20)
