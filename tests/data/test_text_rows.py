"""Columns of text, from every kind of file."""

import csv

import pytest
import tiny_texts

from edgekd.data import text_rows
from edgekd.errors import BadInput
from edgekd.recipe import Data, Pairs

ROWS = [{"sentence": "the cat", "n": 1}, {"sentence": "a dog, and\na bird", "n": 2}]
TEXTS = [row["sentence"] for row in ROWS]


def put_csv(file):
    with file.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, ["sentence", "n"])
        writer.writeheader()
        writer.writerows(ROWS)


def put_parquet(file):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), file)


PUT = {"parquet": put_parquet, "csv": put_csv, "jsonl": lambda file: tiny_texts.write_rows(file, ROWS)}


def told(*arguments, **options):
    with pytest.raises(BadInput) as caught:
        text_rows.read(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", PUT)
def test_tables_of_each_kind(kind, tmp_path):
    PUT[kind](tmp_path / f"rows.{kind}")
    assert text_rows.read(Data(source=str(tmp_path / f"rows.{kind}")), ["text"]) == {"train": {"text": TEXTS}}
    message = told(Data(source=str(tmp_path / f"rows.{kind}"), text="sentense"), ["text"])
    assert "data.text" in message
    assert "did you mean `sentence`" in message
    message = told(Pairs(source=str(tmp_path / f"rows.{kind}")), ["score"])
    assert "no column with a usual name for the score; name it with data.pairs.score; columns there: sentence, n" in message


def test_plain_text_is_a_text_a_line(tmp_path):
    (tmp_path / "lines.txt").write_bytes("\ufeffthe cat\r\n\r\n  a d\u00f6g  \n".encode())
    assert text_rows.read(Data(source=str(tmp_path / "lines.txt")), ["text"]) == {"train": {"text": ["the cat", "a d\u00f6g"]}}
    assert "plain text has no columns" in told(Pairs(source=str(tmp_path / "lines.txt")), ["sentence1", "sentence2"])
    assert "plain text and has no columns, and so none called `words`" in told(
        Data(source=str(tmp_path / "lines.txt"), text="words"), ["text"]
    )
    (tmp_path / "lines.txt").write_bytes("d\u00f6g".encode("latin-1"))
    assert "not a UTF-8 text file" in told(Data(source=str(tmp_path / "lines.txt")), ["text"])


def test_a_folder_named_by_split(tmp_path):
    for name in ("train-00000-of-00002", "train-00001-of-00002", "dev"):
        put_parquet(tmp_path / f"{name}.parquet")
    (tmp_path / "LICENSE.txt").write_text("no text to learn from")
    (tmp_path / ".cache").mkdir()
    tiny_texts.write_rows(tmp_path / ".cache" / "other.jsonl", [{"x": 1}])
    found = text_rows.read(Data(source=str(tmp_path)), ["text"])
    assert {role: len(columns["text"]) for role, columns in found.items()} == {"train": 4, "validation": 2}
    assert len(text_rows.files(Data(source=str(tmp_path)))) == 3


def test_a_folder_of_plain_text(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo")
    (tmp_path / "b.txt").write_text("three")
    assert text_rows.read(Data(source=str(tmp_path)), ["text"])["train"]["text"] == ["one", "two", "three"]


def test_only_the_splits_that_are_wanted_are_read(tmp_path):
    tiny_texts.write_rows(tmp_path / "train.jsonl", ROWS)
    tiny_texts.write_rows(tmp_path / "test.jsonl", [{"no": "text"}])
    assert text_rows.read(Data(source=str(tmp_path)), ["text"], ["train"]) == {"train": {"text": TEXTS}}
    assert "no column" in told(Data(source=str(tmp_path)), ["text"])


def test_which_split_is_which(tmp_path):
    for name in ("dev", "gold", "train"):
        tiny_texts.write_rows(tmp_path / name / "rows.jsonl", ROWS)
    pairs = Pairs(source=str(tmp_path))
    assert "which split is it" in told(pairs, ["sentence1"])  # gold
    named = Pairs(source=str(tmp_path), test="gold", sentence1="sentence")
    assert sorted(text_rows.read(named, ["sentence1"])) == ["test", "train", "validation"]
    named = Pairs(source=str(tmp_path), test="dev", validation="gold", sentence1="sentence")
    assert sorted(text_rows.read(named, ["sentence1"])) == ["test", "train", "validation"]
    assert "did you mean `train`" in told(Data(source=str(tmp_path), train="trian", test="gold"), ["text"])
    assert "one split cannot play two roles" in told(
        Data(source=str(tmp_path), train="dev", validation="dev", test="gold"), ["text"]
    )


def test_what_is_not_there(tmp_path):
    assert "no file or folder" in told(Data(source=str(tmp_path / "nowhere.csv")), ["text"])
    assert "no text in" in told(Data(source=str(tmp_path)), ["text"])
    assert "digits are pictures" in told(Data(source="digits"), ["text"])
    (tmp_path / "a.pdf").write_text("x")
    assert "of no kind that text is read from" in told(Data(source=str(tmp_path / "a.pdf")), ["text"])
    (tmp_path / "a.parquet").write_text("x")
    assert "cannot be read as parquet" in told(Data(source=str(tmp_path / "a.parquet")), ["text"])
    (tmp_path / "a.jsonl").write_text("")
    assert "has no rows" in told(Data(source=str(tmp_path / "a.jsonl")), ["text"])


def test_a_dataset_of_the_hub(monkeypatch, tmp_path):
    import datasets

    made = datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(ROWS[:1])})
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *words: asked.append(words) or made)
    found = text_rows.read(Data(source="somebody/texts", config="en"), ["text"])
    assert found == {"train": {"text": TEXTS}, "test": {"text": TEXTS[:1]}}
    assert asked == [("somebody/texts", "en")]
    assert text_rows.files(Data(source="somebody/texts")) == []

    def unreachable(*_):
        raise ConnectionError("cannot reach the hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    message = told(Pairs(source="somebody/pairs"), ["score"])
    assert "data.pairs.source: `somebody/pairs`" in message
    assert "cannot reach the hub" in message


def test_a_comma_without_quotes_is_told(tmp_path):
    (tmp_path / "a.csv").write_text("text,n\nthe cat,1\na dog, and a bird,2\n")
    assert "a.csv, row 2: more cells than the header has columns; put texts with commas" in told(
        Data(source=str(tmp_path / "a.csv")), ["text"]
    )
    (tmp_path / "a.csv").write_text('text,n\n"the cat, small"\n"a dog, and a bird",2\n')
    assert text_rows.read(Data(source=str(tmp_path / "a.csv")), ["text"])["train"]["text"] == [
        "the cat, small",
        "a dog, and a bird",
    ]
    (tmp_path / "a.csv").write_text("text\na, b\n")  # in the first row, which names the columns that there are
    assert "more cells than the header" in told(Data(source=str(tmp_path / "a.csv"), text="words"), ["text"])


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_byte_order_mark_is_no_text(kind, tmp_path):
    file = tmp_path / f"x.{kind}"
    PUT[kind](file)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    data = Data(source=str(file), text="sentence")
    assert text_rows.read(data, ("text",)) == {"train": {"text": TEXTS}}


@pytest.mark.parametrize("kind", ["csv", "jsonl", "txt"])
def test_bytes_that_are_no_utf_8_are_told(kind, tmp_path):
    file = tmp_path / f"a.{kind}"
    text = {"csv": "text\ndög\n", "jsonl": '{"text": "dög"}\n', "txt": "dög\n"}[kind]
    file.write_bytes(text.encode("latin-1"))
    assert "not a UTF-8" in told(Data(source=str(file)), ["text"])
    file.write_bytes(text.encode())
    assert text_rows.read(Data(source=str(file)), ["text"]) == {"train": {"text": ["dög"]}}


def test_a_chapter_in_one_cell(tmp_path):
    chapter = "the cat sat. " * 20_000
    (tmp_path / "a.csv").write_text(f"text\n{chapter}\n")
    assert text_rows.read(Data(source=str(tmp_path / "a.csv")), ["text"])["train"]["text"] == [chapter]


def test_a_folder_called_like_a_file(tmp_path):
    (tmp_path / "corpus.txt").mkdir()
    (tmp_path / "corpus.txt" / "a.txt").write_text("one")
    assert text_rows.read(Data(source=str(tmp_path)), ["text"])["train"]["text"] == ["one"]
