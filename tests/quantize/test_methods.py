"""Rounding, quantized distillation, differentiable quantization and their chain: what each moves, where its gradient is taken."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from distill import tiny
from torch import nn

from edgekd import estimate
from edgekd.data import PictureSplit, PictureSplits
from edgekd.distill import objectives, trainer
from edgekd.distill.trainee import Trainee
from edgekd.errors import BadInput
from edgekd.quantize import Job, allocation, chain, differentiable, fake, make, quantized_distillation, refuses
from edgekd.quantize.codebook import Codebook
from edgekd.quantize.learned_scale import LearnedScale
from edgekd.quantize.uniform import MinMax, rounded_once
from edgekd.recipe import Distill, VariantRecipe

SETTINGS = Distill(epochs=8, batch_size=32, learning_rate=0.02, teacher="live")


def variant(method="quantized-distillation", bits=4, **parts) -> VariantRecipe:
    return VariantRecipe(name="v", method=method, weights={"bits": bits, **parts.pop("weights", {})}, **parts)


@pytest.fixture(scope="module")
def models():
    """A student and a teacher, both trained on the tiny task for a moment."""
    data, made = tiny.splits(), []
    for role, width, seed in (("student", 8, 1), ("teacher", 16, 2)):
        model = tiny.loaded(tiny.network(width, seed=seed), role)
        batch = data.train.take(np.arange(len(data.train)))
        images, labels = torch.from_numpy(batch["image"]), torch.from_numpy(batch["label"])
        adam = torch.optim.Adam(model.module.parameters(), lr=0.02)
        model.module.train()
        for _ in range(30):
            adam.zero_grad()
            nn.functional.cross_entropy(model.module(images), labels).backward()
            adam.step()
        model.module.eval()
        made.append(model)
    return made


@pytest.fixture
def job(models):
    student, teacher = models
    data = tiny.splits()
    return Job({}, (), None, tiny.TinyTask(), lambda: data, lambda: student, lambda: teacher, SETTINGS, seed=3)


def rounded(weights: np.ndarray, bits: int, size: int) -> np.ndarray:
    """Uniform quantization between the extremes of each bucket, with NumPy and nothing else."""
    flat = weights.reshape(-1)
    made = np.empty_like(flat)
    for start in range(0, flat.size, size):
        bucket = flat[start : start + size].astype(np.float64)
        low, span = bucket.min(), np.ptp(bucket) or 1
        made[start : start + size] = np.rint((bucket - low) / span * (2**bits - 1)) / (2**bits - 1) * span + low
    return made.reshape(weights.shape)


def state(model) -> dict[str, np.ndarray]:
    return {name: t.detach().numpy().copy() for name, t in model.module.net.state_dict().items()}


# --- rounding ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "size"), [({"granularity": "tensor"}, None), ({}, "channel"), ({"group": 20}, 20), ({"group": 9999}, None)]
)
def test_rounding_is_what_numpy_makes_of_it_and_touches_nothing_else(job, tmp_path, weights, size):
    before = state(job.student())
    student, encoded, facts = chain.train(variant("round-to-nearest", 3, weights=weights), job, tmp_path)
    after = state(student)
    assert set(encoded) == {"0.weight", "3.weight", "8.weight"}
    for name, values in after.items():
        if name in encoded:
            of = values[0].size if size == "channel" else size or values.size
            np.testing.assert_allclose(values, rounded(before[name], 3, of), atol=1e-6)
            np.testing.assert_array_equal(values, encoded[name].decoded())
        else:
            np.testing.assert_array_equal(values, before[name])
    assert facts["training"] == []
    assert facts["methods"] == ["round-to-nearest"]
    assert {name: values.tolist() for name, values in state(job.student()).items()} == {
        n: v.tolist() for n, v in before.items()
    }


@pytest.mark.parametrize(
    ("keep", "left"),
    [
        (("first", "last"), {"3.weight"}),
        (("3",), {"0.weight", "8.weight"}),
        (("[03]",), {"8.weight"}),
        ((), {"0.weight", "3.weight", "8.weight"}),
    ],
)
def test_layers_that_are_kept_stay_as_they_were(job, tmp_path, keep, left):
    before = state(job.student())
    student, encoded, facts = chain.train(variant("round-to-nearest", 2, keep=keep), job, tmp_path)
    assert set(encoded) == left
    assert set(facts["kept"]) == {"0.weight", "3.weight", "8.weight"} - left
    for name in facts["kept"]:
        np.testing.assert_array_equal(state(student)[name], before[name])


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize(
    "own", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm]
)
def test_a_kept_layer_that_computes_its_weight_stays_so_to_the_file(job, tmp_path, own):
    net = tiny.network()
    own(net[3])
    with torch.no_grad():  # as after an evaluation
        net.eval()(torch.zeros(1, 1, 8, 8))
    student = replace(tiny.loaded(net.eval()), reference="tiny")
    made = make(variant("round-to-nearest", 4, keep=("3",)), replace(job, student=lambda: student), tmp_path)
    assert made.facts["kept"] == ["3.weight"]
    assert {t["name"] for t in made.facts["tensors"]} == {"0.weight", "8.weight"}
    images = job.splits().test.take(np.arange(4))["image"].astype(np.float32)
    trained, _, _ = chain.train(variant("round-to-nearest", 4, keep=("3",)), replace(job, student=lambda: student), tmp_path)
    assert torch.equal(trained.module.net.eval()[3].weight, net[3].weight)
    with torch.no_grad():
        expected = trained.module.eval()(torch.from_numpy(images)).numpy()
    runtime = ort.InferenceSession(str(made.graphs["model"]), providers=["CPUExecutionProvider"])
    for image, logits in zip(images, expected, strict=True):
        np.testing.assert_allclose(runtime.run(None, {"image": image[None]})[0][0], logits, atol=1e-5)


# --- quantized distillation ------------------------------------------------------------------------


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


@pytest.fixture
def linear():
    """(job, pictures scaled as the network sees them, labels, weights of student and teacher): linear classifiers without a bias."""
    rng = np.random.default_rng(5)
    images = rng.integers(0, 256, (24, 3, 2, 1)).astype(np.uint8)
    labels = rng.integers(0, 3, 24)
    split = PictureSplit("train", tiny.CLASSES, "linear", labels.astype(np.int64), (3, 2, 1), lambda at: images[at])
    data = PictureSplits(split, split, split)
    nets = [nn.Sequential(nn.Flatten(), nn.Linear(6, 3, bias=False)) for _ in range(2)]
    with torch.no_grad():
        for net in nets:
            net[1].weight.copy_(torch.from_numpy(rng.normal(size=(3, 6))))
    student, teacher = (tiny.loaded(net, role) for net, role in zip(nets, ("student", "teacher"), strict=True))
    settings = Distill(epochs=1, batch_size=24, teacher="live")
    job = Job({}, (), None, tiny.TinyTask(), lambda: data, lambda: student, lambda: teacher, settings, seed=0)
    x = (images.reshape(24, 6).astype(np.float64) / 255 - 0.5) / 0.5
    return job, x, labels, nets[0][1].weight.detach().double().numpy(), nets[1][1].weight.detach().double().numpy()


SGD = {
    "epochs": 1, "optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "learning_rate": 0.3, "schedule": "constant", "warmup": 0.0,
}  # fmt: skip


def gradient_at(weights, x, labels, teacher) -> np.ndarray:
    """d/dw of 0.7 T^2 KL(teacher || student) + 0.3 CE, T = 2, mean over samples, worked by hand."""
    logits, target = x @ weights.T, np.eye(3)[labels]
    p, q = softmax(x @ teacher.T / 2), softmax(logits / 2)
    return (0.7 * 2 * (q - p) + 0.3 * (softmax(logits) - target)).T @ x / len(x)


def test_one_step_takes_the_gradient_at_the_quantized_weights_and_moves_the_full_precision_ones(linear, tmp_path, monkeypatch):
    job, x, labels, weights, teacher = linear
    shadow = {}
    bake = fake.bake
    monkeypatch.setattr(
        fake, "bake", lambda net: shadow.update({n: w.detach().numpy().copy() for n, *_, w in fake.quantized(net)}) or bake(net)
    )
    _, encoded, facts = chain.train(variant(bits=2, training=SGD), job, tmp_path)
    assert facts["training"][0]["best_epoch"] == 1  # else the weights that it began with come back
    expected = weights - 0.3 * gradient_at(rounded(weights, 2, 6), x, labels, teacher)
    np.testing.assert_allclose(shadow["1.weight"], expected, atol=1e-5)
    elsewhere = weights - 0.3 * gradient_at(weights, x, labels, teacher)
    assert np.abs(elsewhere - expected).max() > 0.01
    np.testing.assert_allclose(encoded["1.weight"].decoded(), rounded(expected, 2, 6), atol=1e-5)


def test_the_exact_style_and_stochastic_rounding_reach_the_training(linear, tmp_path):
    job = linear[0]
    made = {
        name: chain.train(variant(bits=2, training=SGD, **options), job, tmp_path / name)[1]["1.weight"].decoded()
        for name, options in {
            "plain": {}, "same": {"style": "straight-through", "rounding": "deterministic"}, "exact": {"style": "exact"},
            "stochastic": {"rounding": "stochastic"}, "truncated": {"style": "truncated"}, "learned": {"scale": "learned"},
        }.items()
    }  # fmt: skip
    np.testing.assert_array_equal(made["plain"], made["same"])
    for name in ("exact", "stochastic", "truncated", "learned"):
        assert np.abs(made[name] - made["plain"]).max() > 1e-3, name
    assert np.abs(made["truncated"]).max() <= 1


class Twice(nn.Module):
    """A layer that is called twice, and another one that shares its weight; remembers the weights that it computes with."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.tied, self.head = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 3)
        self.tied.weight = self.first.weight
        self.seen = []

    def forward(self, x):
        x = x.flatten(1)
        for layer in (self.first, self.first, self.tied):
            weight = layer.weight
            self.seen.append(weight.detach().clone())
            x = torch.relu(nn.functional.linear(x, weight, layer.bias))
        return self.head(x)


