"""Blocks of text: rows joined with the end-of-text token, cut to one length, the last ones put aside to judge by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_causal

from edgekd.data import blocks as module
from edgekd.data.blocks import blocks
from edgekd.errors import BadInput
from edgekd.recipe import Data
from edgekd.text import tokenizer as tokenizers


@pytest.fixture
def letters(tmp_path: Path) -> Any:
    return tokenizers.load(str(tiny_causal.tokenizer(tmp_path / "tokenizer")), "student.tokenizer")


def ids(text: str) -> list[int]:
    return [tiny_causal.LETTERS.index(letter) + 1 for letter in text]


def rows(file: Path, texts: list[Any], column: str = "text") -> str:
    file.write_text("".join(json.dumps({column: text}) + "\n" for text in texts), encoding="utf-8")
    return str(file)


def test_rows_are_joined_and_cut(letters: Any, tmp_path: Path) -> None:
    source = rows(tmp_path / "t.jsonl", ["ab", "cde", "", "f ghijklmnop", None])
    made = blocks(Data(source=source, max_tokens=4, test_fraction=0.25, validation_fraction=0.34), letters)
    whole = np.array([*ids("ab"), 0, *ids("cde"), 0, *ids("f ghijklmnop"), 0])[:20].reshape(-1, 4)
    assert np.concatenate([made.train.ids, made.validation.ids, made.test.ids]).tolist() == whole.tolist()
    assert [len(split) for split in (made.train, made.validation, made.test)] == [3, 1, 1]  # the last ones are put aside


def test_a_plain_text_file_is_one_text_with_its_line_ends(letters: Any, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("ab\n\n  cd.\nef\nghij\n", encoding="utf-8")
    made = blocks(Data(source=str(tmp_path / "t.txt"), max_tokens=4), letters)
    whole = np.concatenate([made.train.ids, made.validation.ids, made.test.ids]).reshape(-1)
    assert whole.tolist() == ids("ab\n\n  cd.\nef\nghij")[:16]


def test_splits_of_the_source_are_kept_and_limited(letters: Any, tmp_path: Path) -> None:
    for name, text in (("train", "abcdefghxyz."), ("validation", "ijkl"), ("test", "mnopqrstuvwx")):
        rows(tmp_path / f"{name}.jsonl", [text])
    made = blocks(Data(source=str(tmp_path), max_tokens=4, limit=2), letters)
    assert [split.ids.tolist() for split in (made.train, made.validation, made.test)] == [
        [ids("abcd"), ids("efgh")],
        [ids("ijkl")],
        [ids("mnop"), ids("qrst")],
    ]


def test_every_block_begins_with_what_the_tokenizer_puts_before_a_text(tmp_path: Path) -> None:
    begins = tokenizers.load(str(tiny_causal.tokenizer(tmp_path / "b", begins=True)), "student.tokenizer")
    made = blocks(Data(source=rows(tmp_path / "t.jsonl", ["abcdef", "ghijkl"]), max_tokens=4), begins)
    begin = len(tiny_causal.LETTERS) + 1
    assert np.concatenate([made.train.ids, made.validation.ids, made.test.ids]).tolist() == [
        [begin, *ids("abc")], [begin, *ids("def")], [begin, 0, *ids("gh")], [begin, *ids("ijk")],
    ]  # fmt: skip


def test_taking_blocks(letters: Any, tmp_path: Path) -> None:
    made = blocks(Data(source=rows(tmp_path / "t.jsonl", ["abcdefghijklmnop"]), max_tokens=4), letters).train
    taken = made.take(np.array([1, 0]))
    assert taken["input_ids"].tolist() == [ids("efgh"), ids("abcd")]
    assert taken["input_ids"].dtype == taken["attention_mask"].dtype == np.int64
    assert taken["attention_mask"].tolist() == [[1] * 4] * 2
    assert made.at(np.array([1])).take(np.array([0]))["input_ids"].tolist() == [ids("efgh")]
    assert made.at(np.array([1])).fingerprint not in (made.fingerprint, made.at(np.array([0])).fingerprint)


def test_a_long_text_is_tokenized_in_pieces(letters: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "abc def\nghi\njklmnopqrstuvw xyz.\n" * 3
    monkeypatch.setattr(module, "_PIECE", 7)
    assert "".join(module._pieces(text)) == text
    made = blocks(Data(source=rows(tmp_path / "t.jsonl", [text]), max_tokens=8), letters)
    assert np.concatenate([made.train.ids, made.validation.ids, made.test.ids]).reshape(-1).tolist() == ids(text)[:96]


@pytest.mark.parametrize(
    ("texts", "column", "settings", "said"),
    [
        (["", None, "  "], "text", {}, r"there is no text in it, 3 empty row\(s\) alone"),
        (["ab", 7], "text", {}, r"row 2: `text` is int, no text; name the column of text with data.text"),
        (["ab", "c\ud83d"], "text", {}, r"row 2: `text` is no text: it has half a character at 1"),
        (["abcdefghijklm"], "text", {"max_tokens": 4}, r"1 block of 4 tokens to learn from; 2 at least are needed"),
        (
            ["abcdefghijklmnopqrst"],
            "text",
            {"max_tokens": 4, "limit": 1},
            r"1 block of 4 tokens to learn from.*a higher data.limit",
        ),
        (["ab"], "words", {}, r"no column with a usual name for the text; name it with data.text; columns there: words"),
        (["ab"], "words", {"text": "word"}, r"has no column `word` \(did you mean `words`\?\)"),
        (["abcdefghijk"], "text", {"max_tokens": 8}, r"makes 1 block\(s\) of 8 tokens, too few to learn from"),
    ],
)
def test_what_cannot_be_learned_from(
    letters: Any, tmp_path: Path, texts: list[Any], column: str, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(BadInput, match=said):
        blocks(Data(source=rows(tmp_path / "t.jsonl", texts, column), **{"max_tokens": 2, **settings}), letters)


def test_a_tokenizer_without_an_end_of_text(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    tiny_causal.tokenizer(tmp_path / "t")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (tmp_path / "t" / name).write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}' if "config" in name else "{}")
    ends = tokenizers.load(str(tmp_path / "t"), "student.tokenizer")
    with pytest.raises(BadInput, match=r"no end-of-text token \(eos_token\)"):
        blocks(Data(source=rows(tmp_path / "t.jsonl", ["abcdef"])), ends)


def test_the_end_stands_behind_texts_of_no_tokens_too(tmp_path: Path, letters: Any) -> None:
    from tokenizers import normalizers

    letters.backend_tokenizer.normalizer = normalizers.Replace("#", "")
    try:
        made = blocks(Data(source=rows(tmp_path / "t.jsonl", ["#", "ab", "#", "#", "cdefghijk"]), max_tokens=4), letters)
    finally:
        letters.backend_tokenizer.normalizer = None
    whole = np.concatenate([made.train.ids, made.validation.ids, made.test.ids]).reshape(-1)
    assert whole.tolist() == [0, *ids("ab"), 0, 0, 0, *ids("cdefghijk"), 0]


def test_a_path_with_brackets_is_no_markup(letters: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "[bold]").mkdir()
    blocks(Data(source=rows(tmp_path / "[bold]" / "t.jsonl", ["abcdefghijklmnopqrstuvwxyz", ""]), max_tokens=4), letters)
    assert "[bold]" in "".join(capsys.readouterr().err.split())
