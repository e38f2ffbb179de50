"""Adapters: which layers get one, what is trained, that merged is unmerged, and what is refused."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from distill import tiny
from quantize import lora_nets
from safetensors.torch import load_file, save
from torch import nn

from edgekd.distill import trainer
from edgekd.errors import BadInput, Missing
from edgekd.quantize import Job, adapter_base, chain, fake, lora
from edgekd.quantize.uniform import MinMax
from edgekd.recipe import Distill, Lora, Model, Training, VariantRecipe

KINDS = list(lora_nets.NETS)
SMALL = Lora(rank=4, alpha=8)


def learnt(net: nn.Module, size: float = 0.3) -> None:
    """Give adapters the numbers that a training might: those that start at zero are some other numbers then."""
    torch.manual_seed(5)
    with torch.no_grad():
        for name, values in net.named_parameters():
            if "lora_" in name:
                values.copy_(torch.randn_like(values) * size)


def outputs(model, task, splits) -> np.ndarray:
    batch = {name: torch.from_numpy(values) for name, values in splits.validation.take(np.arange(20)).items()}
    with torch.no_grad():
        return task.forward(model.module.eval(), batch)["logits"].double().numpy()


def apart(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / np.abs(a).max())


# --- merged is unmerged --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_merged_model_is_the_one_with_adapters(kind, tmp_path):
    model, task, splits = lora_nets.made(kind)
    before = {name: t.clone() for name, t in model.module.net.state_dict().items()}
    trainable = {name: p.requires_grad for name, p in model.module.net.named_parameters()}
    plain = outputs(model, task, splits)
    adapters = lora.attach(model, SMALL, task, splits, 0, "distill.lora")
    assert apart(plain, outputs(model, task, splits)) == 0  # at the start they change nothing
    learnt(model.module.net)
    unmerged = outputs(model, task, splits)
    assert apart(plain, unmerged) > 0.05
    told = lora.merge(model, adapters, task, splits, tmp_path)
    assert apart(unmerged, outputs(model, task, splits)) < 1e-4
    assert told["max_relative_difference"] < 1e-4
    after = model.module.net.state_dict()
    assert list(after) == list(before)
    assert {name: p.requires_grad for name, p in model.module.net.named_parameters()} == trainable
    assert not hasattr(model.module.net, "peft_config")
    state = load_file(tmp_path / "adapter_model.safetensors")
    changed = {name for name in before if not torch.equal(after[name], before[name])}
    layers = {name.removesuffix(".lora_A.weight") for name in state if name.endswith("lora_A.weight")}
    assert changed == {f"{layer.removeprefix('base_model.model.')}.weight" for layer in layers}
    assert told["layers"] == len(layers) == len(state) / 2
    for layer in layers:
        a, b = (state[f"{layer}.lora_{which}.weight"].double().numpy() for which in "AB")
        delta = 8 / 4 * b @ a
        name = f"{layer.removeprefix('base_model.model.')}.weight"
        expected = before[name].double().numpy() + (delta.T if kind == "gpt2" else delta)
        np.testing.assert_allclose(after[name].numpy(), expected, atol=1e-6)


def test_a_merge_that_changes_the_outputs_is_refused(monkeypatch):
    model, task, splits = lora_nets.made("vit")
    adapters = lora.attach(model, SMALL, task, splits, 0, "distill.lora")
    learnt(model.module.net)
    merge = lora._merge

    def inexact(net):
        merge(net)
        with torch.no_grad():
            net.blocks[0].mlp.fc1.weight.mul_(1.01)

    monkeypatch.setattr(lora, "_merge", inexact)
    with pytest.raises(BadInput, match=r"distill\.lora: the merged student's outputs differ by .* may by 0\.0001"):
        lora.merge(model, adapters, task, splits)


class Past(nn.Module):
    """Reads the weights of a layer past it."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(64, 12)), nn.Sequential(nn.Linear(12, 12))])
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        x = self.blocks[0](x.flatten(1)).relu()
        return self.head(nn.functional.linear(x, self.blocks[1][0].weight))


def test_weights_that_are_read_past_the_adapter_are_noticed_before_training():
    model, splits = tiny.loaded(Past()), tiny.splits(20)
    with pytest.raises(BadInput, match=r"reads the weights of some of these layers past them: blocks\.0\.0, blocks\.1\.0"):
        lora.attach(model, Lora(targets=("blocks.*",)), tiny.TinyTask(), splits, 0, "distill.lora")
    model = tiny.loaded(Past())
    lora.attach(model, Lora(targets=("blocks.0.0",)), tiny.TinyTask(), splits, 0, "distill.lora")