def test_all_uses_of_a_weight_see_it_rounded_alike_and_every_step_anew(job):
    student = tiny.loaded(Twice())
    net = student.module.net
    config = variant(bits=2, rounding="stochastic")
    quantized_distillation.prepare(net, {name: (size, 2) for name, size in chain.check(config, net).items()}, config)
    data = job.splits().train.take(np.arange(8))
    batch = {name: torch.from_numpy(values) for name, values in data.items()}
    settings = Distill(objectives=[{"kind": "task"}])
    trainee = Trainee(student, job.task, objectives.resolve(settings.objectives), settings, 0, batch, {})
    trainee.train()
    steps = []
    for _ in range(2):
        net.seen.clear()
        trainee(batch, {})[0].backward()
        assert len(net.seen) == 3
        assert all(torch.equal(weight, net.seen[0]) for weight in net.seen)
        steps.append(net.seen[0])
    assert not torch.equal(*steps)
    net.seen.clear()
    net.eval()
    trainee(batch, {})
    assert torch.equal(net.seen[0], MinMax(64, 2)(net.first.parametrizations.weight.original))


def test_copies_of_a_layer_are_rounded_each_for_itself():
    made = nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 40)).train()
    made[1].load_state_dict(made[0].state_dict())
    fake.attach(made, {f"{n}.weight": MinMax(40, 2, stochastic=True) for n in (0, 1)})
    twin = copy.deepcopy(made)
    with rounded_once():
        seen = [net[n].weight for net in (made, twin) for n in (0, 1)]
        assert all(torch.equal(a, b) == (a is b) for a in seen for b in seen)
        seen[0].sum().backward()
    assert torch.equal(made[0].parametrizations.weight.original.grad, torch.ones(40, 40))
    assert not torch.equal(made[0].weight, made[0].weight)


