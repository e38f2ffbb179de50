"""Which variant a target gets: the fastest that passed; among equals the smallest; by the target's rule where nothing was timed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgekd.manifest import choose
from edgekd.plan import Plan
from edgekd.recipe import Activations, Data, Model, Recipe, VariantRecipe, Weights
from edgekd.targets import Target

TARGET = Target("phone", "a phone", "onnxruntime", prefer=("w8a8", "fp32"))


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    recipe = Recipe(
        data=Data(source="digits"),
        student=Model(model="py:a.py:f"),
        quantize=(
            VariantRecipe(name="full", method="none"),
            VariantRecipe(name="small", method="ptq", weights=Weights(), activations=Activations()),
        ),
    )
    for name, size in {"full": 400, "small": 100}.items():
        folder = tmp_path / "targets" / "phone" / name
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(bytes(size))
    return Plan(recipe, tmp_path, (TARGET,), ())


def verdicts(**status: str) -> dict[str, Any]:
    return {f"phone/{name}": {"status": value} for name, value in status.items()}


def timed(**medians: float) -> list[dict[str, Any]]:
    return [{"artifact": f"phone/{name}", "warm": {"median_s": value}} for name, value in medians.items()]


def compared(verdict: str) -> list[dict[str, Any]]:
    return [{"target": "phone", "control": "phone/full", "candidate": "phone/small", "verdict": verdict}]


def test_the_fastest_that_passed(plan):
    made = choose(
        TARGET, plan, verdicts(full="passed", small="passed"), timed(full=0.002, small=0.003), compared("small is SLOWER")
    )
    assert (made["variant"], made["by"]) == ("full", "measurement")
    assert "2.00\u202fms" in made["why"]


def test_a_failed_one_is_never_chosen_however_fast(plan):
    made = choose(TARGET, plan, verdicts(full="passed", small="failed"), timed(full=0.002, small=0.001), [])
    assert (made["variant"], made["by"]) == ("full", "measurement")


@pytest.mark.parametrize("other", ["failed", "not_verified"])
def test_nothing_that_did_not_pass(plan, other):
    made = choose(TARGET, plan, verdicts(full=other, small=other), timed(full=0.002, small=0.001), [])
    assert made["variant"] is None


def test_of_equals_the_smallest(plan):
    said = compared("no difference seen between small and full (0.99-1.02)")
    made = choose(TARGET, plan, verdicts(full="passed", small="passed"), timed(full=0.00200, small=0.00201), said)
    assert made["variant"] == "small"
    assert "smallest of 2" in made["why"]


def test_by_the_targets_rule_where_nothing_was_timed(plan):
    made = choose(TARGET, plan, verdicts(full="passed", small="passed"), [], [])
    assert (made["variant"], made["by"]) == ("small", "rule")
    only_full = choose(TARGET, plan, verdicts(full="passed", small="failed"), [], [])
    assert (only_full["variant"], only_full["by"]) == ("full", "rule")
