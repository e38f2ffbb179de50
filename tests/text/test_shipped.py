"""An artifact that writes text: the same tokens as transformers', out of its folder alone; and messages for what cannot be."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_causal
import torch
import translation

from edgekd.errors import BadInput
from edgekd.export import artifact as artifacts
from edgekd.export import onnx
from edgekd.export.graph import torch_runner
from edgekd.quantize.variant import Variant
from edgekd.recipe import Gate, Recipe, VariantRecipe
from edgekd.targets import load_target
from edgekd.tasks import task_of
from edgekd.text import __main__ as command
from edgekd.text import shipped
from edgekd.text.generate import Sampling

pytestmark = pytest.mark.slow


def ship(values: dict[str, Any], folder: Path) -> tuple[Path, Any]:
    """Make the artifact of a recipe's student, as it is; return its folder and the network."""
    recipe = Recipe.model_validate(values)
    task = task_of(recipe.task)
    splits = task.splits(recipe)
    _, model = task.models(recipe, splits)
    graphs = task.graphs(model, splits)
    home, made = folder / "artifact", folder / "variant"
    for one in (home, made):
        one.mkdir(parents=True)
    for graph in graphs:
        onnx.write(graph, made / f"{graph.name}.onnx")
    scheme = VariantRecipe(name="fp32", method="none").scheme
    variant = Variant("fp32", "none", scheme, made, {g.name: made / f"{g.name}.onnx" for g in graphs}, "torch")
    run = torch_runner(graphs)
    artifacts.make(
        variant, load_target("onnxruntime-cpu"), home, golden=task.golden(run, splits.test, np.arange(2)), reference=run,
        gate=Gate(), task=task.name, preprocess=task.preprocessing(model, splits.test, home),
    )  # fmt: skip
    return home, model.module.net


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A decoder that goes on from its prompt; its tokenizer puts a token in front of a text."""
    folder = tmp_path_factory.mktemp("causal")
    (folder / "text.txt").write_text(tiny_causal.text(200), encoding="utf-8")
    tiny_causal.model(folder / "net", vocabulary=len(tiny_causal.LETTERS) + 2)
    tiny_causal.tokenizer(folder / "net", begins=True)
    data = {"source": str(folder / "text.txt"), "max_tokens": 16}
    return ship({"task": "causal-lm", "data": data, "student": {"model": f"hf:{folder / 'net'}"}}, folder)


@pytest.fixture(scope="module", params=["t5gemma", "decoder_only"])
def translator(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A model that reads one text and writes another, of either form."""
    folder = tmp_path_factory.mktemp(request.param)
    tokens = translation.tokenizer(folder / "tokens", ends=False)
    net = translation.saved(getattr(translation, request.param)(), folder / "net", weights=True, seed=5)
    data = {"source": str(translation.data(folder / "data")), "input": "en", "output": "de", "max_tokens": 8}
    return ship({"task": "seq2seq-lm", "data": data, "student": {"model": f"hf:{net}", "tokenizer": str(tokens)}}, folder)


def letters(ids: list[int]) -> str:
    return "".join(tiny_causal.LETTERS[one - 1] for one in ids)


def test_it_goes_on_as_transformers_does(causal: tuple[Path, Any]) -> None:
    home, net = causal
    begin = len(tiny_causal.LETTERS) + 1
    model = shipped.load(home)
    prompts = ["the cat", "a", "it ran and then"]
    wanted = []
    for prompt in prompts:
        ids = torch.tensor([[begin, *(tiny_causal.LETTERS.index(letter) + 1 for letter in prompt)]])
        made = net.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, eos_token_id=0, pad_token_id=0
        )
        new = made[0, ids.shape[1] :].tolist()
        wanted.append(letters([one for one in (new[: new.index(0)] if 0 in new else new) if one != begin]))
    assert shipped.write(model, prompts, max_new=12) == wanted
    assert [shipped.write(model, [prompt], max_new=12)[0] for prompt in prompts] == wanted
    assert any(wanted)
    assert shipped.write(model, []) == []
    assert len(shipped.write(model, ["a" * 60])[0]) <= 3  # as many as the context of 64 leaves beside <begin>


