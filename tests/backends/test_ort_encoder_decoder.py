"""An encoder-decoder's attention as operators of ONNX Runtime: the same numbers as the network, the same tokens as transformers."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import translation
from torch import nn

from edgekd.backends import onnxruntime as backend
from edgekd.backends import ort_flash, ort_grouped, ort_shared
from edgekd.export import artifact as artifacts
from edgekd.export import onnx as export
from edgekd.export.graph import torch_runner
from edgekd.models.seq2seq_lm import Seq2SeqLM, graphs
from edgekd.quantize.variant import Variant, file_runner
from edgekd.recipe import Gate, Scheme
from edgekd.targets import load_target
from edgekd.text.generate import generate

ROWS, START, NEW = 40, 2, 12
SLIDING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 3}
PARTS = ("encoder", "decoder")


@dataclasses.dataclass(frozen=True)
class Made:
    """A tiny T5Gemma whose key heads serve two query heads each, its plain files and those that ship."""

    net: nn.Module
    plain: Variant
    files: dict[str, Path]

    def torch(self) -> Callable[..., dict[str, np.ndarray]]:
        return torch_runner(graphs(Seq2SeqLM(self.net, START).eval()))

    def run(self) -> Callable[..., dict[str, np.ndarray]]:
        return file_runner(self.files, exact=False)


def made(folder: Path, **given: Any) -> Made:
    net = translation.network(translation.t5gemma(ROWS, decoder=2, tie_word_embeddings=False, **given), seed=3)
    files = {graph.name: folder / "plain" / f"{graph.name}.onnx" for graph in graphs(Seq2SeqLM(net, START).eval())}
    (folder / "plain").mkdir()
    (folder / "made").mkdir()
    for graph in graphs(Seq2SeqLM(net, START).eval()):
        export.write(graph, files[graph.name])
    plain = Variant("fp32", "none", Scheme(), folder / "plain", files, "torch")
    return Made(net, plain, backend.convert(plain, load_target("onnxruntime-cpu"), folder / "made"))


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return made(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def capped(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Scores capped, as T5Gemma's are unless it is told otherwise; low enough to bite."""
    return made(tmp_path_factory.mktemp("capped"), attn_logit_softcapping=0.5)


def forms(one: Made) -> list[dict[str, Any]]:
    told = [dict(backend.form(one.files[part])) for part in PARTS]
    told[1].pop("past_key_values", None)
    return told


def test_the_files_say_what_they_were_made_into(gemma: Made) -> None:
    encoder, decoder = forms(gemma)
    assert encoder == {"SimplifiedLayerNormalization": 9, "MultiHeadAttention of shared keys": 2}
    assert decoder == {
        "SimplifiedLayerNormalization": 13, "GroupQueryAttention": 2, "shared keys": 2, "joint products": 2
    }  # fmt: skip
    for part in PARTS:
        assert backend.interface(gemma.files[part]) == backend.interface(gemma.plain.graphs[part])
        kinds = [node.op_type for node in onnx.load(gemma.files[part]).graph.node]
        assert not {"Slice", "Neg", "Greater"} & set(kinds)
        assert kinds.count("RotaryEmbedding") == 4  # queries and keys of two layers
        assert kinds.count("Softmax") == {"encoder": 0, "decoder": 2}[part]  # cross-attention is left


def test_a_cap_on_scores_goes_along(capped: Made) -> None:
    encoder, decoder = forms(capped)
    assert encoder == {"SimplifiedLayerNormalization": 9, "shared keys": 2}
    assert decoder["GroupQueryAttention"] == decoder["shared keys"] == 2
    told = [node for node in onnx.load(capped.files["decoder"]).graph.node if node.op_type == "GroupQueryAttention"]
    assert [a.f for node in told for a in node.attribute if a.name == "softcap"] == [0.5, 0.5]


