"""What a stage depends on: a setting makes anew what it touches, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgekd.errors import BadInput
from edgekd.plan import Plan, plan
from edgekd.recipe import load
from edgekd.recipe_file import from_manifest

HOME = Path(__file__).parent.parent / "models" / "digits"
VARIANTS = """
quantize:
  - {name: fp32, method: none}
  - {name: int8, method: ptq, weights: {bits: 8}, activations: {bits: 8}}
  - {name: rtn, method: round-to-nearest, weights: {bits: 4}}
  - {name: qd, method: quantized-distillation, weights: {bits: 4}}
  - {name: dq, method: differentiable, weights: {bits: 4}}
"""


@pytest.fixture
def planned(tmp_path):
    text = (HOME / "recipe.yaml").read_text()
    head, rest = text.split("quantize:", 1)[0], text.split("targets:", 1)[1]
    for name in ("model.py", "teacher.safetensors"):
        (tmp_path / name).write_bytes((HOME / name).read_bytes())
    file = tmp_path / "recipe.yaml"

    def made(*settings: str, without: str = "") -> Plan:
        file.write_text(f"{head}{VARIANTS}\ntargets:{rest}".replace(without, "", 1))
        return plan(load(file, settings), tmp_path / "run")

    return made


def changed(before: Plan, after: Plan) -> set[str]:
    old = {step.name: step.fingerprint for step in before.steps}
    names = {step.name for step in after.steps if old.get(step.name) != step.fingerprint}
    return {name.removeprefix("quantize/") for name in names if name.startswith(("quantize/", "distill", "teacher-cache"))}


@pytest.mark.parametrize(
    ("setting", "touched"),
    [
        ("quantize.qd.training.epochs=3", {"qd"}),
        ("quantize.qd.style=exact", {"qd"}),
        ("quantize.dq.weights.bits=2", {"dq"}),
        ("quantize.rtn.keep=[first]", {"rtn"}),
        ("quantize.int8.calibration.samples=64", {"int8"}),
        ("distill.checkpoint_minutes=0", set()),
        ("bench.min_count=7", set()),
        ("gate.max_drop=0.5", set()),
        ("train.epochs=3", set()),  # of `edgekd train`; variants go by `distill`
        ("distill.epochs=3", {"distill", "fp32", "int8", "rtn", "qd", "dq"}),
        ("distill.objectives.0.temperature=3", {"distill", "fp32", "int8", "rtn", "qd", "dq"}),
        ("seed=1", {"distill", "teacher-cache", "fp32", "int8", "rtn", "qd", "dq"}),
    ],
)
def test_a_setting_touches_the_variants_that_read_it(planned, setting, touched):
    assert changed(planned(), planned(setting)) == touched


def test_without_distill_the_variants_that_train_depend_on_the_teacher_and_on_train(planned, tmp_path):
    text = (HOME / "recipe.yaml").read_text()
    cut = "distill:" + text.split("\ndistill:", 1)[1].split("\nquantize:", 1)[0]
    before = planned(without=cut)
    assert before.recipe.distill is None
    assert changed(before, planned("train.epochs=3", without=cut)) == {"qd", "dq"}
    (tmp_path / "teacher.safetensors").write_bytes(b"another")
    assert changed(before, planned(without=cut)) == {"qd", "dq"}


def test_what_a_method_cannot_do_is_told_before_anything_is_loaded(planned, monkeypatch):
    with pytest.raises(BadInput, match=r"quantize `rtn`: `training` goes with quantized-distillation or differentiable"):
        planned("quantize.rtn.training.epochs=3")
    with pytest.raises(BadInput, match=r"quantize `dq`: activations of 8 bits: a codebook has no arithmetic"):
        planned("quantize.dq.activations.bits=8")
    with pytest.raises(BadInput, match=r"quantize `int8`: weights of 4 bits .*quantized-distillation .*round-to-nearest"):
        planned("quantize.int8.weights.bits=4")
    only = "quantize=[{name: dq, method: differentiable, weights: {bits: 4}, activations: {bits: 8}}]"
    with pytest.raises(BadInput, match=r"^quantize `dq`: activations of 8 bits: a codebook has no arithmetic"):
        planned(only)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        (
            "quantize.qd.calibration.samples=64",
            "quantize `qd`: `calibration` goes with ptq or dynamic, not with quantized-distillation",
        ),
        ("quantize.fp32.calibration.batch_size=8", "quantize `fp32`: `calibration` goes with ptq or dynamic, not with none"),
        ("quantize.fp32.keep=[first]", "quantize `fp32`: `keep` goes with ptq or .*, not with none; leave it out"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(planned, setting, says):
    with pytest.raises(BadInput, match=says):
        planned(setting)


def test_threads_are_counted_here_unless_every_target_has_a_device(planned, monkeypatch):
    monkeypatch.setattr("edgekd.host.usable_cores", lambda: 2)
    both, threads = "targets=[onnxruntime-cpu,x86-64]", "bench.threads=9"
    devices = [f"bench.devices.{name}=ssh://board" for name in ("onnxruntime-cpu", "x86-64")]
    for settings in ([], devices[:1]):
        with pytest.raises(BadInput, match=r"bench\.threads: 9 on a machine with 2 cores"):
            planned(both, threads, *settings)
    planned(both, threads, *devices)


def test_a_recipe_that_a_manifest_has_written_out_gives_the_same_plan(planned, tmp_path):
    before = planned()
    recipe = from_manifest(json.loads(before.recipe.model_dump_json()), tmp_path / "manifest.json")
    assert recipe.quantize[3].model_fields_set == set(type(recipe.quantize[3]).model_fields)
    assert plan(recipe, before.out).steps == before.steps


def test_calibration_is_no_part_of_what_is_made_from_the_network(planned, monkeypatch):
    monkeypatch.setattr("edgekd.quantize.refuses", lambda config: None)  # its defaults may change, not so the variants
    settings = [f"quantize.{name}.calibration.samples=64" for name in ("rtn", "qd", "dq", "int8")]
    assert changed(planned(), planned(*settings)) == {"int8"}


def test_a_target_with_an_older_runtime_gets_files_that_it_can_load(planned):
    from dataclasses import replace

    from edgekd.quantize import opset_for
    from edgekd.recipe import Scheme, Weights
    from edgekd.targets import load_target

    cpu = load_target("onnxruntime-cpu")
    w4 = Scheme(weights=Weights(bits=4))
    assert opset_for([cpu], w4) == opset_for([], w4) == 21
    old = replace(cpu, limits={"opset": 20})
    assert opset_for([cpu, old], w4) == 20
    assert opset_for([cpu, replace(old, stores=("fp32", "w8a8"))], w4) == 21, "what it does not store is not made for it"
    old = planned().out.parent / "old.toml"
    old.write_text((HOME.parent.parent / "targets" / "onnxruntime-cpu.toml").read_text().replace("opset = 21", "opset = 20"))
    with_old = planned(f"targets=[{old}]")
    again = {s.name for s in with_old.steps if s.fingerprint not in {b.fingerprint for b in planned().steps}}
    assert {"quantize/rtn", "quantize/qd", "quantize/dq"} <= again
    assert "quantize/fp32" not in again