# --- which layers --------------------------------------------------------------------------------

LAYERS = {
    "llama": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"],
    "bert": ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense", "intermediate.dense", "output.dense"],
    "gpt2": ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"],
    "vit": ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"],
}  # fmt: skip
STACKS = {"llama": "model.layers", "bert": "encoder.layer", "gpt2": "transformer.h", "vit": "blocks"}


@pytest.mark.parametrize("kind", LAYERS)
def test_without_targets_they_are_the_linear_layers_of_attention_and_mlp(kind):
    expected = [f"{STACKS[kind]}.{n}.{layer}" for n in (0, 1) for layer in LAYERS[kind]]
    assert lora.targets(lora_nets.NETS[kind](), Lora(), "lora") == expected


def test_of_an_encoder_decoder_both_stacks_get_adapters():
    found = lora.targets(lora_nets.t5(), Lora(), "lora")
    self_, cross, mlp = (
        (f"layer.0.SelfAttention.{n}" for n in "qkvo"),
        [f"layer.1.EncDecAttention.{n}" for n in "qkvo"],
        ["wi_0", "wi_1", "wo"],
    )
    self_ = list(self_)
    expected = [f"encoder.block.{b}.{n}" for b in (0, 1) for n in [*self_, *(f"layer.1.DenseReluDense.{m}" for m in mlp)]]
    expected += [
        f"decoder.block.{b}.{n}" for b in (0, 1) for n in [*self_, *cross, *(f"layer.2.DenseReluDense.{m}" for m in mlp)]
    ]
    assert found == expected


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (("qkv",), ["blocks.0.attn.qkv", "blocks.1.attn.qkv"]),
        (("attn.*",), ["blocks.0.attn.qkv", "blocks.0.attn.proj", "blocks.1.attn.qkv", "blocks.1.attn.proj"]),
        (("blocks.1.mlp",), ["blocks.1.mlp.fc1", "blocks.1.mlp.fc2"]),
        (("blocks.0.attn.qkv", "head"), ["blocks.0.attn.qkv", "head"]),
        (("patch_embed.proj", "fc2"), ["patch_embed.proj", "blocks.0.mlp.fc2", "blocks.1.mlp.fc2"]),
    ],
)
def test_targets_name_layers_ends_of_names_or_modules_around(targets, expected):
    assert lora.targets(lora_nets.vit(), Lora(targets=targets), "lora") == expected


def test_convolutions_and_embeddings_learn_when_they_are_named(tmp_path):
    model, task, splits = lora_nets.made("vit")
    config = Lora(rank=2, targets=("patch_embed.proj", "head"))
    before = model.module.net.patch_embed.proj.weight.detach().clone()
    adapters = lora.attach(model, config, task, splits, 0, "lora")
    learnt(model.module.net)
    unmerged = outputs(model, task, splits)
    lora.merge(model, adapters, task, splits)
    assert apart(unmerged, outputs(model, task, splits)) < 1e-4
    assert apart(before.numpy(), model.module.net.patch_embed.proj.weight.detach().numpy()) > 0.1
    model, task, splits = lora_nets.made("bert")
    adapters = lora.attach(model, Lora(rank=2, targets=("word_embeddings",)), task, splits, 0, "lora")
    learnt(model.module.net)
    unmerged = outputs(model, task, splits)
    lora.merge(model, adapters, task, splits)
    assert apart(unmerged, outputs(model, task, splits)) < 1e-4


