"""A teacher that is run along with the student."""

import pytest
import tiny
import torch
from accelerate.state import AcceleratorState

from edgekd import recipe
from edgekd.distill import teachers, trainer
from edgekd.distill.trainer import fit


@pytest.mark.parametrize(("precision", "inside"), [("no", torch.float32), ("bf16", torch.bfloat16)])
def test_a_live_teacher_runs_in_the_precision_of_the_student(precision, inside, tmp_path, monkeypatch):
    AcceleratorState._reset_state(reset_partial_state=True)  # of the process: what was asked for first stays
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", precision)
    layer, given = [], []
    teacher = tiny.loaded(tiny.network(width=16), "teacher")
    teacher.module.net[-1].register_forward_hook(lambda _m, _i, made: layer.append(made))
    call = teachers.LiveTeacher.__call__

    def kept(self, *arguments):
        given.append(call(self, *arguments)["logits"])
        return {"logits": given[-1]}

    monkeypatch.setattr(trainer.teachers.LiveTeacher, "__call__", kept)
    settings = recipe.Distill(epochs=1, batch_size=50, teacher="live")
    fit(tiny.loaded(tiny.network()), tiny.splits(), tiny.TinyTask(), settings, seed=0, folder=tmp_path, teacher=teacher)
    AcceleratorState._reset_state(reset_partial_state=True)
    layer = layer[-len(given) :]  # before that, how its weights are best stored was tried
    assert {made.dtype for made in layer} == {inside}
    assert {made.dtype for made in given} == {torch.float32}  # objectives compute in full precision
    assert all(torch.equal(made.float(), logits) for made, logits in zip(layer, given, strict=True))
