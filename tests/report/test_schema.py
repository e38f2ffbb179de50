"""The manifest's schema: takes a whole manifest, and refuses what the contract does not allow."""

import json
from typing import Any

import jsonschema
import pytest

from edgekd import schema


def test_the_schema_is_a_schema():
    jsonschema.Draft202012Validator.check_schema(json.loads(schema.SCHEMA.read_text()))


def test_a_whole_manifest_is_valid(manifest: dict[str, Any]):
    assert schema.problems(manifest) == []


def test_a_manifest_of_a_run_just_begun_is_valid(manifest: dict[str, Any]):
    for key, empty in {
        "training": None,
        "variants": {},
        "artifacts": {},
        "verdicts": {},
        "chosen": {},
        "measurements": [],
        "comparisons": [],
    }.items():
        manifest[key] = empty
    manifest["scores"]["teacher"] = manifest["models"]["teacher"] = None
    assert schema.problems(manifest) == []


@pytest.mark.parametrize(
    ("path", "value", "where"),
    [
        (("schema",), 2, "schema: 1 was expected"),
        (("surprise",), 1, "manifest: Additional properties are not allowed ('surprise' was unexpected)"),
        (("verdicts", "onnxruntime-cpu/int8", "status"), "ok", "verdicts.onnxruntime-cpu/int8.status: 'ok' is not one of"),
        (("verdicts", "onnxruntime-cpu/int8-broken", "lost_at"), None, "lost_at: None is not of type 'string'"),
        (("verdicts", "int8"), {}, "'int8' does not match"),
        (("verdicts", "raspberry-pi-5/fp32", "by"), "runtime", "by: 'runtime' is not of type 'null'"),
        (("measurements", 0, "warm", "count"), 499, "measurements.0.warm.count: 499 is less than the minimum of 500"),
        (("measurements", 0, "warm", "p90_low_s"), ..., "'p90_low_s' is a dependency of 'p90_s'"),
        (("measurements", 0, "environment", "artifact_sha256"), "abc", "'abc' does not match"),
        (("comparisons", 0, "ratio"), 0, "comparisons.0.ratio: 0 is less than or equal to the minimum of 0"),
        (("chosen", "onnxruntime-cpu", "by"), "guess", "'guess' is not one of ['measurement', 'rule']"),
        (("stages", 0, "cached"), "yes", "stages.0.cached: 'yes' is not of type 'boolean'"),
        (("scores", "student"), "0.9", "scores.student: '0.9' is not of type 'number', 'null'"),
        (("gate", "max_drop"), ..., "gate: 'max_drop' is a required property"),
    ],
)
def test_what_the_contract_does_not_allow_is_named(manifest: dict[str, Any], path: tuple[Any, ...], value: Any, where: str):
    inside = manifest
    for part in path[:-1]:
        inside = inside[part]
    if value is ...:
        del inside[path[-1]]
    else:
        inside[path[-1]] = value
    assert any(where in problem for problem in schema.problems(manifest)), schema.problems(manifest)