def batches(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Prompts ten at a time, padded after the text."""
    rng = np.random.default_rng(1)
    found = []
    for _ in range(count // 10):
        mask = (np.arange(13)[None] < rng.integers(1, 14, 10)[:, None]).astype(np.int64)
        found.append((np.where(mask, rng.integers(4, ROWS, mask.shape), 0), mask))
    return found


def theirs(net: Any, ids: np.ndarray, mask: np.ndarray, new: int, end: int = 1) -> list[int]:
    """What transformers writes after one prompt, without padding."""
    net.generation_config.decoder_start_token_id = START
    prompt = torch.from_numpy(ids[mask > 0])[None]
    given = {"max_new_tokens": new, "do_sample": False, "num_beams": 1, "eos_token_id": end, "pad_token_id": 0}
    return list(net.generate(input_ids=prompt, **given)[0, 1:].tolist())


@pytest.mark.parametrize("kind", ["gemma", "capped"])
def test_tokens_are_transformers_on_50_prompts_in_padded_batches(kind: str, request: pytest.FixtureRequest) -> None:
    one: Made = request.getfixturevalue(kind)
    seen = set()
    for ids, mask in batches(50):
        written = generate(one.run(), ids, mask, max_new=NEW, eos=1, pad=0, start=START).tolist()
        for row, prompt, real in zip(written, ids, mask, strict=True):
            wanted = theirs(one.net, prompt, real, NEW)
            assert row[: len(wanted)] == wanted
            assert not any(row[len(wanted) :])
            seen.add(tuple(wanted))
    assert len(seen) > 10  # not one answer for all


def test_tokens_are_transformers_past_the_room_that_a_cache_has_at_first(gemma: Made) -> None:
    (ids, mask), never = batches(10)[0], ROWS + 1
    wanted = [theirs(gemma.net, prompt, real, 100, never) for prompt, real in zip(ids[:3], mask[:3], strict=True)]
    written = generate(gemma.run(), ids[:3], mask[:3], max_new=100, eos=never, pad=0, start=START)
    assert written.shape == (3, 100)
    assert written.tolist() == wanted


def read(rows: int, source: int, padding: int) -> dict[str, np.ndarray]:
    """One call of the encoder; the first row ends in padding."""
    mask = np.ones((rows, source), np.int64)
    mask[0, source - padding :] = 0
    return {"input_ids": np.random.default_rng(7).integers(4, ROWS, (rows, source)), "attention_mask": mask}


def called(past: int, tokens: int, rows: int, padding: int = 2, source: int = 7) -> dict[str, np.ndarray]:
    """One call of the decoder; the first row's source ends in padding."""
    rng = np.random.default_rng(8)
    given = {
        "input_ids": rng.integers(4, ROWS, (rows, tokens)),
        "encoder_attention_mask": read(rows, source, padding)["attention_mask"],
    }
    for n in range(2):
        for side, length in (("decoder", past), ("encoder", source)):
            for part in ("key", "value"):
                given[f"past_key_values.{n}.{side}.{part}"] = rng.standard_normal((rows, 2, length, 8)).astype(np.float32)
    return given


@pytest.mark.parametrize("kind", ["gemma", "capped"])
@pytest.mark.parametrize(("rows", "source", "padding"), [(1, 1, 0), (1, 9, 0), (1, 9, 4), (3, 9, 4)])
def test_the_encoder_gives_what_the_network_gives(
    kind: str, rows: int, source: int, padding: int, request: pytest.FixtureRequest
) -> None:
    one: Made = request.getfixturevalue(kind)
    given = read(rows, source, padding)
    expected, ours = one.torch()("encoder", given), backend.load(one.files["encoder"]).run(given)
    assert list(ours) == list(expected)
    real = given["attention_mask"] > 0
    for name, values in expected.items():
        same = np.abs(ours[name] - values).transpose(0, 2, 1, 3)[real]
        assert same.max() <= 1e-4 * np.abs(values).max()


@pytest.mark.parametrize("kind", ["gemma", "capped"])
@pytest.mark.parametrize(("past", "tokens", "rows"), [(0, 1, 1), (0, 4, 3), (6, 1, 1), (6, 1, 3), (6, 4, 1), (6, 4, 3)])
def test_every_step_gives_what_the_network_gives(
    kind: str, past: int, tokens: int, rows: int, request: pytest.FixtureRequest
) -> None:
    one: Made = request.getfixturevalue(kind)
    given = called(past, tokens, rows)
    expected, ours = one.torch()("decoder", given), backend.load(one.files["decoder"]).run(given)
    assert list(ours) == list(expected)
    for name, values in expected.items():
        assert ours[name].shape == values.shape
        assert np.abs(ours[name] - values).max() <= 1e-4 * np.abs(values).max()


# ---- the cache


def go_on(session: Any, given: dict[str, np.ndarray], made: dict[str, np.ndarray], token: int) -> dict[str, np.ndarray]:
    """Read one token behind what a call returned."""
    cache = {name.replace("present", "past_key_values"): values for name, values in made.items() if name != "logits"}
    return dict(session.run({**given, "input_ids": np.array([[token]]), **cache}))


def test_a_step_writes_behind_what_was_returned_and_copies_nothing(gemma: Made) -> None:
    session, given = backend.load(gemma.files["decoder"]), called(5, 1, 1)
    first = session.run(given)
    before = {name: values.copy() for name, values in first.items()}
    then = go_on(session, given, first, 3)
    assert len(then) == 5  # logits, and the caches of two layers; none of what the encoder made
    for name, values in first.items():
        assert values.tolist() == before[name].tolist()
        if name != "logits":
            assert np.shares_memory(values, then[name])
            assert then[name].shape[2] == 7


def test_another_text_of_the_encoder_is_seen_at_once(gemma: Made) -> None:
    """In other arrays, in the same ones, and in such as do not lie in one piece, while the cache stays where it is."""
    session, given = backend.load(gemma.files["decoder"]), called(5, 1, 1)
    last = session.run(given)
    for change in ("none", "others", "in place", "turned", "in place"):
        for name in [name for name in given if ".encoder." in name]:
            if change == "others":
                given[name] = given[name] + 1
            elif change == "in place":
                given[name] *= -2
            elif change == "turned":
                given[name] = given[name][..., ::-1]
        expected = go_on(backend.load(gemma.files["decoder"]), given, last, 3)["logits"]
        made = go_on(session, given, last, 3)
        assert np.shares_memory(made["present.0.decoder.key"], last["present.0.decoder.key"])
        np.testing.assert_allclose(made["logits"], expected, rtol=1e-5, atol=1e-6)
        last = made


def test_the_file_takes_a_cache_that_is_longer_than_its_past(gemma: Made) -> None:
    """`past_length` tells how many positions count, and whatever lies behind them is not looked at."""
    session = ort.InferenceSession(gemma.files["decoder"], providers=["CPUExecutionProvider"])
    given, names = called(6, 1, 2), [value.name for value in session.get_outputs()]
    expected = dict(zip(names, session.run(names, given), strict=True))
    longer = {
        name: np.concatenate([v, np.full((2, 2, 9, 8), np.nan, np.float32)], axis=2) if ".decoder." in name else v
        for name, v in given.items()
    }
    ours = dict(zip(names, session.run(names, {**longer, ort_grouped.LENGTH: np.array([6])}), strict=True))
    np.testing.assert_allclose(ours["logits"], expected["logits"], rtol=1e-6)
    for name in names[1:]:
        assert ours[name].shape[2] == 15
        np.testing.assert_allclose(ours[name][:, :, :7], expected[name], rtol=1e-6)


def test_check_py_runs_several_tokens_of_several_rows_behind_a_cache(gemma: Made, tmp_path: Path) -> None:
    golden = {"encoder": read(3, 7, 2), "decoder": called(6, 4, 3)}
    shipped = artifacts.make(
        gemma.plain, load_target("onnxruntime-cpu"), tmp_path / "artifact", golden=golden, reference=gemma.torch(), gate=Gate()
    )
    command = [sys.executable, "-I", str(shipped.folder / "check.py"), "--json", "--seconds", "0"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout)["graphs"]["decoder"]["relative_error"] < 1e-4


# ---- what stays as it is


def test_windows_on_the_last_tokens_stay(tmp_path: Path) -> None:
    one = made(tmp_path, encoder=2, **SLIDING)
    encoder, decoder = forms(one)
    assert encoder["MultiHeadAttention of shared keys"] == 1  # of the layer that sees all
    assert "GroupQueryAttention" not in decoder
    assert decoder["shared keys"] == 2
    for past, tokens in ((0, 1), (6, 1), (6, 4)):
        given = called(past, tokens, 2)
        expected, ours = one.torch()("decoder", given), backend.load(one.files["decoder"]).run(given)
        for name, values in expected.items():
            assert np.abs(ours[name] - values).max() <= 1e-4 * np.abs(values).max()


def edited(one: Made, part: str, fuse: Any, edit: Callable[[Any], Any] = lambda nodes: None) -> int:
    model = onnx.load(one.plain.graphs[part])
    kinds: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        kinds.setdefault(node.op_type, []).append(node)
    edit(kinds)
    return int(fuse(model)[1])


def another(kind: str, place: int, other: str) -> Callable[[Any], None]:
    return lambda kinds: setattr(kinds[kind][place], "op_type", other)


def test_all_is_found_in_the_plain_files(gemma: Made, capped: Made) -> None:
    assert edited(gemma, "encoder", ort_flash.fuse) == edited(gemma, "encoder", ort_shared.fuse) == 2
    assert edited(capped, "encoder", ort_flash.fuse) == 0  # the operator knows no cap
    assert edited(capped, "encoder", ort_shared.fuse) == 2
    assert edited(gemma, "decoder", ort_grouped.fuse) == edited(capped, "decoder", ort_grouped.fuse) == 2
    assert edited(gemma, "decoder", ort_flash.fuse) == 0
    assert edited(gemma, "decoder", ort_shared.fuse) == 2


@pytest.mark.parametrize(
    ("part", "fuse", "edit", "left"),
    [
        ("decoder", ort_grouped.fuse, another("Greater", 0, "GreaterOrEqual"), 0),
        ("decoder", ort_grouped.fuse, another("Softmax", 0, "LogSoftmax"), 0),
        ("decoder", ort_shared.fuse, another("Softmax", 1, "LogSoftmax"), 1),
        ("decoder", ort_shared.fuse, another("Sub", 0, "Add"), 0),
        ("encoder", ort_flash.fuse, another("Sub", 0, "Add"), 0),
        ("encoder", ort_flash.fuse, another("Softmax", 0, "LogSoftmax"), 1),
    ],
    ids=["mask", "softmax", "cross softmax", "cross mask", "padding", "encoder softmax"],
)
def test_what_is_other_stays(gemma: Made, part: str, fuse: Any, edit: Any, left: int) -> None:
    assert edited(gemma, part, fuse, edit) == left


def test_a_cap_that_is_none_stays(capped: Made) -> None:
    def uneven(kinds: Any) -> None:
        """Divided by the cap, multiplied by the scale: no cap tanh(x / cap)."""
        for tanh in kinds["Tanh"]:
            for mul in kinds["Mul"]:
                if tanh.output[0] in mul.input:
                    mul.input[1 - list(mul.input).index(tanh.output[0])] = "uneven"

    model = onnx.load(capped.plain.graphs["encoder"])
    kinds: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        kinds.setdefault(node.op_type, []).append(node)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(0.7), "uneven"))
    assert ort_shared.fuse(model)[1] == 2
    uneven(kinds)
    assert ort_shared.fuse(model)[1] == 0
