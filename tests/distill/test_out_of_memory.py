"""Memory that is not enough is told in one message with what to change."""

import pytest
import tiny
import torch

from edgekd import recipe
from edgekd.distill import out_of_memory, teacher_cache, trainer
from edgekd.errors import BadInput

GPU = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee documentation")
CPU = RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried")


@pytest.mark.parametrize("error", [GPU, CPU, MemoryError()])
def test_errors_of_memory_are_told_with_the_advice(error):
    with pytest.raises(BadInput) as caught, out_of_memory.told("take less"):
        raise error
    assert str(caught.value).startswith("take less (")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("no")])
def test_other_errors_stay_what_they_are(error):
    with pytest.raises(type(error)) as caught, out_of_memory.told("take less"):
        raise error
    assert caught.value is error


def fails(times: int, error: Exception):
    """A forward() that works so many times."""
    left = {"calls": times}

    def forward(self, x, really=torch.nn.Sequential.forward):
        left["calls"] -= 1
        if left["calls"] < 0:
            raise error
        return really(self, x)

    return forward


class Teacher(torch.nn.Sequential):
    pass


@pytest.mark.parametrize(("kept", "says"), [
    ("live", r"distill\.batch_size: with 16 samples a step the teacher runs out of memory on cpu: lower it, or take a smaller teacher"),
    ("cached", r"teacher: py:teacher runs out of memory on cpu with \d+ samples at once: take a smaller one"),
])  # fmt: skip
def test_a_teacher_that_does_not_fit_is_told(kept, says, tmp_path, monkeypatch):
    teacher = tiny.loaded(Teacher(*tiny.network(16, seed=2)), "teacher")
    monkeypatch.setattr(Teacher, "forward", fails(4, GPU))
    monkeypatch.setattr(teacher_cache, "BATCH", 16)
    settings = recipe.Distill(epochs=1, batch_size=16, teacher=kept, objectives=({"kind": "logits"},))
    with pytest.raises(BadInput, match=says):
        trainer.fit(
            tiny.loaded(tiny.network()), tiny.splits(), tiny.TinyTask(), settings, seed=0, folder=tmp_path, teacher=teacher
        )


def test_a_student_that_does_not_fit_is_told(tmp_path, monkeypatch):
    student = tiny.loaded(Teacher(*tiny.network()))
    monkeypatch.setattr(Teacher, "forward", fails(4, GPU))
    settings = recipe.Training(epochs=1, batch_size=32)
    with pytest.raises(
        BadInput, match=r"train\.batch_size: with 32 samples a step the student runs out of memory on cpu: lower it"
    ):
        trainer.fit(student, tiny.splits(), tiny.TinyTask(), settings, seed=0, folder=tmp_path)