@pytest.mark.parametrize(
    ("kind", "options", "says"),
    [
        (
            "llama",
            {"targets": ("q_poj",)},
            r"lora\.targets: no layer that takes an adapter is called `q_poj` \(did you mean `q_proj`\?\)",
        ),
        (
            "llama",
            {"targets": ("lm_head",)},
            r"`lm_head` shares its weights with `model\.embed_tokens`: merged, an adapter of the one",
        ),
        ("t5", {"targets": ("shared",)}, r"`shared` shares its weights"),
        (
            "llama",
            {"train": ("lm_head",)},
            r"lora\.train: `lm_head` shares its weights with `model\.embed_tokens`, which would learn with it",
        ),
        ("t5", {"train": ("shared", "lm_head")}, r"`shared` shares its weights with `encoder\.embed_tokens`"),
        ("vit", {"targets": ("head",), "train": ("head",)}, r"`head` is in `train` too"),
        ("vit", {"train": ("heads",)}, r"lora\.train: no module of the model is called `heads` \(did you mean `head`\?\)"),
        ("vit", {"targets": ("norm1",)}, r"is called `norm1`"),
    ],
)
def test_names_that_mean_nothing_are_told_with_the_nearest(kind, options, says):
    with pytest.raises(BadInput, match=says):
        lora.targets(lora_nets.NETS[kind](), Lora(**options), "distill.lora")


def test_a_network_without_blocks_says_to_name_layers():
    net = tiny.network()
    with pytest.raises(BadInput, match=r"no linear layers in numbered blocks.*name layers in `targets`; there are 8"):
        lora.targets(net, Lora(), "lora")
    assert lora.targets(net, Lora(targets=("8",)), "lora") == ["8"]


def test_layers_inside_torchs_own_attention_take_none():
    net = nn.ModuleList([nn.TransformerEncoderLayer(12, 2, 24)])
    assert lora.targets(net, Lora(), "lora") == ["0.linear1", "0.linear2"]
    with pytest.raises(BadInput, match="no layer that takes an adapter is called `out_proj`"):
        lora.targets(net, Lora(targets=("out_proj",)), "lora")


