"""Generating through a cache: the tokens equal NumPy's without one, and every duration falls where its definition says."""

import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from patience import patient

from edgekd.backends import onnxruntime
from edgekd.bench import clock, generation
from edgekd.bench.decoder_inputs import empty_cache
from edgekd.errors import BadInput

VOCABULARY, WIDTH, HEADS, MOST = 23, 12, 3, 64
HEAD = WIDTH // HEADS
SHAPES = {
    "emb": (VOCABULARY, WIDTH), "pos": (MOST, WIDTH), "head": (WIDTH, VOCABULARY), "source": (VOCABULARY, WIDTH),
    "wq": (WIDTH, WIDTH), "wk": (WIDTH, WIDTH), "wv": (WIDTH, WIDTH),
    "cq": (WIDTH, WIDTH), "ck": (WIDTH, WIDTH), "cv": (WIDTH, WIDTH),
}  # fmt: skip
_RANDOM = np.random.default_rng(5)
WEIGHTS = {name: _RANDOM.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
CONSTANTS = {
    "heads": np.array([0, 0, HEADS, HEAD]), "joined": np.array([0, 0, WIDTH]), "low": np.float32(-1e9), "one": np.array(1),
    "middle": np.array([1, 2]), "outer": np.array([1, 3]),
}  # fmt: skip

PROMPT = np.array([[3, 1, 4, 1, 5, 9, 2]])


# ---- the same model in NumPy: all positions again for every token


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def attend(x: np.ndarray, memory: np.ndarray, q: str, k: str, v: str, causal: bool) -> np.ndarray:
    out = []
    for h in range(HEADS):
        part = slice(h * HEAD, (h + 1) * HEAD)
        scores = (x @ WEIGHTS[q][:, part]) @ (memory @ WEIGHTS[k][:, part]).T
        if causal:
            scores[np.triu_indices(len(x), 1)] = -1e9
        out.append(softmax(scores) @ (memory @ WEIGHTS[v][:, part]))
    return x + np.concatenate(out, axis=1)


def greedy(ids: list[int], new: int, memory: np.ndarray | None = None) -> list[int]:
    """Generate without any cache."""
    ids, begun = list(ids), len(ids)
    for _ in range(new):
        x = WEIGHTS["emb"][ids] + WEIGHTS["pos"][: len(ids)]
        x = attend(x, x, "wq", "wk", "wv", causal=True)
        if memory is not None:
            x = attend(x, memory, "cq", "ck", "cv", causal=False)
        ids.append(int(np.argmax((x @ WEIGHTS["head"])[-1])))
    return ids[begun:]


# ---- in ONNX, with caches


def value(name: str, shape: list, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def branch(name: str, *nodes: onnx.NodeProto) -> onnx.GraphProto:
    last = nodes[-1].output[0]
    return helper.make_graph(list(nodes), name, [], [value(last, [None] * 4)])


class Decoder:
    """Writes a decoder graph. cache: none (fills one), open (takes one, empty or not), merged. cross: attends to an encoder."""

    def __init__(self, cache: str, cross: bool = False) -> None:
        self.cache, self.cross = cache, cross
        self.own = "decoder." if cross else ""
        self.nodes: list[onnx.NodeProto] = []
        self.inputs = [
            value("input_ids", ["batch", "sequence"], TensorProto.INT64),
            value("attention_mask", ["batch", "past_sequence_length + sequence"], TensorProto.INT64),
            value("position_ids", ["batch", "sequence"], TensorProto.INT64),
        ]
        self.outputs = [value("logits", ["batch", "sequence", VOCABULARY])]
        if cache == "merged":
            self.inputs.append(value("use_cache_branch", [1], TensorProto.BOOL))
        if cross and cache != "open":
            self.inputs.append(value("encoder_hidden_states", ["batch", "source", WIDTH]))

    def do(self, kind: str, inputs: str, output: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(kind, inputs.split(), [output], **attributes))
        return output

    def split(self, x: str, weight: str, to: str) -> str:
        """(B, S, E) -> (B, heads, S, head size)."""
        product = self.do("MatMul", f"{x} {weight}", f"{to}_flat")
        return self.do("Transpose", self.do("Reshape", f"{product} heads", f"{to}_parts"), to, perm=[0, 2, 1, 3])

    def cached(self, new: str, name: str) -> str:
        """Join what is new to the cache; it becomes an output."""
        past, present = f"past_key_values.0.{name}", f"present.0.{name}"
        shape = ["batch", HEADS, "past_sequence_length", HEAD]
        if self.cache != "none":
            self.inputs.append(value(past, shape))
        self.outputs.append(value(present, ["batch", HEADS, "total", HEAD]))
        fresh = helper.make_node("Identity", [new], [f"{new}_alone"])
        if self.cache == "none":
            return self.do("Identity", new, present)
        if self.cache == "open":
            return self.do("Concat", f"{past} {new}", present, axis=2)
        joined = helper.make_node("Concat", [past, new], [f"{new}_joined"], axis=2)
        return self.do("If", "use_cache_branch", present, then_branch=branch("then", joined), else_branch=branch("else", fresh))

    def crossed(self, weight: str, name: str) -> str:
        """Keys or values of the encoder: computed, or taken from the cache; a merged graph returns the taken ones empty."""
        past, present = f"past_key_values.0.encoder.{name}", f"present.0.encoder.{name}"
        if self.cache != "none":
            self.inputs.append(value(past, ["batch", HEADS, "source_cached", HEAD]))
        if self.cache == "open":
            return past
        self.outputs.append(value(present, ["batch", HEADS, "source", HEAD]))
        made = self.split("encoder_hidden_states", weight, f"cross_{name}")
        if self.cache == "none":
            return self.do("Identity", made, present)
        take = helper.make_node("Identity", [past], [f"{name}_taken"])
        make = helper.make_node("Identity", [made], [f"{name}_made"])
        used = self.do(
            "If", "use_cache_branch", f"{name}_used", then_branch=branch("then", take), else_branch=branch("else", make)
        )
        nothing = helper.make_node(
            "Constant", [], [f"{name}_none"], value=numpy_helper.from_array(np.zeros((0, HEADS, 1, HEAD), "f4"))
        )
        again = helper.make_node("Identity", [made], [f"{name}_again"])
        self.do("If", "use_cache_branch", present, then_branch=branch("then", nothing), else_branch=branch("else", again))
        return used

    def attend(self, x: str, query: str, keys: str, values: str, to: str, causal: bool) -> str:
        scores = self.do("MatMul", f"{query} {self.do('Transpose', keys, f'{to}_kt', perm=[0, 1, 3, 2])}", f"{to}_scores")
        if causal:
            counted = self.do("Sub", f"{self.do('CumSum', 'attention_mask one', 'counted')} one", "key_place")
            keys_at, queries_at = (
                self.do("Unsqueeze", f"{counted} middle", "kp"),
                self.do("Unsqueeze", "position_ids outer", "qp"),
            )
            seen = self.do("LessOrEqual", f"{keys_at} {queries_at}", "seen")
            scores = self.do("Where", f"{seen} {scores} low", "masked")
        mixed = self.do("MatMul", f"{self.do('Softmax', scores, f'{to}_share', axis=-1)} {values}", f"{to}_mixed")
        flat = self.do("Reshape", f"{self.do('Transpose', mixed, f'{to}_back', perm=[0, 2, 1, 3])} joined", f"{to}_joined")
        return self.do("Add", f"{x} {flat}", to)

    def write(self, path: Path) -> Path:
        x = self.do("Add", f"{self.do('Gather', 'emb input_ids', 'e')} {self.do('Gather', 'pos position_ids', 'p')}", "x")
        keys = self.cached(self.split(x, "wk", "k"), f"{self.own}key")
        values = self.cached(self.split(x, "wv", "v"), f"{self.own}value")
        x = self.attend(x, self.split(x, "wq", "q"), keys, values, "y", causal=True)
        if self.cross:
            query = self.split(x, "cq", "qc")
            x = self.attend(x, query, self.crossed("ck", "key"), self.crossed("cv", "value"), "z", causal=False)
        self.do("MatMul", f"{x} head", "logits")
        return save(path, self.nodes, self.inputs, self.outputs)


def save(path: Path, nodes: list, inputs: list, outputs: list) -> Path:
    weights = [numpy_helper.from_array(array, name) for name, array in {**WEIGHTS, **CONSTANTS}.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def encoder(path: Path) -> Path:
    """Source ids -> one vector each; masked ones are zero."""
    nodes = [
        helper.make_node("Gather", ["source", "input_ids"], ["e"]),
        helper.make_node("Unsqueeze", ["attention_mask", "last"], ["m"]),
        helper.make_node("Cast", ["m"], ["mf"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["e", "mf"], ["last_hidden_state"]),
    ]
    nodes.insert(0, helper.make_node("Constant", [], ["last"], value=numpy_helper.from_array(np.array([-1]))))
    ids = [value(name, ["batch", "source_length"], TensorProto.INT64) for name in ("input_ids", "attention_mask")]
    return save(path, nodes, ids, [value("last_hidden_state", ["batch", "source_length", WIDTH])])


def opened(**files: Path) -> tuple[dict, dict]:
    return (
        {name: onnxruntime.load(file, threads=1) for name, file in files.items()},
        {name: onnxruntime.interface(file) for name, file in files.items()},
    )


@pytest.mark.parametrize("form", ["open", "pair", "merged"])
@pytest.mark.parametrize("batch", [1, 3])
def test_tokens_of_a_decoder_equal_numpys_without_a_cache(tmp_path: Path, form: str, batch: int):
    if form == "pair":
        files = {
            "decoder_with_past_model": Decoder("open").write(tmp_path / "step.onnx"),
            "decoder_model": Decoder("none").write(tmp_path / "first.onnx"),
        }
    else:
        files = {"model": Decoder(form).write(tmp_path / "model.onnx")}
    prompts = np.stack([np.roll(PROMPT[0], i) for i in range(batch)])
    call = generation.call(*opened(**files), prompts, 12)
    expected = [greedy(one.tolist(), 12) for one in prompts]
    assert len({tuple(one) for one in expected}) == batch, "the prompts matter"
    assert len(set(expected[0])) > 3
    for _ in range(2):
        marks = call()
        assert call.ids.tolist() == expected
        assert len(marks["tokens"]) == 11
        assert "encode" not in marks
    assert call.form == generation.Form(
        None, *(("decoder_model", "decoder_with_past_model") if form == "pair" else ("model", "model"))
    )


@pytest.mark.parametrize("form", ["pair", "merged"])
def test_tokens_of_an_encoder_and_decoder_equal_numpys_without_a_cache(tmp_path: Path, form: str):
    files = {"encoder_model": encoder(tmp_path / "e.onnx")}
    if form == "pair":
        files["decoder_model"] = Decoder("none", cross=True).write(tmp_path / "first.onnx")
        files["decoder_with_past_model"] = Decoder("open", cross=True).write(tmp_path / "step.onnx")
    else:
        files["decoder_model_merged"] = Decoder("merged", cross=True).write(tmp_path / "merged.onnx")
    call = generation.call(*opened(**files), PROMPT, 10, start=2)
    assert call.form.encoder == "encoder_model"
    marks = call()
    expected = greedy([2], 10, memory=WEIGHTS["source"][PROMPT[0]])
    assert call.ids[0].tolist() == expected
    assert expected != greedy([2], 10, memory=WEIGHTS["source"][PROMPT[0, ::-1] + 1]), "the source matters"
    assert 0 < marks["encode"] < marks["ttft"]


def test_the_encoder_may_fill_the_cross_cache_itself(tmp_path: Path):
    """One decoder graph; keys and values of the source are outputs of the encoder, computed once."""
    made = Decoder("open", cross=True).write(tmp_path / "step.onnx")
    parts = Decoder("none")
    parts.inputs = [value("input_ids", ["batch", "source"], TensorProto.INT64)]
    parts.do("Gather", "source input_ids", "encoder_hidden_states")
    for weight, name in (("ck", "key"), ("cv", "value")):
        parts.do("Identity", parts.split("encoder_hidden_states", weight, name), f"present.0.encoder.{name}")
    outputs = [value(f"present.0.encoder.{name}", ["batch", HEADS, "source", HEAD]) for name in ("key", "value")]
    call = generation.call(
        *opened(encoder=save(tmp_path / "e.onnx", parts.nodes, parts.inputs, outputs), decoder=made), PROMPT, 6
    )
    call()
    assert call.ids[0].tolist() == greedy([0], 6, memory=WEIGHTS["source"][PROMPT[0]])


@patient
def test_time_to_first_token_and_gaps_are_the_whole_call(tmp_path: Path):
    call = generation.call(*opened(model=Decoder("open").write(tmp_path / "m.onnx")), PROMPT, 8)
    call()
    nanoseconds, marks = clock.time_calls(call, 20)
    assert marks["ttft"].shape == (20,)
    assert marks["tokens"].shape == (20, 7)
    rest = nanoseconds - marks["ttft"] - marks["tokens"].sum(axis=1)
    assert rest.min() >= 0
    assert np.median(rest) < 50e3, "nanoseconds, for joining the ids"


# ---- stubs whose durations are known


def declared(*tensors: tuple) -> list[dict]:
    return [{"name": name, "dtype": dtype, "shape": list(shape)} for name, dtype, *shape in tensors]


CACHE = ("past_key_values.0.key", "float16", "batch", 2, "past", 4)
ENCODER = {
    "inputs": declared(("input_ids", "int32", "batch", "s"), ("attention_mask", "int32", "batch", "s")),
    "outputs": declared(("last_hidden_state", "float32", "batch", "s", 8)),
}
DECODER = {
    "inputs": declared(
        ("input_ids", "int32", "batch", "n"),
        ("attention_mask", "int64", "batch", "total"),
        ("encoder_attention_mask", "int64", "batch", "s"),
        ("encoder_hidden_states", "float32", "batch", "s", 8),
        CACHE,
    ),
    "outputs": declared(("logits", "float32", "batch", "n", 7), ("present.0.key", "float16", "batch", 2, "total", 4)),
}


class Slow:
    """A session that takes as long as it is told, and remembers what it got."""

    def __init__(self, seconds: object, outputs: object) -> None:
        self.seconds, self.outputs, self.got = seconds, outputs, []

    def run(self, inputs: dict) -> dict:
        self.got.append({name: (array.dtype.name, array.shape) for name, array in inputs.items()})
        time.sleep(self.seconds(inputs))
        return self.outputs(inputs)


def grown(inputs: dict) -> dict:
    n = inputs["input_ids"].shape[1]
    past = inputs["past_key_values.0.key"]
    logits = np.zeros((len(past), n, 7), np.float32)
    logits[:, -1, 5] = 1
    return {"logits": logits, "present.0.key": np.concatenate([past, np.zeros((len(past), 2, n, 4), np.float16)], axis=2)}


@patient
def test_each_duration_falls_where_its_definition_says():
    reader = Slow(lambda inputs: 0.02, lambda inputs: {"last_hidden_state": np.zeros((2, 9, 8), np.float32)})
    writer = Slow(lambda inputs: 0.03 if inputs["past_key_values.0.key"].shape[2] == 0 else 0.005, grown)
    call = generation.call(
        {"encoder": reader, "decoder": writer}, {"encoder": ENCODER, "decoder": DECODER}, batch=2, prompt_tokens=9, new_tokens=4
    )
    nanoseconds, marks = clock.time_calls(call, 6)
    milliseconds = {name: np.min(values) / 1e6 for name, values in marks.items()}  # a busy machine oversleeps
    assert 20 <= milliseconds["encode"] < 25
    assert 50 <= milliseconds["ttft"] < 58
    assert 5 <= milliseconds["tokens"] < 8
    assert 65 <= np.min(nanoseconds) / 1e6 < 78
    assert call.ids.tolist() == [[5, 5, 5, 5]] * 2
    assert reader.got[0] == {"input_ids": ("int32", (2, 9)), "attention_mask": ("int32", (2, 9))}
    assert writer.got[0] == {
        "input_ids": ("int32", (2, 1)), "attention_mask": ("int64", (2, 1)), "encoder_attention_mask": ("int64", (2, 9)),
        "encoder_hidden_states": ("float32", (2, 9, 8)), "past_key_values.0.key": ("float16", (2, 2, 0, 4)),
    }  # fmt: skip
    assert writer.got[3]["past_key_values.0.key"] == ("float16", (2, 2, 3, 4))
    assert writer.got[3]["attention_mask"] == ("int64", (2, 4))
    assert len(writer.got) == 6 * 4, "an end of sequence ends nothing: every call makes the same number of tokens"

    seconds = {name: values.reshape(2, 3, *values.shape[1:]) / 1e9 for name, values in marks.items()}
    told = generation.summarise(seconds, prompt_tokens=9, batch=2)
    assert (told["prompt_tokens"], told["new_tokens"]) == (9, 4)
    assert told["ttft"]["count"] == told["encode"]["count"] == 6
    assert told["per_token"]["count"] == 18
    assert told["per_token"]["median_s"] == np.median(marks["tokens"]) / 1e9
    assert told["tokens_per_s"] == pytest.approx(2 * 18 / (marks["tokens"].sum() / 1e9))
    assert told["prefill_per_s"] == pytest.approx(2 * 9 / (np.median(marks["ttft"]) / 1e9))


def test_a_summary_by_hand():
    tokens = np.array([[[0.01, 0.02, 0.03]], [[0.02, 0.02, 0.02]]])
    told = generation.summarise({"ttft": np.array([[0.5], [0.25]]), "tokens": tokens}, prompt_tokens=30)
    assert told["encode"] is None
    assert told["ttft"]["median_s"] == 0.375
    assert told["tokens_per_s"] == pytest.approx(6 / 0.12)
    assert told["prefill_per_s"] == pytest.approx(30 / 0.375)
    assert told["per_token"]["max_s"] == 0.03


def test_where_the_encoder_reads_no_ids_the_prompt_is_the_decoders():
    sound = {"inputs": declared(("input_features", "float32", 1, 80, 30)), "outputs": ENCODER["outputs"]}
    reader = Slow(lambda inputs: 0, lambda inputs: {"last_hidden_state": np.zeros((1, 9, 8), np.float32)})
    writer = Slow(lambda inputs: 0, grown)
    sessions, interfaces = {"e": reader, "d": writer}, {"e": sound, "d": DECODER}
    generation.call(
        sessions, interfaces, np.array([[1, 2, 3]]), 2, given={"input_features": np.zeros((1, 80, 30), np.float32)}
    )()
    assert reader.got == [{"input_features": ("float32", (1, 80, 30))}]
    assert [one["input_ids"][1] for one in writer.got] == [(1, 3), (1, 1)]
    with pytest.raises(BadInput, match=r"`e`, input `input_features` .float32 .1, 80, 30.*not understood"):
        generation.call(sessions, interfaces, np.array([[1, 2, 3]]), 2)


def test_random_prompts_lie_in_the_vocabulary():
    form = generation.detect({"d": DECODER})
    assert form == generation.Form(None, "d", "d")
    made = generation.prompt({"d": DECODER}, form, 3, 200, seed=1)
    assert made.shape == (3, 200)
    assert set(np.unique(made)) == set(range(7))
    assert np.array_equal(made, generation.prompt({"d": DECODER}, form, 3, 200, seed=1))
    unknown = {"d": {**DECODER, "outputs": declared(("logits", "float32", "batch", "n", "v"))}}
    assert set(np.unique(generation.prompt(unknown, form, 1, 50))) == {0, 1}


def test_what_is_no_language_model_is_none():
    classifier = {"inputs": ENCODER["inputs"], "outputs": declared(("logits", "float32", "batch", 2))}
    assert generation.detect({"model": classifier}) is None
    assert generation.detect({"model": ENCODER}) is None
    assert generation.detect({}) is None
    with pytest.raises(BadInput, match="model: no language model with a key-value cache"):
        generation.call({}, {"model": classifier})


def test_the_merged_graph_is_taken_where_all_three_lie_there():
    merged = {**DECODER, "inputs": [*DECODER["inputs"], *declared(("use_cache_branch", "bool", 1))]}
    first = {**DECODER, "inputs": [one for one in DECODER["inputs"] if not one["name"].startswith("past")]}
    three = {"decoder_model": first, "decoder_with_past_model": DECODER, "decoder_model_merged": merged}
    assert generation.detect(three) == generation.Form(None, "decoder_model_merged", "decoder_model_merged")
    del three["decoder_model_merged"]
    assert generation.detect({**three, "encoder_model": ENCODER}) == generation.Form(
        "encoder_model", "decoder_model", "decoder_with_past_model"
    )


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (("past_key_values.0.key", "float32", 1, 2, 128, 4), r"\[1, 2, 128, 4\].*fixed length"),
        (("past_key_values.0.key", "float32", "batch", "a", "b", 4), "the past alone open"),
        (("past_key_values.0.key", "float32", "batch", 2, "past"), "the past alone open"),
        (("past_key_values.0.key", "float32", 4, 2, "past", 4), "exported for batch 4, not 1"),
    ],
)
def test_caches_that_are_not_understood_are_named(tensor: tuple, message: str):
    (one,) = declared(tensor)
    with pytest.raises(BadInput, match=message):
        empty_cache("d", one, 1)


def test_inputs_and_lengths_that_are_not_understood_are_named():
    odd = {**DECODER, "inputs": [*DECODER["inputs"][:2], *declared(CACHE, ("seqlens_k", "int32", "batch"))]}
    with pytest.raises(BadInput, match=r"graph `d`, input `seqlens_k` .int32 .batch.*not understood; known are input_ids"):
        generation.call({}, {"d": odd})
    fixed = {**DECODER, "inputs": declared(("input_ids", "int64", 1, 32), CACHE)}
    with pytest.raises(BadInput, match=r"graph `d` reads 32 token\(s\) at once, not 128"):
        generation.call({}, {"d": fixed})
    no_present = {"inputs": declared(("input_ids", "int64", 1, "n"), CACHE), "outputs": DECODER["outputs"][:1]}
    with pytest.raises(BadInput, match=r"no graph has an output that goes with its input `past_key_values.0.key`"):
        generation.call({}, {"d": no_present})
    with pytest.raises(BadInput, match="new tokens: 1; the time per output token needs 2"):
        generation.call({}, {"d": DECODER}, new_tokens=1)
    with pytest.raises(BadInput, match="the prompt has no tokens"):
        generation.call({}, {"d": DECODER}, prompt_tokens=0)


def test_names_of_onnx_runtime_genai_and_fixed_positions():
    """past_N with present_N, cache_position, int32, num_logits_to_keep without an axis, logits of the last position alone."""
    interface = {
        "inputs": declared(
            ("input_ids", "int64", "b", "n"), ("cache_position", "int64", "n"), ("position_ids", "int32", "b", "n"),
            ("num_logits_to_keep", "int64"), ("past_key_self_0", "float32", "b", 2, "past", 4),
        ),
        "outputs": declared(("logits", "float32", "b", 7), ("present_key_self_0", "float32", "b", 2, "total", 4)),
    }  # fmt: skip
    seen = []

    def run(inputs: dict) -> dict:
        seen.append({name: array.tolist() for name, array in inputs.items() if not name.startswith("past")})
        past, n = inputs["past_key_self_0"], inputs["input_ids"].shape[1]
        return {"logits": np.eye(7)[[len(seen) + 1]], "present_key_self_0": np.zeros((1, 2, past.shape[2] + n, 4), np.float32)}

    session = type("Session", (), {"run": staticmethod(run)})
    generation.call({"d": session}, {"d": interface}, np.array([[4, 5, 6]]), 3)()
    assert seen == [
        {"input_ids": [[4, 5, 6]], "cache_position": [0, 1, 2], "position_ids": [[0, 1, 2]], "num_logits_to_keep": 1},
        {"input_ids": [[2]], "cache_position": [3], "position_ids": [[3]], "num_logits_to_keep": 1},
        {"input_ids": [[3]], "cache_position": [4], "position_ids": [[4]], "num_logits_to_keep": 1},
    ]


def test_places_of_the_logits_that_are_wanted():
    """logits_to_keep with an open axis: places among the tokens, of which the last alone is asked for."""
    interface = {
        "inputs": declared(("input_ids", "int64", "b", "n"), ("logits_to_keep", "int64", "kept"), CACHE),
        "outputs": declared(("logits", "float32", "b", "kept", 7), ("present.0.key", "float32", "b", 2, "total", 4)),
    }
    seen = []

    def run(inputs: dict) -> dict:
        seen.append(inputs["logits_to_keep"].tolist())
        return {"logits": np.eye(7)[None, [3]], "present.0.key": np.zeros((1, 2, 1, 4), np.float32)}

    session = type("Session", (), {"run": staticmethod(run)})
    generation.call({"d": session}, {"d": interface}, np.array([[4, 5, 6]]), 3)()
    assert seen == [[2], [0], [0]]
