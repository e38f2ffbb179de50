"""Texts to learn from and pairs to be judged by, as tokens."""

import numpy as np
import pytest
import tiny_texts
from tokenizers import normalizers

from edgekd import data
from edgekd.data import texts
from edgekd.errors import BadInput
from edgekd.recipe import Data
from edgekd.text import tokenizer as tokenizers

LINES = ["the cat sees the dog", "a bird", "the old man"]


@pytest.fixture
def reading(tmp_path):
    return texts.Reading(tokenizers.load(str(tiny_texts.tokenizer(tmp_path / "words")), "student.tokenizer"))


@pytest.fixture
def put(tmp_path):
    """Write texts and pairs; return the recipe's data."""

    def write(lines=LINES, scored=None, **rest):
        (tmp_path / "texts.txt").write_text("\n".join(lines))
        source = tiny_texts.write_rows(tmp_path / "pairs.jsonl", scored or tiny_texts.pairs(12))
        return Data.model_validate({"source": str(tmp_path / "texts.txt"), "pairs": {"source": str(source)}, **rest})

    return write


def told(call, *arguments):
    with pytest.raises(BadInput) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_batch_is_as_long_as_its_longest_text(put, reading):
    made = texts.texts(put(), {"student": reading})
    assert len(made) == 3
    batch = made.take(np.array([1, 2]))
    assert batch["input_ids"].tolist() == [[2, 4, 9, 3, 0], [2, 5, 15, 11, 3]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert batch["index"].tolist() == [1, 2]
    some = made.at(np.array([2, 0]))
    assert some.take(np.array([0]))["input_ids"].tolist() == [[2, 5, 15, 11, 3]]
    assert some.fingerprint != made.fingerprint
    assert made.lengths.tolist() == [7, 4, 5]


def test_each_model_reads_with_its_own_tokenizer(put, reading, tmp_path):
    folder = tiny_texts.tokenizer(tmp_path / "other", ("the", "bird", "cat"), special=False)
    teacher = texts.Reading(tokenizers.load(str(folder), "teacher.tokenizer"), "teacher_")
    batch = texts.texts(put(), {"student": reading, "teacher": teacher}).take(np.array([0, 1]))
    assert batch["teacher_input_ids"].tolist() == [[4, 6, 1, 4, 1], [1, 5, 0, 0, 0]]
    assert batch["teacher_attention_mask"].tolist() == [[1] * 5, [1, 1, 0, 0, 0]]
    assert batch["input_ids"].shape == (2, 7)


def test_long_texts_are_cut_and_that_is_told(put, reading, monkeypatch):
    said = []
    monkeypatch.setattr(texts, "say", said.append)
    made = texts.texts(put(max_tokens=5), {"student": reading})
    assert made.take(np.array([0]))["input_ids"].tolist() == [[2, 5, 7, 18, 3]]
    assert made.max_tokens == 5
    assert len(said) == 1
    assert "1 of 3 texts are longer than 5 tokens of the student and were cut" in said[0]


def test_what_is_judged_by_is_not_learned_from(put, reading, monkeypatch):
    said = []
    monkeypatch.setattr(texts, "say", said.append)
    config = put()
    made = texts.texts(config, {"student": reading}, {"a bird", "no such text"})
    assert made.take(np.arange(2))["input_ids"][1].tolist() == [2, 5, 15, 11, 3, 0, 0]
    assert said == ["data (train): 1 of 3 texts stand in the pairs to be judged by, and were left out"]
    assert "1 of its 3 texts to learn from (2 stand in the pairs to be judged by)" in told(
        texts.texts, config, {"student": reading}, {"a bird", "the old man"}
    )


def test_pairs_come_with_their_scores(put, reading):
    rows = tiny_texts.pairs(12)
    validation, test, sentences = texts.pairs(put(scored=rows), {"student": reading})
    assert (len(validation), len(test)) == (3, 9)  # a quarter is put aside where there is one split alone
    by_score = sorted(row["score"] for row in rows)
    assert sorted([*validation.scores.tolist(), *test.scores.tolist()]) == by_score
    assert sentences == {row[key] for row in rows for key in ("sentence1", "sentence2")}
    batch = test.take(np.array([4]))
    assert batch.keys() == {
        "index", "first_input_ids", "first_attention_mask", "second_input_ids", "second_attention_mask",
    }  # fmt: skip
    whole = {tuple(reading.tokenizer(row["sentence1"])["input_ids"]): row["score"] for row in rows}
    assert whole[tuple(batch["first_input_ids"][0].tolist())] == test.scores[4]


def test_the_stored_splits_are_taken_where_they_are(reading, tmp_path):
    told_of = tiny_texts.data(tmp_path, scored=20)
    config = Data.model_validate(told_of)
    validation, test, _ = texts.pairs(config, {"student": reading})
    assert test.scores.tolist() == [row["score"] for row in tiny_texts.pairs(20, 21)]
    assert validation.scores.tolist() == [row["score"] for row in tiny_texts.pairs(20, 11)]
    assert len(texts.pairs(config.model_copy(update={"limit": 7}), {"student": reading})[1]) == 7
    (tmp_path / "pairs" / "validation.jsonl").rename(tmp_path / "pairs" / "train.jsonl")
    again, _, _ = texts.pairs(config, {"student": reading})
    assert again.scores.tolist() == validation.scores.tolist()


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (
            [{"sentence1": "a", "sentence2": "b", "score": 1}] * 2,
            "2 scored pair(s); 12 at least are needed, of which a quarter picks the epoch",
        ),
        (
            [{"sentence1": "a", "sentence2": "b", "score": 1}] * 16,
            "(validation): the scores of all 4 pairs are 1; scores that differ",
        ),
        (
            [{"sentence1": "a", "sentence2": "b", "score": "much"}] * 9,
            "row 1: 'much' is no score; name the column with data.pairs.score",
        ),
        ([{"sentence1": "a", "sentence2": "b", "score": n} for n in (1, 2, float("nan"), 4)], "row 3: nan is no score"),
        ([{"sentence1": "a", "sentence2": "b", "score": n} for n in (1, None)], "row 2: None is no score"),
        ([{"sentence1": "a", "sentence2": " ", "score": n} for n in range(16)], "`sentence2` is empty"),
        ([{"sentence1": "a", "sentence2": ["b"], "score": n} for n in range(16)], "`sentence2` is list, no text"),
        ([{"sentence1": "a", "score": n} for n in range(16)], "no column with a usual name for the sentence2"),
    ],
)
def test_pairs_that_cannot_be_judged_by_are_told(put, reading, rows, words):
    assert words in told(texts.pairs, put(scored=rows), {"student": reading})