# --- what is trained -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_the_adapters_alone(kind):
    model, task, splits = lora_nets.made(kind)
    lora.attach(model, SMALL, task, splits, 0, "lora")
    learnt(model.module.net)
    batch = {name: torch.from_numpy(values) for name, values in splits.train.take(np.arange(8)).items()}
    task.forward(model.module.train(), batch)["logits"].square().sum().backward()
    reached = {name for name, p in model.module.net.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached == {name for name, _ in model.module.net.named_parameters() if ".lora_" in name}


def fitted(folder, kind="vit", config=SMALL, seed=0, keep=True, **settings):
    model, task, splits = lora_nets.made(kind)
    chosen = Training(**{"epochs": 3, "batch_size": 16, "learning_rate": 0.01, "checkpoint_minutes": 0, **settings})
    adapters = lora.attach(model, config, task, splits, seed, "train.lora")
    history = trainer.fit(model, splits, task, chosen, seed=seed, folder=folder)
    unmerged = copy.deepcopy(model.module.net)
    told = lora.merge(model, adapters, task, splits, folder / "adapter" if keep else None)
    return model, replace(history, lora=told), unmerged


def test_adapters_learn_and_the_weights_beside_them_stay(tmp_path):
    start = lora_nets.made("vit")[0].module.net.state_dict()
    _, history, unmerged = fitted(tmp_path, epochs=6)
    assert history.best_validation > history.initial_validation + 0.2
    beside = {name.replace(".base_layer", ""): t for name, t in unmerged.state_dict().items() if ".lora_" not in name}
    assert beside.keys() == start.keys()
    assert all(torch.equal(beside[name], start[name]) for name in start)
    assert history.lora["max_relative_difference"] < 1e-4
    assert history.lora["trained"] == 2 * 4 * ((24 + 72) + (24 + 24) + (24 + 96) + (96 + 24))
    assert json.loads(json.dumps(history.to_json()))["lora"] == history.lora


def test_modules_that_are_trained_whole_learn_beside_the_adapters(tmp_path):
    start = {name: t.clone() for name, t in lora_nets.made("vit")[0].module.net.state_dict().items()}
    model, _, unmerged = fitted(tmp_path, config=Lora(rank=4, alpha=8, train=("head",)))
    after = unmerged.state_dict()
    assert not torch.equal(after["head.weight"], start["head.weight"])
    assert torch.equal(after["norm.weight"], start["norm.weight"])
    kept = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert torch.equal(kept["base_model.model.head.weight"], after["head.weight"])
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["modules_to_save"] == ["head"]
    assert torch.equal(model.module.net.head.weight, after["head.weight"])


class Normed(nn.Module):
    """A block with BatchNorm."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.ModuleList([nn.Linear(64, 12), nn.BatchNorm1d(12)])])
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        linear, norm = self.blocks[0]
        return self.head(norm(linear(x.flatten(1))).relu())


def test_batchnorm_keeps_its_statistics_beside_adapters(tmp_path):
    model, splits, task = tiny.loaded(Normed()), tiny.splits(48), tiny.TinyTask()
    before = {name: t.clone() for name, t in model.module.net.blocks[0][1].state_dict().items()}
    adapters = lora.attach(model, SMALL, task, splits, 0, "lora")
    trainer.fit(model, splits, task, Training(epochs=2, batch_size=16), seed=0, folder=tmp_path)
    lora.merge(model, adapters, task, splits)
    after = model.module.net.blocks[0][1].state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    model.module.train()(torch.zeros(4, 8, 8, 1, dtype=torch.uint8))
    assert not torch.equal(model.module.net.blocks[0][1].running_mean, before["running_mean"])  # afterwards it is free again


@pytest.mark.parametrize("kind", ["vit", "llama"])
def test_an_interrupted_training_ends_with_the_same_bytes(kind, tmp_path, monkeypatch):
    straight, _, _ = fitted(tmp_path / "straight", kind)
    step = trainer._Fit._step
    number = {"now": 0}

    def broken(self, *arguments):
        number["now"] += 1
        if number["now"] in (4, 11):
            raise KeyboardInterrupt
        return step(self, *arguments)

    monkeypatch.setattr(trainer._Fit, "_step", broken)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            fitted(tmp_path / "broken", kind)
    again, _, _ = fitted(tmp_path / "broken", kind)
    assert number["now"] == 18 + 2  # of 3 epochs of 6 steps none was done twice
    states = [{name: t.contiguous() for name, t in model.module.net.state_dict().items()} for model in (straight, again)]
    first, second = (save({name: t.clone() for name, t in state.items()}) for state in states)
    assert first == second
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "straight" / "adapter" / file).read_bytes() == (tmp_path / "broken" / "adapter" / file).read_bytes()


# --- variants ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def student():
    """A transformer that knows the tiny task a little, and its data."""
    model, task, splits = lora_nets.made("vit", seed=1)
    batch = splits.train.take(np.arange(len(splits.train)))
    images, labels = torch.from_numpy(batch["image"]), torch.from_numpy(batch["label"])
    adam = torch.optim.Adam(model.module.parameters(), lr=3e-3)
    for _ in range(25):
        adam.zero_grad()
        nn.functional.cross_entropy(model.module(images), labels).backward()
        adam.step()
    return model, task, splits


def job(student, **options) -> Job:
    model, task, splits = student
    settings = Distill(epochs=4, batch_size=32, learning_rate=0.01, teacher="live")
    return Job({}, (), None, task, lambda: splits, lambda: model, None, settings, **{"seed": 3, **options})


def variant(*method, **options) -> VariantRecipe:
    return VariantRecipe(name="v", method=method, weights={"bits": 4, "group": 12}, lora=SMALL, **options)


def test_the_quantized_student_learns_from_the_unmerged_one(student, tmp_path, monkeypatch):
    seen = {}
    fit = trainer.fit

    def watched(model, splits, task, settings, **options):
        seen[settings.lora is not None] = settings, options["teacher"], options["cache"]
        return fit(model, splits, task, settings, **options)

    monkeypatch.setattr(trainer, "fit", watched)
    config = variant("lora", "quantized-distillation", training=[{"epochs": 2}, {"epochs": 3}])
    before = {name: t.clone() for name, t in student[0].module.net.state_dict().items()}
    made, encoded, facts = chain.train(config, job(student, teacher_cache=tmp_path / "cache"), tmp_path)
    assert [(told["method"], len(told["epochs"])) for told in facts["training"]] == [("lora", 2), ("quantized-distillation", 3)]
    assert facts["training"][0]["lora"]["max_relative_difference"] < 1e-4
    assert "lora" not in facts["training"][1]
    settings, teacher, cache = seen[False]
    assert settings.lora is None
    assert cache is None  # that of another teacher
    assert any(".lora_" in name for name, _ in teacher.module.net.named_parameters())
    assert all(torch.equal(student[0].module.net.state_dict()[name], t) for name, t in before.items())
    for name, one in encoded.items():
        np.testing.assert_array_equal(made.module.net.state_dict()[name].numpy(), one.decoded())
        assert all(len(np.unique(bucket)) <= 16 for bucket in one.decoded().reshape(-1, 12)[:3])
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def test_rounding_alone_after_adapters_rounds_the_merged_weights(student, tmp_path):
    _, encoded, facts = chain.train(variant("lora", "round-to-nearest"), job(student), tmp_path)
    state = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    name = "blocks.0.attn.qkv"
    a, b = (state[f"base_model.model.{name}.lora_{which}.weight"].double() for which in "AB")
    merged = student[0].module.net.state_dict()[f"{name}.weight"].double() + 2 * b @ a
    buckets = merged.reshape(-1, 12).numpy()
    low, span = buckets.min(1, keepdims=True), np.ptp(buckets, axis=1, keepdims=True)
    expected = np.rint((buckets - low) / span * 15) / 15 * span + low
    np.testing.assert_allclose(encoded[f"{name}.weight"].decoded().reshape(-1, 12), expected, atol=1e-5)
    assert [told["method"] for told in facts["training"]] == ["lora"]


def test_an_interrupted_chain_ends_the_same(student, tmp_path, monkeypatch):
    config = variant("lora", "quantized-distillation", training={"epochs": 2})
    straight, _, told = chain.train(config, job(student), tmp_path / "straight")
    merge = lora.merge
    monkeypatch.setattr(lora, "merge", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        chain.train(config, job(student), tmp_path / "broken")
    monkeypatch.setattr(lora, "merge", merge)
    again, _, told_again = chain.train(config, job(student), tmp_path / "broken")
    assert told_again == told
    assert all(
        torch.equal(a, b)
        for a, b in zip(straight.module.state_dict().values(), again.module.state_dict().values(), strict=True)
    )


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ("lora", r"method `lora` makes no weights smaller.*\[lora, quantized-distillation\].*`distill\.lora`"),
        (
            ["quantized-distillation", "lora"],
            "adapters come first.*rounded again, and the adapter learned around another rounding",
        ),
        (["lora", "ptq"], r"the chains that there are: .*\[lora, quantized-distillation\]"),
    ],
)
def test_chains_that_cannot_be_are_told(method, says):
    with pytest.raises(ValueError, match=says):
        VariantRecipe(name="v", method=method, weights={"bits": 4})


def test_adapters_are_not_merged_into_quantized_weights(tmp_path, student):
    (tmp_path / "variant.json").write_text(json.dumps({"scheme": {"label": "w4g32", "weights": {"bits": 4}}}))
    for model in (Model(model=str(tmp_path)), Model(model="timm:x", weights=tmp_path / "model.safetensors")):
        with pytest.raises(
            BadInput,
            match=r"distill\.lora: .* holds a variant with quantized weights \(w4g32\).*would have to be rounded again",
        ):
            adapter_base.check(model, "distill.lora")
    with pytest.raises(BadInput, match=r"holds a variant with quantized weights"):
        adapter_base.check(Model(model=f"hf:{tmp_path}"), "distill.lora")
    (tmp_path / "variant.json").write_text(json.dumps({"scheme": {"label": "fp32", "weights": None}}))
    adapter_base.check(Model(model=str(tmp_path)), "distill.lora")
    model = copy.deepcopy(student[0])
    fake.attach(model.module.net, {"blocks.0.attn.qkv.weight": MinMax(24, 4)})
    with pytest.raises(BadInput, match="the model's weights are quantized"):
        lora.targets(model.module.net, SMALL, "lora")


def test_without_peft_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(adapter_base.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Missing, match=r"distill\.lora needs peft: pip install 'edgekd\[lora\]'"):
        adapter_base.check(None, "distill.lora")


def test_settings_of_a_variants_lessons():
    base = Distill(epochs=8, learning_rate=0.01, lora=Lora(rank=2))
    lessons = dict(variant("lora", "quantized-distillation").lessons(base))
    assert lessons["lora"].lora == SMALL
    assert lessons["lora"].learning_rate == 0.01
    assert lessons["quantized-distillation"].lora is None  # its weights are all trained, whatever the student's training was
    assert lessons["quantized-distillation"].learning_rate == pytest.approx(0.002)
    assert [lessons[method].dropout for method in ("lora", "quantized-distillation")] == [True, False]
    kept = variant("lora", "quantized-distillation", training=[{"dropout": False}, {"dropout": True}]).lessons(base)
    assert [lesson.dropout for _, lesson in kept] == [False, True]
