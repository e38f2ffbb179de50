"""Pairs of texts as token ids: what a model reads and writes, the splits, and messages for bad rows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import translation

from edgekd.data.sequences import sequences
from edgekd.errors import BadInput
from edgekd.recipe import Data


def write(folder: Path, rows: list[dict[str, object]], name: str = "train") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return folder


def data(source: Path, **given: object) -> Data:
    return Data(source=str(source), **{"input": "en", "output": "de", **given})  # type: ignore[arg-type]


@pytest.mark.parametrize("ends", [True, False])
def test_ids_end_once_and_are_padded_after_the_text(tmp_path: Path, ends: bool) -> None:
    source = translation.data(tmp_path / "data")
    write(source, [{"en": "one two three", "de": "eins zwei drei"}, {"en": "six", "de": "sechs"}], "test")
    splits = sequences(data(source), translation.load(translation.tokenizer(tmp_path / "tokens", ends=ends)), seed=0)
    taken = splits.test.take(np.array([1, 0]))
    id_of = {token: n for n, token in enumerate(translation.TOKENS)}
    assert taken["input_ids"].tolist() == [[id_of["six"], 1, 0, 0], [id_of["one"], id_of["two"], id_of["three"], 1]]
    assert taken["output_ids"].tolist() == [[id_of["sechs"], 1, 0, 0], [id_of["eins"], id_of["zwei"], id_of["drei"], 1]]
    assert taken["attention_mask"].tolist() == taken["output_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert splits.test.references == ("eins zwei drei", "sechs")
    assert splits.test.lengths.tolist() == [8, 4]
    assert (splits.test.start, splits.test.end, splits.test.pad) == (2, 1, 0)
    one = splits.test.at(np.array([1]))
    assert one.references == ("sechs",)
    assert one.fingerprint != splits.test.fingerprint
    assert len(one) == 1


@pytest.mark.parametrize("ends", [True, False])
def test_long_texts_are_cut_and_still_end(tmp_path: Path, ends: bool, capsys: pytest.CaptureFixture[str]) -> None:
    source = translation.data(tmp_path / "data")
    write(source, [{"en": "one two three four", "de": "eins zwei drei vier"}, {"en": "six one", "de": "sechs eins"}], "test")
    tokens = translation.load(translation.tokenizer(tmp_path / "tokens", ends=ends))
    splits = sequences(data(source, max_tokens=3), tokens, seed=0)
    assert [splits.test.inputs.row(n).tolist()[-1] for n in range(2)] == [1, 1]
    assert splits.test.inputs.lengths.tolist() == splits.test.outputs.lengths.tolist() == [3, 3]
    assert "1 of 2 inputs are longer than 3 tokens" in " ".join(capsys.readouterr().err.split())


def test_one_file_is_cut_into_three_splits_that_share_nothing(tmp_path: Path) -> None:
    rows = [{"en": f"one {word}", "de": f"{number}"} for number, word in enumerate(["two"] * 40)]
    source = write(tmp_path, rows) / "train.jsonl"
    tokens = translation.load(translation.tokenizer(tmp_path / "tokens"))
    made = [sequences(data(source), tokens, seed) for seed in (0, 0, 1)]
    parts = [[set(split.references) for split in (one.train, one.validation, one.test)] for one in made]
    assert [len(part) for part in parts[0]] == [28, 4, 8]
    assert set.union(*parts[0]) == {str(number) for number in range(40)}
    assert parts[0] == parts[1]
    assert parts[0][2] == parts[2][2]
    assert parts[0][1] != parts[2][1]
    assert made[0].train.fingerprint == made[1].train.fingerprint != made[2].train.fingerprint
    assert len(sequences(data(source, limit=5), tokens, 0).train) == 5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"input": "eng"}, r"data\.input: .*no column `eng` \(did you mean `en`\?\); columns there: en, de"),
        ({"output": "fr"}, r"data\.output: .*no column `fr`; columns there: en, de"),
        ({"input": None}, r"no column with a usual name for the input; name it with data\.input; columns there: en, de"),
    ],
)
def test_unknown_columns(tmp_path: Path, given: dict[str, object], message: str) -> None:
    tokens = translation.load(translation.tokenizer(tmp_path / "tokens"))
    with pytest.raises(BadInput, match=message):
        sequences(data(translation.data(tmp_path / "data"), **given), tokens, 0)


@pytest.mark.parametrize(("text", "said"), [("", "empty"), ("  ", "empty"), (None, "empty"), (7, "int, no text")])
def test_empty_texts(tmp_path: Path, text: object, said: str) -> None:
    source = translation.data(tmp_path / "data")
    write(source, [{"en": "one", "de": "eins"}, {"en": "two", "de": text}], "val")
    tokens = translation.load(translation.tokenizer(tmp_path / "tokens"))
    with pytest.raises(BadInput, match=rf"\(validation\), row 2: `de` is {said}"):
        sequences(data(source), tokens, 0)


def test_a_tokenizer_that_cannot_end_a_text(tmp_path: Path) -> None:
    folder = translation.tokenizer(tmp_path / "tokens")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>"}')
    with pytest.raises(BadInput, match="no end-of-text token"):
        sequences(data(translation.data(tmp_path / "data")), translation.load(folder), 0)


def test_half_a_character(tmp_path: Path) -> None:
    source = write(tmp_path / "data", [{"en": "one", "de": "eins"}, {"en": "two\ud83d", "de": "zwei"}])
    tokens = translation.load(translation.tokenizer(tmp_path / "tokens"))
    with pytest.raises(BadInput, match=r"row 2: `en` is no text: it has half a character at 3"):
        sequences(data(source), tokens, 0)


def test_a_pair_that_is_there_twice_is_not_learned_and_judged_by(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[dict[str, object]] = [{"en": "one two", "de": str(number % 20)} for number in range(40)]
    tokens = translation.load(translation.tokenizer(tmp_path / "tokens"))
    made = sequences(data(write(tmp_path / "data", rows)), tokens, 0)
    parts = [set(split.references) for split in (made.train, made.validation, made.test)]
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]
    assert len(made.test) == 8
    assert "are in the test split too, and were left out" in " ".join(capsys.readouterr().err.split())


def test_one_pair_is_too_few_to_learn_from(tmp_path: Path) -> None:
    source = translation.data(tmp_path / "data")
    tokens = translation.load(translation.tokenizer(tmp_path / "tokens"))
    with pytest.raises(BadInput, match="1 pair to learn from; 2 at least"):
        sequences(data(source, limit=1), tokens, 0)
