"""Which variant a target gets: the fastest that passed; among equals the smallest; by the target's rule where nothing was timed."""

from __future__ import annotations

from dataclasses import replace
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


@pytest.mark.parametrize(
    ("full", "small", "why"),
    [
        ("not_verified", "not_verified", "none could be verified here"),
        ("failed", "not_verified", "no variant passed the gate"),
        ("failed", "failed", "no variant passed the gate"),
    ],
)
def test_what_could_not_be_verified_did_not_fail(plan, full, small, why):
    assert choose(TARGET, plan, verdicts(full=full, small=small), [], [])["why"] == why


def test_of_equals_the_smallest(plan):
    said = compared("no difference seen between small and full (0.99-1.02)")
    made = choose(TARGET, plan, verdicts(full="passed", small="passed"), timed(full=0.00200, small=0.00201), said)
    assert made["variant"] == "small"
    assert "smallest of 2" in made["why"]


@pytest.mark.parametrize(
    ("small", "tiny", "chosen"),
    [
        ((1.05, 1.03, 1.07), (1.04, 1.02, 1.06), "tiny"),  # intervals that overlap
        ((1.050, 1.049, 1.051), (1.045, 1.044, 1.046), "tiny"),  # apart, and by less than matters
        ((1.20, 1.19, 1.21), (1.04, 1.02, 1.06), "small"),
        ((1.20, 1.19, 1.21), (1.04, None, None), "small"),  # not known
    ],
)
def test_of_two_that_differ_alike_from_their_control_the_smallest(plan, small, tiny, chosen):
    more = VariantRecipe(name="tiny", method="round-to-nearest", weights=Weights(bits=2))
    folder = plan.out / "targets" / "phone" / "tiny"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(bytes(50))
    plan = replace(plan, recipe=plan.recipe.model_copy(update={"quantize": (*plan.recipe.quantize, more)}))
    said = [
        {"control": "phone/full", "candidate": f"phone/{name}", "verdict": "x is faster", "ratio": r, "low": low, "high": high}
        for name, (r, low, high) in (("small", small), ("tiny", tiny))
    ]
    passed = verdicts(full="passed", small="passed", tiny="passed")
    made = choose(TARGET, plan, passed, timed(full=0.002, small=0.002 / small[0], tiny=0.002 / tiny[0]), said)
    assert made["variant"] == chosen


def test_what_the_clock_calls_slower_than_one_of_the_fastest_is_not_as_fast_as_each_other(plan):
    more = VariantRecipe(name="tiny", method="round-to-nearest", weights=Weights(bits=2))
    folder = plan.out / "targets" / "phone" / "tiny"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(bytes(50))
    plan = replace(plan, recipe=plan.recipe.model_copy(update={"quantize": (*plan.recipe.quantize, more)}))
    said = [
        {"control": "phone/full", "candidate": f"phone/{name}", "verdict": words, "ratio": r, "low": r - 0.01, "high": r + 0.01}
        for name, words, r in (("small", "no difference seen", 0.995), ("tiny", "tiny is 1.03x SLOWER than full", 0.98))
    ]
    passed = verdicts(full="passed", small="passed", tiny="passed")
    made = choose(TARGET, plan, passed, timed(full=0.00201, small=0.002, tiny=0.00203), said)
    assert made["variant"] == "small"
    assert "smallest of 2" in made["why"]


def test_by_a_pattern_of_the_rule_the_smallest(plan):
    target = replace(TARGET, prefer=("w*", "fp32"))
    more = [VariantRecipe(name=f"w{bits}", method="round-to-nearest", weights=Weights(bits=bits)) for bits in (4, 2)]
    for variant, size in zip(more, (60, 50), strict=True):
        folder = plan.out / "targets" / "phone" / variant.name
        folder.mkdir()
        (folder / "model.onnx").write_bytes(bytes(size))
    plan = replace(plan, recipe=plan.recipe.model_copy(update={"quantize": (*plan.recipe.quantize, *more)}))
    passed = verdicts(full="passed", small="passed", w4="passed", w2="passed")
    assert choose(target, plan, passed, [], [])["variant"] == "w2"


def test_by_the_targets_rule_where_nothing_was_timed(plan):
    made = choose(TARGET, plan, verdicts(full="passed", small="passed"), [], [])
    assert (made["variant"], made["by"]) == ("small", "rule")
    only_full = choose(TARGET, plan, verdicts(full="passed", small="failed"), [], [])
    assert (only_full["variant"], only_full["by"]) == ("full", "rule")


def a_way(seconds: float, name: str, **how: Any) -> dict[str, Any]:
    told = {"device": "local", "scenario": "single-stream", "batch": 1, "streams": None, **how}
    return {
        **told,
        "artifact": f"phone/{name}",
        "warm": {"median_s": seconds},
        "throughput_per_s": told["batch"] / seconds * (told["streams"] or 1),
    }


SAME = {"control": "phone/full", "candidate": "phone/small", "verdict": "no difference seen between small and full (0.99-1.02)"}


@pytest.mark.parametrize("how", [{"streams": 2}, {"batch": 8}, {"scenario": "sustained"}])
@pytest.mark.parametrize("first", [True, False])
def test_only_one_call_after_another_at_the_first_batch_decides(plan, how, first):
    plain = [a_way(0.002, "full"), a_way(0.003, "small")]
    other = [a_way(0.002, "full", **how), a_way(0.001, "small", **how)]
    if "batch" in how:
        first = True  # the first batch is the first in the list
    measured = plain + other if first else other + plain
    said = [
        {**SAME, **how, "device": "local"},
        {**SAME, "scenario": "single-stream", "batch": 1, "device": "local", "verdict": "small is 1.50x SLOWER than full"},
    ]
    made = choose(TARGET, plan, verdicts(full="passed", small="passed"), measured, said if first else said[::-1])
    assert (made["variant"], made["why"]) == ("full", "the fastest of 2 that passed, 2.00\u202fms a call")


def test_without_latency_the_first_way_decides_by_what_all_streams_do(plan):
    two, four = {"streams": 2}, {"streams": 4}
    measured = [
        a_way(0.002, "full", **two),
        a_way(0.003, "small", **two),
        a_way(9.0, "full", **four),
        a_way(0.1, "small", **four),
    ]
    made = choose(TARGET, plan, verdicts(full="passed", small="passed"), measured, [{**SAME, **four, "batch": 1}])
    assert made["variant"] == "full"
    assert made["why"].endswith("1,000 a second, 2 at once")
    measured[1]["throughput_per_s"] = 2000.0  # each call is longer, and more of them end
    assert choose(TARGET, plan, verdicts(full="passed", small="passed"), measured, [])["variant"] == "small"


@pytest.mark.parametrize(
    "said", ["cannot tell small from full (0.8-1.3): too much disturbed the clock", "too few blocks to compare"]
)
def test_what_the_clock_cannot_tell_is_not_called_the_fastest(plan, said):
    made = choose(TARGET, plan, verdicts(full="passed", small="passed"), timed(full=0.002, small=0.003), compared(said))
    assert made["variant"] == "full"
    assert (
        made["why"]
        == "the lowest median of 2 that passed, 2.00\u202fms a call; the clock cannot tell whether it is the fastest"
    )