def test_it_translates_as_transformers_does(translator: tuple[Path, Any]) -> None:
    home, net = translator
    model = shipped.load(home)
    words = list(translation.TOKENS)
    for prompt in ("one two three", "six"):
        ids = torch.tensor([[*(words.index(word) for word in prompt.split()), 1]])
        given = {"decoder_input_ids": torch.tensor([[2]])} if net.config.is_encoder_decoder else {}
        made = net.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, num_beams=1, eos_token_id=1, pad_token_id=0,
            use_cache=True, **given,
        )  # fmt: skip
        new = made[0, 1 if given else ids.shape[1] :].tolist()
        new = new[: new.index(1)] if 1 in new else new
        assert shipped.write(model, [prompt]) == [" ".join(words[one] for one in new if one > 2)]


def test_drawn_tokens_are_the_seeds(causal: tuple[Path, Any]) -> None:
    model = shipped.load(causal[0])
    one, again, other = (shipped.write(model, ["the"], 20, Sampling(2.0, seed=seed))[0] for seed in (1, 1, 2))
    assert one == again != other


def test_prompts_that_cannot_be_read(causal: tuple[Path, Any], translator: tuple[Path, Any]) -> None:
    model, other = (shipped.load(home) for home, _ in (causal, translator))
    assert isinstance(shipped.write(model, [""], max_new=2)[0], str)  # it has a token to begin with
    with pytest.raises(BadInput, match="the prompt is empty"):
        shipped.write(other, ["  "])
    with pytest.raises(BadInput, match="a prompt of 63 tokens and 2 new ones do not fit the model's context of 64"):
        shipped.write(model, ["a" * 62], max_new=2)
    with pytest.raises(BadInput, match=r"a prompt of 10 tokens, and the model was made for texts of 8 \(data.max_tokens\)"):
        shipped.write(other, ["one " * 9])


def test_folders_that_write_nothing(causal: tuple[Path, Any], tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no artifact.json here"):
        shipped.load(tmp_path)
    inside = tmp_path / "run" / "targets" / "onnxruntime-cpu" / "fp32"
    inside.mkdir(parents=True)
    for file in causal[0].iterdir():
        (inside / file.name).write_bytes(file.read_bytes())
    with pytest.raises(BadInput, match=r"a run folder; give one of its artifacts: .*targets/onnxruntime-cpu/fp32"):
        shipped.load(tmp_path / "run")
    record = json.loads((inside / "artifact.json").read_text())
    (inside / "artifact.json").write_text(
        json.dumps({**record, "task": "text-embedding", "preprocess": {"host": [], "graph": []}})
    )
    with pytest.raises(BadInput, match="a text-embedding model, which writes no text"):
        shipped.load(inside)
    (inside / "artifact.json").write_text(json.dumps(record))
    (inside / "tokenizer.json").write_text("{}")
    with pytest.raises(BadInput, match=r"tokenizer.json is not the file that artifact.json describes"):
        shipped.load(inside)


def test_the_command(causal: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    home = str(causal[0])
    wanted = shipped.write(shipped.load(home), ["the", "a"], 6)
    assert command.main([home, "the", "a", "--max-new", "6"]) == 0
    assert command.main([home, "--max-new", "6", "the", "a"]) == 0
    assert command.main(["--max-new", "6", home, "the", "a"]) == 0
    assert capsys.readouterr().out == 3 * "".join(f"{text}\n" for text in wanted)
    monkeypatch.setattr(sys, "stdin", io.StringIO("the\n\na\n"))
    assert command.main([home, "--max-new", "6"]) == 0
    assert capsys.readouterr().out == "".join(f"{text}\n" for text in wanted)
    assert command.main([home, "the", "--top-p", "2"]) == 2
    assert capsys.readouterr().err == "error: top_p: 2.0 is not in (0, 1]\n"
    assert command.main([home, "the", "--max-new", "0"]) == 2
    done = subprocess.run(
        [sys.executable, "-m", "edgekd.text", f"{home}/nowhere", "the"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_without_tokenizers_it_says_what_to_install(causal: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert command.main([str(causal[0]), "the"]) == 4
