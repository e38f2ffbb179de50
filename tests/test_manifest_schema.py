"""The schemas of measurements and of bench.json: they take what the clock really records, and nothing beside it."""

from __future__ import annotations

import copy
import json
from typing import Any

import jsonschema
import pytest
from bench.test_bench_generation import Decoder
from bench.test_bench_scenes import part
from referencing import Registry, Resource

from edgekd import bench, schema
from edgekd.bench import suite
from edgekd.recipe import Bench

BENCH = schema.SCHEMA.parent / "bench" / "bench.schema.json"
QUICK = Bench(
    min_seconds=0.05,
    min_count=5,
    interval=None,
    launches=1,
    max_seconds=5,
    threads=1,
    roofline=False,
    prompt_tokens=4,
    new_tokens=3,
)
SCENES = ("single-stream", "chain", "generation", "streams", "sustained")


def problems(told: Any, inside: str = "") -> list[str]:
    """Return what is wrong with a bench.json, or with one `inside` of manifest.schema.json."""
    known = json.loads(schema.SCHEMA.read_text())
    registry: Registry = Registry().with_resource("../manifest.schema.json", Resource.from_contents(known))
    wanted = {"$ref": f"../manifest.schema.json#/$defs/{inside}"} if inside else json.loads(BENCH.read_text())
    return [e.message for e in jsonschema.Draft202012Validator(wanted, registry=registry).iter_errors(told)]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """bench.json of real measurements in every scenario; two things, so that there is a comparison."""
    home = tmp_path_factory.mktemp("schema")
    one, other = (part(home / f"{name}.onnx", "x", "y", count) for name, count in (("one", 4), ("other", 8)))
    chain, language = home / "chain", home / "lm"
    chain.mkdir()
    language.mkdir()
    part(chain / "a_encoder.onnx", "image", "memory", 2)
    part(chain / "b_decoder.onnx", "memory", "mask", 2)
    Decoder("open").write(language / "model.onnx")
    things = tuple(bench.thing_from(path) for path in (one, other, chain, language / "model.onnx"))
    lasting = QUICK.model_copy(update={"latency": False, "sustained_minutes": 0.003})
    streams = QUICK.model_copy(update={"latency": False, "streams": (2,)})
    # streams are of what has no other scenario: a brief run of all three others is enough
    suite.run(suite.Suite(things, ("local",), (QUICK, lasting)), home / "all")
    suite.run(suite.Suite(things[:1], ("local",), (streams,)), home / "streams")
    told = json.loads((home / "all" / "bench.json").read_text())
    told["measurements"] += json.loads((home / "streams" / "bench.json").read_text())["measurements"]
    return told


def of(recorded: dict[str, Any], scene: str) -> dict[str, Any]:
    found = (m for m in recorded["measurements"] if ("streams" if m["streams"] else m["scenario"]) == scene)
    return copy.deepcopy(next(found))


def test_both_are_schemas():
    for file in (schema.SCHEMA, BENCH):
        jsonschema.Draft202012Validator.check_schema(json.loads(file.read_text()))


def test_what_was_really_recorded_is_valid(recorded: dict[str, Any]):
    assert {"streams" if m["streams"] else m["scenario"] for m in recorded["measurements"]} == set(SCENES)
    assert recorded["comparisons"]
    assert problems(recorded) == []


@pytest.mark.parametrize("scene", SCENES)
def test_a_record_of_each_scenario_is_whole(recorded: dict[str, Any], scene: str):
    """Whatever key is taken out of a new record, or put in, the schema sees it."""
    told = of(recorded, scene)
    assert problems(told, "measurement") == []
    for inside in (told, told["blocks"], *(told[k] for k in ("generation", "outliers", "sustained", "energy") if told[k])):
        for key in list(inside):
            if key in ("times", "count", "p90_s") or key.startswith("p9"):
                continue  # `times` tells new records from older ones; percentiles are there where the samples support them
            kept = inside.pop(key)
            assert problems(told, "measurement"), key
            inside[key] = kept
        inside["surprise"] = 1
        assert any("surprise" in said or "not valid" in said for said in problems(told, "measurement"))
        del inside["surprise"]
    assert problems({**told, "scenario": "quick"}, "measurement")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("drift", {"from_s": 1e-3, "to_s": 2e-3, "change": 1.0, "low": 0.9, "high": 1.1, "said": "slower"}),
        (
            "roofline",
            {"flops": 2, "macs": 1, "int8_macs": 0, "bytes": 4, "intensity": 0.5, "attainable_s": 1e-6, "fraction": 0.1}
            | {"bound": "memory", "rate": 1e9, "bandwidth": 1e9, "said": "reaches 10 %"},
        ),
    ],
)
def test_what_a_quick_run_seldom_has(recorded: dict[str, Any], key: str, value: dict[str, Any]):
    told = of(recorded, "single-stream")
    told[key] = value
    assert problems(told, "measurement") == []
    for name in value:
        told[key] = {k: v for k, v in value.items() if k != name}
        assert problems(told, "measurement"), name
    told[key] = {**value, "surprise": 1}
    assert problems(told, "measurement")


def test_an_older_record_stays_valid(recorded: dict[str, Any]):
    told = of(recorded, "single-stream")
    for key in ("times", "streams", "parts", "generation", "drift", "outliers", "sustained", "energy", "roofline", "scenario"):
        del told[key]
    del told["blocks"]["launches"]
    assert problems(told, "measurement") == []


def test_what_a_bench_does_not_write_is_refused(recorded: dict[str, Any]):
    def without(*keys: str) -> dict[str, Any]:
        told = copy.deepcopy(recorded)
        inside = told
        for key in keys[:-1]:
            inside = inside[key]
        del inside[keys[-1]]
        return told

    for key in recorded:
        assert problems(without(key)), key
    for key in recorded["devices"]["local"]:
        assert problems(without("devices", "local", key)), key
    skipped = {"artifact": None, "device": "ssh://pi", "scenario": None, "reason": "not there"}
    assert problems({**recorded, "skipped": [skipped]}) == []
    assert problems({**recorded, "skipped": [{**skipped, "scenario": "quick"}]})
    assert problems({**recorded, "scores": {"one": {"value": 0.9, "metric": "accuracy"}}}) == []
    assert problems({**recorded, "scores": {"one": 0.9}})
    assert problems({**recorded, "surprise": 1})


def test_the_roofline_and_drift_as_the_code_makes_them():
    import numpy as np

    from edgekd.bench import drift, roofline
    from edgekd.bench.cost import Cost

    times = np.arange(40.0)
    found = drift.drift(np.exp(times / 100)[:, None] * np.ones((40, 5)), times)
    assert found
    assert problems(found, "drift") == []
    fields = dict.fromkeys(Cost.__dataclass_fields__, 0)
    cost = Cost(**{**fields, "macs": 10, "flops": 20, "weights_read_bytes": 40, "nodes": ()})  # type: ignore[arg-type]
    rates = {"float32_flops": 1e9, "bandwidth": [[1024, 1e9]]}
    assert problems(roofline.roofline(cost, rates, 1e-3, 1), "roofline") == []
