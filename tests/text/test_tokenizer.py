"""Tokenizers: found, compared, shipped; what is cut is counted."""

import json

import pytest
import tiny_texts
from tokenizers import Tokenizer

from edgekd import hub_access
from edgekd.errors import BadInput
from edgekd.recipe import Model
from edgekd.text import tokenizer as tokenizers

THE_CAT = [2, 5, 7, 3]  # [CLS] the cat [SEP]


@pytest.fixture
def made(tmp_path):
    return tokenizers.load(str(tiny_texts.tokenizer(tmp_path / "words")), "student.tokenizer")


def test_ids_are_cut_and_counted(made):
    ids, cut = tokenizers.encode(made, ["the cat", "the cat sees the dog", "The CAT"], 4)
    assert [ids.row(at).tolist() for at in range(3)] == [THE_CAT, THE_CAT, THE_CAT]  # the last special token stays
    assert cut == 1
    ids, cut = tokenizers.encode(made, ["the cat sees the dog"], 16)
    assert (len(ids.row(0)), cut) == (7, 0)  # what the file itself says of padding and cutting does not count
    assert tokenizers.encode(made, ["the cat"], 16, special=False)[0].row(0).tolist() == [5, 7]


def test_many_texts_are_encoded_in_parts(made, monkeypatch):
    texts = tiny_texts.sentences(23)
    whole, cut = tokenizers.encode(made, texts, 5)
    monkeypatch.setattr(tokenizers, "_AT_ONCE", 4)
    again, cut_again = tokenizers.encode(made, texts, 5)
    assert cut_again == cut > 0
    assert (again.values == whole.values).all()
    assert (again.ends == whole.ends).all()


def test_the_fingerprint_is_of_what_it_does(made, tmp_path):
    file = tmp_path / "words" / "tokenizer.json"
    told = json.loads(file.read_text())
    assert told["truncation"] is not None
    told["truncation"] = told["padding"] = None
    file.write_text(json.dumps(told))
    same = tokenizers.load(str(tmp_path / "words"), "another key, so that it is read again")
    assert tokenizers.fingerprint(same) == tokenizers.fingerprint(made)
    other = tokenizers.load(str(tiny_texts.tokenizer(tmp_path / "other", ("cat", *tiny_texts.WORDS))), "teacher.tokenizer")
    assert tokenizers.fingerprint(other) != tokenizers.fingerprint(made)


def test_what_ships_does_the_same(made, tmp_path):
    file = tokenizers.ship(made, tmp_path)
    shipped = Tokenizer.from_file(str(file))
    long = "the small cat sees the old tall dog and the red bird"
    assert shipped.encode(long).ids == tokenizers.encode(made, [long], 100)[0].row(0).tolist()
    assert len(shipped.encode(long).ids) == 14


def test_where_a_tokenizer_comes_from(tmp_path):
    bert = tiny_texts.bert(tmp_path / "bert")
    other = tiny_texts.tokenizer(tmp_path / "other", ("cat", *tiny_texts.WORDS))
    of_model = tokenizers.of(Model(model=f"hf:{bert}"), "student")
    named = tokenizers.of(Model(model=f"hf:{bert}", tokenizer=str(other)), "student")
    assert len(named) == len(of_model)  # `cat` twice is once
    assert tokenizers.fingerprint(named) != tokenizers.fingerprint(of_model)
    with pytest.raises(BadInput, match=r"student: py:a.py:net brings no tokenizer: add `tokenizer: FOLDER-OR-HUB-ID`"):
        tokenizers.of(Model(model="py:a.py:net"), "student")


def test_a_folder_without_a_tokenizer_is_told(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BadInput, match=r"teacher\.model: no tokenizer in .*tokenizer\.json is what to put there"):
        tokenizers.of(Model(model=f"hf:{tmp_path}"), "teacher")
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(BadInput, match=r"teacher\.model: no tokenizer to be had from"):
        tokenizers.of(Model(model=f"hf:{tmp_path}"), "teacher")


def test_a_hub_id_without_a_network_is_told_at_once(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_access, "_resolves", lambda host: False)
    monkeypatch.setattr(hub_access, "getproxies", dict)
    with pytest.raises(BadInput, match=r"student\.tokenizer: no tokenizer to be had from nobody/nothing") as caught:
        tokenizers.of(Model(model="py:a.py:net", tokenizer="nobody/nothing"), "student")
    assert "\n" not in str(caught.value)


def test_a_tokenizer_in_python_alone_is_refused(made, monkeypatch, tmp_path):
    import transformers

    class Slow:
        is_fast = False

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *_, **__: Slow())
    with pytest.raises(BadInput, match="written in Python alone"):
        tokenizers.load(str(tmp_path / "words"), "a key that no other test has")


def test_what_leaves_no_room_for_a_text_is_told(made):
    assert tokenizers.encode(made, ["the cat"], 3)[0].row(0).tolist() == [2, 5, 3]
    assert tokenizers.encode(made, ["the cat"], 1, special=False)[0].row(0).tolist() == [5]
    for most, more in ((2, 1), (1, 2)):
        with pytest.raises(BadInput, match=rf"leaves {most} token.*puts 2 of its own around each: raise it by {more} at least"):
            tokenizers.encode(made, ["the cat"], most)


def test_long_texts_are_encoded_a_few_at_a_time(made, monkeypatch):
    texts = ["the cat", "a dog sees the old bird", "a", "the red dog", "the blue bird"]
    whole, _ = tokenizers.encode(made, texts, 16)
    monkeypatch.setattr(tokenizers, "_CHARACTERS", 12)
    assert list(tokenizers._together(texts)) == [texts[:1], texts[1:2], texts[2:4], texts[4:]]
    again, _ = tokenizers.encode(made, texts, 16)
    assert (again.values == whole.values).all()
    assert (again.ends == whole.ends).all()


def test_models_that_read_no_text_are_told(tmp_path):
    with pytest.raises(BadInput, match=r"student\.model: timm:resnet18 reads pictures"):
        tokenizers.of(Model(model="timm:resnet18"), "student")
    with pytest.raises(BadInput, match=r"student\.model: `hff:bert` is neither .*did you mean `hf`"):
        tokenizers.of(Model(model="hff:bert"), "student")


def test_of_a_book_its_beginning_is_read(made, monkeypatch):
    words = tiny_texts.sentences(4000)
    book, blanks = " ".join(words), " " * 5000 + "the cat sees " + " ".join(words[:9])
    texts = ["the cat", book, blanks, "a dog", " " * 5000 + "a bird"]
    made.backend_tokenizer.no_padding()
    made.backend_tokenizer.no_truncation()
    wanted, cut = [made.backend_tokenizer.encode(text).ids for text in texts], [False, True, True, False, False]
    wanted = [ids[:15] + ids[-1:] if over else ids for ids, over in zip(wanted, cut, strict=True)]
    read = []
    together = tokenizers._together
    monkeypatch.setattr(tokenizers, "_together", lambda texts: together(read.extend(map(len, texts)) or texts))
    ids, count = tokenizers.encode(made, texts, 16)
    assert [ids.row(n).tolist() for n in range(5)] == wanted
    assert count == 2
    assert read == [7, 1024, 1024, 5, 1024, len(blanks), len(texts[4])]
    assert len(book) > 50_000
