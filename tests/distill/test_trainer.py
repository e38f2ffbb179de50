"""The trainer: it learns, resumes exactly, stops at NaN, keeps the best, and gives the same on several processes."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file
from torch import nn

from edgekd import recipe
from edgekd.distill import batches, check, checkpoint, teacher_cache, trainer
from edgekd.distill.history import History
from edgekd.distill.trainer import fit
from edgekd.errors import BadInput, Diverged

SCRIPT = str(Path(tiny.__file__))
TASK = tiny.TinyTask()


def student(**options):
    return tiny.loaded(tiny.network(seed=1, **options))


def teacher():
    return tiny.loaded(tiny.network(16, seed=2), "teacher")


def fitted(folder, settings, model=None, splits=None, **options):
    model = model or student()
    history = fit(model, splits or tiny.splits(), TASK, settings, seed=3, folder=folder, **options)
    return history, model


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a) and a.keys() == b.keys()


# --- it learns ---------------------------------------------------------------------------------


def test_supervised_training_learns(tmp_path):
    history, model = fitted(
        tmp_path, recipe.Training(epochs=8, batch_size=16, learning_rate=0.02, schedule="one-cycle", warmup=0.3)
    )
    assert history.best_validation > 0.9 > history.initial_validation
    assert history.warnings == []
    assert history.steps == 8 * 10  # 150 samples by 16: nine whole batches and one of 6
    assert History.from_json(json.loads(json.dumps(history.to_json()))) == history
    test = tiny.splits().test
    with torch.no_grad():
        score = (model.module(torch.from_numpy(test.take(np.arange(60))["image"])).argmax(1).numpy() == test.labels).mean()
    assert score > 0.9


def test_the_student_comes_to_agree_with_its_teacher(tmp_path):
    # A teacher that is wrong in a way of its own: what agrees with it has not learnt from the labels.
    wise = teacher()
    fitted(tmp_path / "teacher", recipe.Training(epochs=8, batch_size=16, learning_rate=0.02), wise)
    with torch.no_grad():
        wise.module.net[-1].weight.copy_(wise.module.net[-1].weight.roll(1, 0))
        wise.module.net[-1].bias.copy_(wise.module.net[-1].bias.roll(1, 0))
    settings = recipe.Distill(epochs=10, batch_size=16, learning_rate=0.02, objectives=[{"kind": "logits"}])
    history, _ = fitted(tmp_path / "student", settings, teacher=wise)
    # The start is the best by the labels, so what was learnt shows in the last epoch's score.
    assert history.epochs[-1].validation < 0.1
    assert history.epochs[-1].terms["logits"] < 0.2 * history.epochs[0].terms["logits"]


def test_cached_and_live_teacher_give_the_same(tmp_path):
    augment = recipe.Augment(crop=1, flip=True)
    found = {}
    for how in ("cached", "live"):
        settings = recipe.Distill(epochs=3, batch_size=32, teacher=how, augment=augment, views=3)
        found[how], _ = fitted(tmp_path / how, settings, teacher=teacher())
    # With as many views as epochs, the cached teacher saw the very pictures of each epoch.
    for cached, live in zip(found["cached"].epochs, found["live"].epochs, strict=True):
        assert cached.terms == pytest.approx(live.terms, rel=1e-4)


def test_a_cached_view_is_met_again(tmp_path, monkeypatch):
    seen = []
    read = teacher_cache.Cache.read
    batch = trainer.Samples.batch
    monkeypatch.setattr(
        teacher_cache.Cache, "read", lambda self, view, *a: seen.append(("teacher", view)) or read(self, view, *a)
    )
    settings = recipe.Distill(epochs=4, batch_size=150, augment=recipe.Augment(crop=1), views=2)
    fitted(tmp_path / "warm", settings, teacher=teacher(), cache=tmp_path / "cache")
    seen.clear()
    monkeypatch.setattr(trainer.Samples, "batch", lambda self, r, view: seen.append(("student", view)) or batch(self, r, view))
    fitted(tmp_path / "x", settings, teacher=teacher(), cache=tmp_path / "cache")
    assert [view for who, view in seen if who == "student"] == [0, 1, 0, 1]
    assert [view for who, view in seen if who == "teacher"] == [0, 1, 0, 1]


def test_history_adds_up(tmp_path):
    settings = recipe.Distill(
        epochs=1,
        batch_size=40,
        learning_rate=1e-12,
        objectives=[{"kind": "logits", "weight": 0.7}, {"kind": "task", "weight": 0.3}],
    )
    wise, model = teacher(), student(norm=False, dropout=0.0)
    start = [m.module.eval() for m in (wise, model)]
    taken = tiny.splits().train.take(np.arange(150))
    with torch.no_grad():
        t, s = (torch.log_softmax(module(torch.from_numpy(taken["image"])).double() / 2, 1) for module in start)
        logits = 4 * (t.exp() * (t - s)).sum(1).mean().item()
        task = TASK.loss(
            TASK.forward(model.module, {"image": torch.from_numpy(taken["image"])}), {"label": torch.from_numpy(taken["label"])}
        ).item()
    (epoch,) = fitted(tmp_path, settings, model, teacher=wise)[0].epochs
    assert epoch.terms == pytest.approx({"logits": logits, "task": task}, rel=1e-4)
    assert epoch.loss == pytest.approx(0.7 * logits + 0.3 * task, rel=1e-4)


def test_a_projector_is_trained_with_the_student(tmp_path):
    entry = recipe.Features(student="3", teacher="3", weight=2.0)
    history, _ = fitted(
        tmp_path, recipe.Distill(epochs=6, batch_size=16, learning_rate=0.02, objectives=[entry]), teacher=teacher()
    )
    assert history.epochs[-1].loss < 0.5 * history.epochs[0].loss
    tensors, _ = checkpoint.read(tmp_path / "checkpoint" / "state.safetensors")
    assert tensors["model.beside.0.weight"].shape == (16, 8, 1, 1)
    assert not any("beside" in name for name in checkpoint.take("best", tensors))


def test_the_average_is_what_is_kept(tmp_path):
    _, plain = fitted(tmp_path / "a", recipe.Training(epochs=2))
    _, averaged = fitted(tmp_path / "b", recipe.Training(epochs=2, average=0.9))
    tensors, _ = checkpoint.read(tmp_path / "b" / "checkpoint" / "state.safetensors")
    assert same(checkpoint.take("best", tensors), averaged.module.state_dict())
    assert same(checkpoint.take("model.student", tensors), plain.module.state_dict())
    assert not same(averaged.module.state_dict(), plain.module.state_dict())


def test_the_gradient_is_clipped(tmp_path):
    settings = recipe.Training(
        epochs=1, batch_size=150, optimizer="sgd", momentum=0, weight_decay=0, learning_rate=1.0, schedule="constant", warmup=0
    )
    before, model = student(norm=False), student(norm=False)
    fitted(tmp_path, settings.model_copy(update={"gradient_clip": 1e-3}), model)
    tensors, _ = checkpoint.read(tmp_path / "checkpoint" / "state.safetensors")
    after = checkpoint.take("model.student", tensors)
    moved = sum(((after[name] - value) ** 2).sum().item() for name, value in before.module.state_dict().items())
    assert moved**0.5 == pytest.approx(1e-3, rel=1e-2)


def test_without_dropout_a_training_is_that_of_the_network_without_such_layers(tmp_path):
    settings = recipe.Training(epochs=2, batch_size=50)
    nets = {}
    for name, chance, dropout in (("none", 0.0, True), ("off", 0.5, False), ("on", 0.5, True)):
        model = student(dropout=chance)
        fitted(tmp_path / name, settings.model_copy(update={"dropout": dropout}), model)
        nets[name] = model.module.state_dict()
    assert same(nets["off"], nets["none"])
    assert not same(nets["on"], nets["none"])


def test_weights_come_back_in_the_ordinary_layout(tmp_path):
    _, model = fitted(tmp_path, recipe.Training(epochs=1))
    assert all(p.is_contiguous() for p in model.module.parameters())
    assert not model.module.training


class Flattening(nn.Module):
    """Flattens with view(), which refuses channels-last maps."""

    def __init__(self):
        super().__init__()
        self.conv, self.linear = nn.Conv2d(1, 4, 3), nn.Linear(4 * 36, 3)

    def forward(self, x):
        x = self.conv(x).relu()
        return self.linear(x.view(-1, 4 * 36))


def test_a_network_that_flattens_with_view_can_be_trained(tmp_path):
    history, _ = fitted(tmp_path, recipe.Training(epochs=5, learning_rate=0.01), tiny.loaded(Flattening()))
    assert history.best_validation > 0.9


# --- what goes wrong ---------------------------------------------------------------------------


@pytest.mark.parametrize("minutes", [0, 1])
def test_nan_names_epoch_step_and_objective_and_is_never_saved(tmp_path, minutes, monkeypatch):
    settings = recipe.Distill(epochs=4, batch_size=16, checkpoint_minutes=minutes)
    number = {"loss": 0}

    def sick(self, outputs, batch, smoothing=0.0, well=tiny.TinyTask.loss):
        number["loss"] += len(batch["label"]) == 16  # a step of training, not a validation
        loss = well(self, outputs, batch, smoothing)
        return loss * float("nan") if number["loss"] == 14 else loss

    monkeypatch.setattr(tiny.TinyTask, "loss", sick)
    with pytest.raises(
        Diverged, match=r"epoch 2, step 5 of 10: objective `task` is nan.*distill\.learning_rate \(now 0\.002\)"
    ):
        fitted(tmp_path, settings, teacher=teacher())
    tensors, _ = checkpoint.read(tmp_path / "checkpoint" / "state.safetensors")
    assert all(torch.isfinite(t).all() for t in tensors.values())


def test_weights_that_blow_up_on_the_last_step_are_noticed(tmp_path, monkeypatch):
    settings = recipe.Training(epochs=1, batch_size=150, learning_rate=1e30, optimizer="sgd", schedule="constant", warmup=0)
    with torch.no_grad():
        model = student(norm=False)
        model.module.net[-1].weight.mul_(1e20)
    with pytest.raises(Diverged, match="epoch 1, step 1 of 1"):
        fitted(tmp_path, settings, model)


def test_training_that_does_not_help_is_told(tmp_path):
    model = student()
    fitted(tmp_path / "good", recipe.Training(epochs=8, batch_size=16, learning_rate=0.02), model)
    start = {name: value.clone() for name, value in model.module.state_dict().items()}
    history, model = fitted(
        tmp_path / "bad", recipe.Training(epochs=2, optimizer="sgd", learning_rate=3.0, schedule="constant"), model
    )
    assert history.best_epoch == 0
    assert same(start, model.module.state_dict())
    assert any("no epoch was better than the start" in text for text in history.warnings)
    assert any("final validation loss is worse than initial" in text for text in history.warnings)


def test_an_objective_that_reads_a_teacher_needs_one(tmp_path):
    with pytest.raises(BadInput, match="`logits` needs a teacher"):
        fitted(tmp_path, recipe.Distill(epochs=1))


def test_an_unknown_layer_is_refused_with_the_nearest(tmp_path):
    entry = recipe.Features(student="33", teacher="3")
    with pytest.raises(BadInput, match=r"student has no layer `33` \(did you mean `3`\?\)"):
        fitted(tmp_path, recipe.Distill(epochs=1, objectives=[entry]), teacher=teacher())


def settings_with(*objectives):
    return recipe.Distill.model_validate({"objectives": [*objectives, {"kind": "task"}]})


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ({"student": "3", "teacher": "33"}, "the teacher has no layer `33`.*did you mean `3`"),
        ({"student": "", "teacher": "3"}, "the student has no layer ``"),
        ({"student": "layer3", "teacher": "3"}, "the student has no layer `layer3`"),
    ],
)
def test_unknown_layers_are_told_without_computing_anything(layers, said, monkeypatch):
    one, other = student(), teacher()

    def run(*args):
        raise AssertionError("computed")

    monkeypatch.setattr(type(one.module), "forward", run)
    with pytest.raises(BadInput, match=said):
        check(settings_with({"kind": "features", **layers}), TASK, one, other)
    check(settings_with({"kind": "features", "student": "3", "teacher": "3"}), TASK, one, other)
    check(settings_with({"kind": "logits"}), TASK, one, None)


def test_a_batch_too_small_for_batch_norm_names_the_setting(tmp_path):
    flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    with pytest.raises(BadInput, match=r"train\.batch_size: .* raise it \(now 1\)"):
        fitted(tmp_path, recipe.Training(epochs=1, batch_size=1), tiny.loaded(flat))


def test_a_checkpoint_of_another_training_is_refused(tmp_path):
    fitted(tmp_path, recipe.Training(epochs=1))
    with pytest.raises(BadInput, match=r"settings.learning_rate is 0.002, not 0.1"):
        fitted(tmp_path, recipe.Training(epochs=1, learning_rate=0.1))


# --- resuming ----------------------------------------------------------------------------------


class Pulled(BaseException):
    """The plug."""


@pytest.mark.parametrize("settings", [
    recipe.Training(epochs=3, batch_size=16, average=0.9, augment=recipe.Augment(crop=1), checkpoint_minutes=0),
    recipe.Training(epochs=3, batch_size=16, optimizer="sgd", gradient_clip=0.1, checkpoint_minutes=1e-9),
    recipe.Training(epochs=3, batch_size=16, schedule="one-cycle", checkpoint_minutes=60),
    recipe.Distill(epochs=3, batch_size=16, checkpoint_minutes=0, objectives=[{"kind": "logits"}, {"kind": "features", "student": "3", "teacher": "3"}]),
])  # fmt: skip
def test_an_interrupted_training_ends_bit_identical(tmp_path, settings, monkeypatch):
    wise = {"teacher": teacher()} if isinstance(settings, recipe.Distill) else {}
    straight, expected = fitted(tmp_path / "straight", settings.model_copy(update={"checkpoint_minutes": 60.0}), **wise)
    step, budget = trainer._Fit._step, [7]

    def pulled(self, *arguments):
        budget[0] -= 1
        if budget[0] < 0:
            raise Pulled
        return step(self, *arguments)

    monkeypatch.setattr(trainer._Fit, "_step", pulled)
    history = None
    for attempt in range(12):
        budget[0] = 7 + 4 * attempt
        torch.manual_seed(attempt)
        np.random.seed(attempt)
        try:
            history, model = fitted(tmp_path / "resumed", settings, **wise)
            break
        except Pulled:
            assert attempt < 11
    assert same(expected.module.state_dict(), model.module.state_dict())
    timeless = [[{**vars(e), "seconds": 0} for e in h.epochs] for h in (straight, history)]
    assert timeless[0] == timeless[1]
    assert history.best_epoch == straight.best_epoch
    assert history.warnings == straight.warnings


def test_a_finished_training_is_not_done_again(tmp_path, monkeypatch):
    first, model = fitted(tmp_path, recipe.Training(epochs=2))
    monkeypatch.setattr(trainer._Fit, "_step", None)
    again, other = fitted(tmp_path, recipe.Training(epochs=2))
    assert same(model.module.state_dict(), other.module.state_dict())
    assert again == first


def test_reading_ahead_changes_nothing(tmp_path, monkeypatch):
    _, plain = fitted(tmp_path / "a", recipe.Training(epochs=2, batch_size=16))
    monkeypatch.setattr(trainer, "SLOW_READ", -1.0)
    used = []
    ahead = batches.ahead
    monkeypatch.setattr(batches, "ahead", lambda make, numbers, threads: used.append(threads) or ahead(make, numbers, threads))
    _, threaded = fitted(tmp_path / "b", recipe.Training(epochs=2, batch_size=16))
    assert min(used) > 0
    assert same(plain.module.state_dict(), threaded.module.state_dict())


def run(folder, options, launcher=(), **environment):
    folder.mkdir(exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(SCRIPT).parents[2]), **environment}
    command = [sys.executable, *launcher, SCRIPT, str(folder), json.dumps(options)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
def test_killed_at_any_instant_it_ends_bit_identical(tmp_path):
    options = {
        "epochs": 12,
        "batch_size": 10,
        "checkpoint_minutes": 0,
        "average": 0.9,
        "with_teacher": True,
        "augment": {"crop": 1},
        "views": 2,
    }
    straight = run(tmp_path / "straight", {**options, "checkpoint_minutes": 60})
    assert straight.wait() == 0, straight.stdout.read()
    rng, state, seen = random.Random(7), tmp_path / "killed" / "checkpoint" / "state.safetensors", []

    def changed(since, process):
        return process.poll() is not None or (state.exists() and state.stat().st_mtime_ns != since)

    for _ in range(3):
        since = state.stat().st_mtime_ns if state.exists() else None
        process = run(tmp_path / "killed", options)
        while not changed(since, process):
            time.sleep(0.002)
        time.sleep(rng.random() * 0.2)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, process.stdout.read()
        found = checkpoint.read(state)[1]
        seen.append((found["epoch"], found["step"]))
    assert seen == sorted(set(seen))  # it went on each time
    assert any(step for _, step in seen)  # from within an epoch, too
    last = run(tmp_path / "killed", options)
    assert last.wait(120) == 0, last.stdout.read()
    assert (tmp_path / "straight" / "result.safetensors").read_bytes() == (
        tmp_path / "killed" / "result.safetensors"
    ).read_bytes()


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    options = {
        "epochs": 3, "batch_size": 32, "norm": False, "dropout": 0, "samples": 149, "with_teacher": True, "average": 0.9,
        "gradient_clip": 0.5, "objectives": [{"kind": "logits"}, {"kind": "task"}, {"kind": "features", "student": "3", "teacher": "3"}],
    }  # fmt: skip
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    launcher += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", str(20_000 + os.getpid() % 10_000)]
    one = run(tmp_path / "one", options)
    assert one.wait(300) == 0, one.stdout.read()
    two = run(tmp_path / "two", options, launcher, ACCELERATE_USE_CPU="true")
    assert two.wait(300) == 0, two.stdout.read()
    single, double = (json.loads((tmp_path / name / "history.json").read_text()) for name in ("one", "two"))
    assert (single["processes"], double["processes"]) == (1, 2)
    for a, b in zip(single["epochs"], double["epochs"], strict=True):
        assert b["terms"] == pytest.approx(a["terms"], rel=1e-4)
        assert b["validation_loss"] == pytest.approx(a["validation_loss"], rel=1e-4)
    a, b = (load_file(tmp_path / name / "result.safetensors") for name in ("one", "two"))
    assert all(torch.allclose(a[name], b[name], rtol=1e-3, atol=1e-5) for name in a)
