"""What a model takes of memory is told by its files, and one that does not fit is not loaded."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import tiny_causal
import tiny_texts
import torch
import translation
from safetensors.torch import save_file
from torch import nn

from edgekd import memory, models
from edgekd.errors import BadInput
from edgekd.models.footprint import bytes_needed, bytes_of
from edgekd.models.transformers_model import transformers_here
from edgekd.recipe import Model, Recipe
from edgekd.tasks import task_of

CODE = """
from torch import nn

def net(num_classes):
    raise MemoryError("nothing of this was to be made")
"""


def safetensors(file: Path, **tensors: torch.Tensor) -> Path:
    save_file(tensors, file, metadata={"format": "pt"})
    return file


def test_bytes_as_stored_and_as_loaded(tmp_path: Path) -> None:
    file = safetensors(
        tmp_path / "w.safetensors", a=torch.zeros(3, 5, dtype=torch.float16), b=torch.zeros(7, dtype=torch.bfloat16),
        c=torch.zeros(2, 2), n=torch.zeros(9, dtype=torch.int64), scalar=torch.tensor(1.0),
    )  # fmt: skip
    assert bytes_of(file) == 30 + 14 + 16 + 72 + 4
    assert bytes_of(file, width=4) == 60 + 28 + 16 + 72 + 4
    torch.save({"a": torch.zeros(1000)}, tmp_path / "w.pt")
    assert bytes_of(tmp_path / "w.pt") == (tmp_path / "w.pt").stat().st_size


@pytest.mark.parametrize(
    "content",
    [b"", b"\x05", struct.pack("<Q", 2**60), struct.pack("<Q", 2) + b"[]", struct.pack("<Q", 9) + b'{"a": 1} ',
     struct.pack("<Q", 62) + b'{"a":{"dtype":"F32","shape":[9999999],"data_offsets":[0,9999]}}'[:62]],
)  # fmt: skip
def test_damaged_files_tell_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.safetensors").write_bytes(content)
    assert bytes_of(tmp_path / "w.safetensors") is None
    assert bytes_of(tmp_path / "none.safetensors") is None


def test_a_header_without_its_data_tells_nothing(tmp_path: Path) -> None:
    file = safetensors(tmp_path / "w.safetensors", a=torch.zeros(100))
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])  # fetched halfway
    assert bytes_of(file) is None


def test_which_files_a_model_is_loaded_from(tmp_path: Path) -> None:
    folder = tiny_texts.bert(tmp_path / "bert")
    count = sum(p.numel() for p in transformers_here().BertModel.from_pretrained(folder).parameters())
    model = Model(model=f"hf:{folder}")
    assert bytes_needed(model, "teacher") == pytest.approx(4 * count, rel=0.01)
    safetensors(folder / "model.fp16.safetensors", a=torch.zeros(10**5))  # beside it, and not loaded
    assert bytes_needed(model, "student") == bytes_needed(model, "teacher") == pytest.approx(4 * count, rel=0.01)
    # a student that starts from a part, or has another shape, may be smaller
    assert bytes_needed(model.model_copy(update={"teacher_layers": (0,)}), "student") is None
    assert bytes_needed(model.model_copy(update={"arguments": {"hidden_size": 8}}), "student") is None
    own = model.model_copy(
        update={"weights": safetensors(tmp_path / "own.safetensors", a=torch.zeros(50, dtype=torch.float16))}
    )
    assert bytes_needed(own, "student") == 200
    assert bytes_needed(own.model_copy(update={"model": "py:net.py:net"}), "student") == 100
    assert bytes_needed(Model(model="py:net.py:net"), "teacher") is None
    assert bytes_needed(Model(model="hf:nobody/nothing-like-this"), "teacher") is None
    assert bytes_needed(Model(model="timm:resnet18"), "teacher") is None


def test_shards_are_added_up(tmp_path: Path) -> None:
    for n in (1, 2):
        safetensors(tmp_path / f"model-0000{n}-of-00002.safetensors", a=torch.zeros(100 * n, dtype=torch.bfloat16))
    index = {
        "weight_map": {
            "x": "model-00001-of-00002.safetensors",
            "y": "model-00002-of-00002.safetensors",
            "z": "model-00002-of-00002.safetensors",
        }
    }
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert bytes_needed(Model(model=f"hf:{tmp_path}"), "teacher") == 4 * 300
    (tmp_path / "model.safetensors.index.json").write_text("{")
    assert bytes_needed(Model(model=f"hf:{tmp_path}"), "teacher") is None


def test_a_run_folders_weights_count_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "student").mkdir()
    safetensors(tmp_path / "student" / "model.safetensors", a=torch.zeros(10))
    (tmp_path / "student" / "model.json").write_text("{}")
    assert bytes_needed(Model(model=str(tmp_path)), "teacher") == 40


def recipes(folder: Path) -> list[Recipe]:
    """A recipe of each task of text."""
    tiny_texts.bert(folder / "bert")
    embedding = tiny_texts.recipe(folder, folder / "bert")
    tiny_causal.model(folder / "causal")
    (folder / "text.txt").write_text(tiny_causal.text(100))
    causal = {
        "task": "causal-lm",
        "data": {"source": str(folder / "text.txt"), "max_tokens": 16},
        "student": {"model": f"hf:{folder / 'causal'}"},
    }
    tokens = str(translation.tokenizer(folder / "tokens"))
    net = translation.saved(translation.t5gemma(), folder / "t5gemma", weights=True)
    sequence = {
        "task": "seq2seq-lm", "data": {"source": str(translation.data(folder / "data")), "input": "en", "output": "de", "max_tokens": 8},
        "student": {"model": f"hf:{net}", "tokenizer": tokens},
    }  # fmt: skip
    return [embedding, Recipe.model_validate(causal), Recipe.model_validate(sequence)]


def test_what_does_not_fit_is_told_before_it_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: 1000)
    transformers = transformers_here()
    for name in ("AutoModel", "AutoModelForCausalLM", "AutoModelForSeq2SeqLM"):
        monkeypatch.setattr(getattr(transformers, name), "from_pretrained", None)
    for recipe in recipes(tmp_path):
        task = task_of(recipe.task)
        with pytest.raises(
            BadInput, match=r"^(teacher|student): hf:.*: its weights take \d+ MB of memory, and 0 MB are free"
        ) as caught:
            task.models(recipe, task.splits(recipe))
        assert "take a machine with more memory" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_picture_model_that_does_not_fit(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(CODE)
    header = json.dumps({"w": {"dtype": "F32", "shape": [2**36], "data_offsets": [0, 2**38]}}).encode()
    with (tmp_path / "w.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + 2**38)  # 275 GB, of which the disk has none
    given = Model(model=f"py:{tmp_path / 'net.py'}:net", weights=tmp_path / "w.safetensors")
    asked = {"role": "teacher", "num_classes": 2, "image_shape": (4, 4, 1), "shared": None, "seed": 0, "need_weights": True}
    with pytest.raises(
        memory.OutOfMemory, match=r"teacher: py:.*net: its weights take 274.9 GB of memory, and [\d.]+ GB are free"
    ):
        models.load(given, **asked)
    with pytest.raises(
        memory.OutOfMemory, match=r"teacher: py:.*net: while it was loaded: memory ran out; .* are free: close what"
    ):
        models.load(Model(model=given.model), **asked)


def test_an_allocation_that_fails_inside_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it was turned into on the way."""
    (embedding, *_) = recipes(tmp_path)
    maker = transformers_here().AutoModel
    monkeypatch.setattr(maker, "from_pretrained", lambda *_, **__: torch.empty(2**50, dtype=torch.uint8))
    task = task_of("text-embedding")
    with pytest.raises(
        memory.OutOfMemory, match=r"teacher: hf:.*: while it was loaded: memory ran out \(another 1125899.9 GB were asked for\)"
    ):
        task.models(embedding, task.splits(embedding))


def test_a_weights_file_too_large_to_read_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgekd.models import weights

    file = safetensors(tmp_path / "w.safetensors", weight=torch.zeros(2, 2), bias=torch.zeros(2))

    def no_room(_: Path) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr("safetensors.torch.load_file", no_room)
    with pytest.raises(BadInput, match="damaged or not safetensors"):  # it would fit: the file asks for more than it is long
        weights.load_weights(nn.Linear(2, 2), file, "student")
    monkeypatch.setattr(weights, "available", lambda: 10)
    with pytest.raises(OSError, match="Cannot allocate"):
        weights.load_weights(nn.Linear(2, 2), file, "student")