def test_no_pairs_are_told(put, reading):
    assert "add `pairs: {source: ...}` to `data`" in told(
        texts.pairs, put().model_copy(update={"pairs": None}), {"student": reading}
    )


@pytest.mark.parametrize(
    ("text", "what"),
    [("", "empty"), ("\t", "empty"), (None, "empty"), (3.5, "float"), ("a\ud800", "no text: it has half a character")],
)
def test_texts_that_are_none_are_told(text, what):
    assert f"rows.csv, row 2: `text` is {what}" in told(texts.checked, ["fine", text], "rows.csv", "text")


def test_a_text_without_any_token_is_told(put, tmp_path):
    folder = tiny_texts.tokenizer(tmp_path / "bare", special=False)
    bare = texts.Reading(tokenizers.load(str(folder), "student.tokenizer"))
    assert len(texts.texts(put(), {"student": bare})) == 3
    bare.tokenizer.backend_tokenizer.normalizer = normalizers.Replace("a bird", "")
    assert "the student's tokenizer makes no token of `a bird`" in told(texts.texts, put(), {"student": bare})


def test_fingerprints_follow_the_texts_and_not_the_tokenizer(put, reading, tmp_path):
    config = put()
    made = texts.texts(config, {"student": reading})
    other = texts.Reading(tokenizers.load(str(tiny_texts.tokenizer(tmp_path / "few", ("the",))), "student.tokenizer"))
    assert texts.texts(config, {"student": other}).fingerprint == made.fingerprint
    assert texts.texts(put(max_tokens=5), {"student": reading}).fingerprint != made.fingerprint
    assert texts.texts(put([*LINES[:2], "the old dog"]), {"student": reading}).fingerprint != made.fingerprint
    assert texts.texts(put([" ".join(LINES[:2]), LINES[2]]), {"student": reading}).fingerprint != made.fingerprint
    rows = tiny_texts.pairs(12)
    before = texts.pairs(put(scored=rows), {"student": reading})[1].fingerprint
    rows[-1] = {**rows[-1], "score": 4.9}
    assert texts.pairs(put(scored=rows), {"student": reading})[1].fingerprint != before


def test_the_key_of_cached_stages(put, tmp_path):
    config = put()
    first = data.fingerprint(config, text=True)
    assert data.fingerprint(config, text=True) == first
    moved = tmp_path / "elsewhere" / "deep"
    moved.mkdir(parents=True)
    for name in ("texts.txt", "pairs.jsonl"):
        (moved / name).write_bytes((tmp_path / name).read_bytes())
    pairs = config.pairs.model_copy(update={"source": str(moved / "pairs.jsonl")})
    assert data.fingerprint(config.model_copy(update={"pairs": pairs}), text=True) == first
    assert data.fingerprint(config.model_copy(update={"source": str(moved / "texts.txt"), "pairs": pairs}), text=True) == first
    assert data.fingerprint(config.model_copy(update={"max_tokens": 9}), text=True) != first
    other = [config.model_copy(update={"source": name}) for name in ("some/texts", "other/texts")]
    assert len({first, *(data.fingerprint(one, text=True) for one in other)}) == 3  # a hub id beside files of pairs
    named = config.pairs.model_copy(update={"source": "some/pairs"})
    assert data.fingerprint(config.model_copy(update={"pairs": named}), text=True) != first
    (moved / "pairs.jsonl").write_text((moved / "pairs.jsonl").read_text().replace("cat", "dog"))
    assert data.fingerprint(config.model_copy(update={"pairs": pairs}), text=True) != first


def test_few_pairs_to_judge_by_are_told(put, reading, tmp_path):
    assert "11 scored pair(s); 12 at least" in told(texts.pairs, put(scored=tiny_texts.pairs(11)), {"student": reading})
    assert len(texts.pairs(put(scored=tiny_texts.pairs(12)), {"student": reading})[0]) == 3
    config = Data.model_validate(tiny_texts.data(tmp_path, scored=3))
    assert [len(split) for split in texts.pairs(config, {"student": reading})[:2]] == [3, 3]
    fewer = config.model_copy(update={"limit": 2})
    assert "(validation): 2 scored pair(s); 3 at least are needed to judge by" in told(texts.pairs, fewer, {"student": reading})