def test_training_beats_rounding_on_the_loss_it_is_given(job, tmp_path):
    _, _, facts = chain.train(variant(bits=2), job, tmp_path)
    told = facts["training"][0]
    assert told["best_epoch"] > 0
    assert told["epochs"][-1]["loss"] < told["epochs"][0]["loss"]
    assert (len(told["epochs"]), told["settings"]["learning_rate"]) == (2, pytest.approx(0.004))  # a quarter, a fifth
    assert not any("seconds" in epoch for epoch in told["epochs"])


# --- differentiable quantization -----------------------------------------------------------------------


def test_only_points_move_and_batchnorm_goes_on_counting(job, tmp_path):
    before = state(job.student())
    student, encoded, facts = chain.train(variant("differentiable", 2), job, tmp_path)
    assert facts["training"][0]["best_epoch"] > 0
    assert facts["training"][0]["settings"]["optimizer"] == "adamw"
    after = state(student)
    running = {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    for name in before:
        assert np.array_equal(after[name], before[name]) == (name not in running | set(encoded)), name
    for name, one in encoded.items():
        low, high = (f(before[name].reshape(len(one.scale), -1), axis=1) for f in (np.min, np.max))
        np.testing.assert_allclose(one.offset, low, atol=1e-6)  # the ranges are those of the weights that it began with
        np.testing.assert_allclose(one.scale, high - low, atol=1e-6)
        assert (np.diff(one.points) >= 0).all()
        scaled = (before[name].reshape(len(one.scale), -1) - low[:, None]) / (high - low)[:, None]
        np.testing.assert_array_equal(one.indices, np.abs(scaled[..., None] - one.points).argmin(-1))
    start = Codebook(72, 4, job.student().module.net[3].weight).points.detach().numpy()
    assert np.abs(encoded["3.weight"].points - start).max() > 1e-4


@pytest.mark.parametrize("options", [{}, {"scale": "learned"}, {"style": "truncated"}])
@pytest.mark.parametrize("weights", [{}, {"group": 24}, {"granularity": "tensor"}])
def test_in_a_chain_the_points_begin_exactly_at_the_result_before(models, options, weights):
    net = copy.deepcopy(models[0].module.net)
    with torch.no_grad():
        net[3].weight.mul_(3)  # beyond -1 and 1, so that `truncated` does something
    config = variant(["quantized-distillation", "differentiable"], 3, weights=weights, **options)
    layout = {name: (size, 3) for name, size in chain.check(config, net).items()}
    quantized_distillation.prepare(net, layout, config)
    before = {name: owner.weight.detach().clone() for name, owner, *_ in fake.quantized(net)}
    differentiable.prepare(net, layout, config)
    for name, owner, _, quantizer, _ in fake.quantized(net):
        assert isinstance(quantizer, Codebook)
        torch.testing.assert_close(owner.weight, before[name], atol=1e-6, rtol=1e-6)
    assert {name for name, p in net.named_parameters() if p.requires_grad} == {
        f"{layer}.parametrizations.weight.0.points" for layer in "038"
    }


def test_a_chain_trains_one_after_the_other_each_with_its_own_settings(job, tmp_path):
    config = variant(
        ["quantized-distillation", "differentiable"], 2, training=[{"epochs": 3}, {"epochs": 1, "learning_rate": 0.01}]
    )
    _, encoded, facts = chain.train(config, job, tmp_path)
    first, second = facts["training"]
    assert (first["method"], second["method"]) == config.methods
    assert (len(first["epochs"]), len(second["epochs"])) == (3, 1)
    assert (first["settings"]["learning_rate"], second["settings"]["learning_rate"]) == (pytest.approx(0.004), 0.01)
    assert second["initial_validation_loss"] == pytest.approx(
        min([first["initial_validation_loss"]] * (first["best_epoch"] == 0) or [first["epochs"][first["best_epoch"] - 1]["validation_loss"]]),
        abs=1e-4,
    )  # fmt: skip
    assert all(one.points is not None for one in encoded.values())


# --- teacher, resuming, budget --------------------------------------------------------------------------


def test_without_a_teacher_the_student_in_full_precision_is_one(job, tmp_path, monkeypatch):
    seen = []
    fit = trainer.fit
    monkeypatch.setattr(trainer, "fit", lambda *a, **k: seen.append(k["teacher"]) or fit(*a, **k))
    alone = replace(job, teacher=None)
    before = state(alone.student())
    chain.train(variant(bits=2), alone, tmp_path)
    (teacher,) = seen
    assert teacher.module is not alone.student().module
    for name, values in state(teacher).items():
        np.testing.assert_array_equal(values, before[name])
    assert all(p.requires_grad for p in alone.student().module.parameters())


def test_the_teachers_outputs_are_shared_unless_others_are_wanted(job, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    cached = replace(job, training=SETTINGS.model_copy(update={"teacher": "cached", "views": 2}), teacher_cache=cache)
    chain.train(variant(bits=2), cached, tmp_path / "a")
    made = {file.name: file.stat().st_mtime_ns for file in cache.iterdir()}
    assert "logits.1.npy" in made or "logits.0.npy" in made
    features = {"objectives": [{"kind": "features", "student": "2", "teacher": "2"}, {"kind": "task"}], "epochs": 1}
    chain.train(variant(bits=2, training=features), cached, tmp_path / "b")
    chain.train(variant("differentiable", 2), cached, tmp_path / "c")
    assert {file.name: file.stat().st_mtime_ns for file in cache.iterdir()} == made
    assert list((tmp_path / "b").rglob("2.0.npy"))
    assert not list((tmp_path / "c").rglob("*.npy"))


@pytest.mark.parametrize("at", [3, 11, 14])
def test_an_interrupted_chain_goes_on_from_there_and_ends_with_the_same_numbers(job, tmp_path, monkeypatch, at):
    """5 steps an epoch; 2 epochs of the first method, then 2 of the second."""
    config = variant(["quantized-distillation", "differentiable"], 2, rounding="stochastic")
    job = replace(job, training=SETTINGS.model_copy(update={"checkpoint_minutes": 0.0}))
    whole, whole_encoded, whole_facts = chain.train(config, job, tmp_path / "whole")
    steps, step = [], trainer._Fit._step

    def dies(self, *arguments):
        steps.append(1)
        if len(steps) == at + 1:
            raise KeyboardInterrupt
        return step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(trainer._Fit, "_step", dies)
        with pytest.raises(KeyboardInterrupt):
            chain.train(config, job, tmp_path / "killed")
        made, encoded, facts = chain.train(config, job, tmp_path / "killed")
    assert len(steps) == 20 + 1  # no step is done twice
    assert facts == whole_facts
    for name, values in state(whole).items():
        np.testing.assert_array_equal(state(made)[name], values)
    for name, one in whole_encoded.items():
        np.testing.assert_array_equal(encoded[name].indices, one.indices)


@pytest.mark.parametrize("by", ["sensitivity", "gradient-norm"])
def test_a_mean_of_bits_is_kept_and_told_tensor_by_tensor(job, tmp_path, by):
    config = VariantRecipe(name="v", method="round-to-nearest", budget={"mean_bits": 3.5, "by": by, "choices": [2, 4, 8]})
    _, encoded, facts = chain.train(config, job, tmp_path)
    bits = {name: one.bits for name, one in encoded.items()}
    counts = {name: one.count for name, one in encoded.items()}
    mean = sum(bits[n] * counts[n] for n in bits) / sum(counts.values())
    assert mean <= 3.5
    assert facts["budget"]["mean_bits_reached"] == pytest.approx(mean)
    assert {row["name"]: row["bits"] for row in facts["budget"]["table"]} == bits
    assert len(set(bits.values())) > 1


@pytest.mark.parametrize("at", [0, 3, 8])
def test_the_tensor_that_suffers_most_gets_the_most_bits(job, tmp_path, at):
    """The others have but two values, which 2 bits hold without any loss."""
    net = tiny.network(dropout=0.0)
    with torch.no_grad():
        for other in {0, 3, 8} - {at}:
            net[other].weight.copy_(net[other].weight.sign() * 0.1)
    counts = {f"{n}.weight": net[n].weight.numel() for n in (0, 3, 8)}
    mean = sum((8 if name == f"{at}.weight" else 2) * count for name, count in counts.items()) / sum(counts.values())
    config = VariantRecipe(
        name="v", method="round-to-nearest", weights={"granularity": "tensor"}, budget={"mean_bits": mean, "choices": [2, 4, 8]}
    )
    student = tiny.loaded(net.eval())
    _, encoded, _ = chain.train(config, replace(job, student=lambda: student), tmp_path)
    assert {name: one.bits for name, one in encoded.items()} == {name: 8 if name == f"{at}.weight" else 2 for name in counts}


@pytest.mark.parametrize(
    ("parts", "quantizer"),
    [
        ({"method": "round-to-nearest"}, lambda size, bits, w: MinMax(size, bits)),
        ({"scale": "learned"}, LearnedScale),
        ({"style": "truncated"}, lambda size, bits, w: MinMax(size, bits, "truncated")),
        ({"rounding": "stochastic"}, lambda size, bits, w: MinMax(size, bits)),
        ({"method": "differentiable"}, lambda size, bits, w: Codebook(size, 2**bits, w)),
        ({"method": ["quantized-distillation", "differentiable"], "scale": "learned"}, LearnedScale),
    ],
)
def test_damage_is_that_of_the_variants_own_quantizer(models, job, parts, quantizer):
    student = replace(models[0], module=copy.deepcopy(models[0].module))
    net = student.module.net
    with torch.no_grad():
        net[3].weight.mul_(4)  # beyond -1 and 1, so that `truncated` does something
        net[8].weight.mul_(0.01)  # no outputs of 0 and 1 alone, which nothing moves
    config = VariantRecipe(**{"name": "v", "method": "quantized-distillation", "budget": {"mean_bits": 4}} | parts)
    sizes = chain.check(config, net)
    rows = allocation.bits_of(config, job, student, sizes)[1]["table"]
    images = torch.from_numpy(job.splits().train.take(np.arange(len(job.splits().train)))["image"])

    def probabilities() -> np.ndarray:
        with torch.no_grad():
            return softmax(student.module.eval()(images).double().numpy())

    p = probabilities()
    for row in rows:
        weights, kept = net.get_parameter(row["name"]), net.get_parameter(row["name"]).detach().clone()
        with torch.no_grad():
            weights.copy_(quantizer(sizes[row["name"]], row["bits"], kept)(kept))
            q = probabilities()
            weights.copy_(kept)
        assert row["sensitivity"] == pytest.approx((p * np.log(p / q)).sum(1).mean(), rel=1e-3)
        assert row["sensitivity"] > 1e-9


def test_a_size_is_kept_all_weights_counted(job, tmp_path):
    total = sum(v.size for name, v in state(job.student()).items() if "num_batches" not in name)
    config = VariantRecipe(name="v", method="differentiable", budget={"size_mb": 0.0008}, training={"epochs": 1})
    _, encoded, facts = chain.train(config, job, tmp_path)
    quantized = sum(row["bytes"] for row in facts["tensors"])
    rest = 4 * (total - sum(one.count for one in encoded.values()))
    assert 0.5 * 800 < quantized + rest <= 800


def test_a_budget_below_the_least_size_says_what_that_is(job, tmp_path):
    config = VariantRecipe(name="v", method="round-to-nearest", budget={"size_mb": 0.0001}, keep=("first",))
    with pytest.raises(
        BadInput, match=r"quantize `v`: budget.size_mb 0.0001 is below the smallest possible size, (\S+) MB"
    ) as caught:
        chain.check(config, job.student().module.net)
    least = float(str(caught.value).split("size, ")[1].split()[0])
    fits = config.model_copy(update={"budget": config.budget.model_copy(update={"size_mb": least})})
    _, encoded, _ = chain.train(fits, job, tmp_path)
    assert {one.bits for one in encoded.values()} == {2}


def test_tied_weights_weigh_once_in_the_facts_the_budget_and_the_estimate(job, tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 32), nn.Linear(32, 32), nn.Linear(32, 32), nn.BatchNorm1d(32), nn.Linear(32, 3)
    )
    net[3].weight = net[2].weight
    student = replace(tiny.loaded(net.eval()), reference="tiny")
    job = replace(job, student=lambda: student)
    config = variant("round-to-nearest", 4)
    sizes = make(config, job, tmp_path / "rounded").facts["sizes"]
    rest = 32 * 3 + 3 + 4 * 32  # biases, and BatchNorm's weights and statistics
    assert sizes["unquantized"] == rest
    rows, weights = 32 + 32 + 3, 64 * 32 + 32 * 32 + 32 * 3
    assert sizes["packed_bytes"] == weights // 2 + 8 * rows + 4 * rest
    assert estimate._bytes(net, config) == sizes["packed_bytes"]
    ptq = VariantRecipe(name="p", method="ptq", weights={"bits": 8})
    assert estimate._bytes(net, ptq) == weights + 4 * rows + 4 * rest
    least = weights // 4 + 8 * rows + 4 * rest
    tight = VariantRecipe(name="b", method="round-to-nearest", budget={"size_mb": least / 1e6})
    _, encoded, _ = chain.train(tight, job, tmp_path / "tight")
    assert {one.bits for one in encoded.values()} == {2}


# --- what does not fit ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"method": "differentiable", "activations": {"bits": 8}}, "a codebook has no arithmetic of its own"),
        ({"activations": {"bits": 8}}, "quantized-distillation makes weights alone"),
        ({"scale": "learned", "weights": {"symmetric": True}}, "a learned scale puts its levels where they serve best"),
        ({"style": "exact", "weights": {"symmetric": True}}, "symmetric weights with style exact"),
        ({"rounding": "stochastic", "weights": {"symmetric": True}}, "symmetric weights with stochastic rounding"),
        ({"method": "differentiable", "weights": {"symmetric": True}}, "a codebook puts its levels where they serve best"),
        ({"weights": {"bits": 1, "symmetric": True}}, "give 2 bits or more"),
        ({"weights": {"kind": "codebook"}}, "use method differentiable"),
        ({"method": "differentiable", "weights": {"kind": "uniform"}}, "differentiable learns a codebook"),
        ({"budget": {"mean_bits": 3}}, "the bits are chosen among budget.choices"),
        ({"scale": "learned", "style": "exact"}, "has a gradient of its own"),
        ({"scale": "learned", "rounding": "stochastic"}, "rounds to the nearest"),
        ({"method": "round-to-nearest", "training": {"epochs": 3}}, "`training` goes with quantized-distillation or differentiable"),
        ({"method": "round-to-nearest", "style": "exact"}, "`style` goes with quantized-distillation, not with round-to-nearest"),
        ({"method": "differentiable", "scale": "learned"}, "`scale` goes with quantized-distillation"),
        ({"method": "ptq", "style": "exact"}, "`style` goes with quantized-distillation, not with ptq"),
        ({"method": "ptq", "bits": 8, "budget": {"mean_bits": 3}}, "`budget` goes with round-to-nearest or"),
    ],
)  # fmt: skip
def test_what_a_method_cannot_do_is_told_at_once(parts, says):
    assert says in refuses(variant(**parts))


def test_weights_must_be_said():
    assert "needs `weights: {bits: 4}`" in refuses(VariantRecipe(name="v", method="quantized-distillation"))


def test_a_bare_graph_cannot_be_trained(tmp_path):
    with pytest.raises(BadInput, match=r"needs the student as a torch network and data; a bare \.onnx has neither"):
        make(variant(), Job({"model": Path("model.onnx")}), tmp_path)


@pytest.mark.parametrize(
    ("keep", "says"), [(("*",), "leaves nothing to quantize"), (("33",), "no module of the student is called")]
)
def test_keep_is_checked_before_anything_is_computed(job, keep, says):
    with pytest.raises(BadInput, match=f"quantize `v`: keep: .*{says}"):
        chain.check(variant(keep=keep), job.student().module.net)
