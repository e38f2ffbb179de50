"""`edgekd compress --target all`: a verdict for every device class, and each by what executes it here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_compress import edgekd, settings

from edgekd.backends import backend_of
from edgekd.targets import all_targets, covers

pytestmark = pytest.mark.slow

SCHEMES = {"fp32": "fp32", "int8": "w8a8", "qd4": "w4", "dq4": "w4c", "qd2": "w2"}
HERE = {target.name: backend_of(target.backend).executes(target) for target in all_targets()}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    if missing := {t.name: m for t in all_targets() if (m := backend_of(t.backend).missing())}:
        pytest.skip(str(missing))
    out = tmp_path_factory.mktemp("every") / "run"
    more = settings("distill.epochs=10", "gate.simulator_samples=20")
    done = edgekd("compress", "models/digits", "-o", str(out), "--target", "all", *more)
    assert done.returncode == 0, done.stderr + done.stdout
    return json.loads((out / "manifest.json").read_text())


@pytest.mark.parametrize("target", all_targets(), ids=lambda target: target.name)
def test_every_target_ends_with_a_verdict(manifest, target):
    refused = {r["variant"]: r["reason"] for r in manifest["refused"] if r["target"] == target.name}
    verdicts = {k.partition("/")[2]: v for k, v in manifest["verdicts"].items() if k.startswith(f"{target.name}/")}
    assert refused.keys() | verdicts.keys() == SCHEMES.keys()
    assert not refused.keys() & verdicts.keys()
    means = HERE[target.name]
    for name, verdict in verdicts.items():
        assert covers(target.stores, SCHEMES[name])
        assert (verdict["status"], verdict["by"]) == ("passed" if means.by else "not_verified", means.by), verdict["reason"]
        assert means.why in verdict["reason"]
        if means.by:
            assert sum(verdict["providers"].values()) > 0
            assert verdict["samples"] == (20 if means.slow or means.by != "runtime" else 359)
    assert (manifest["chosen"][target.name]["variant"] is not None) == bool(means.by)


def test_the_vendors_simulator_and_the_references_are_named(manifest):
    by = {name: means.by for name, means in HERE.items()}
    assert {name: by[name] for name in ("onnxruntime-cpu", "intel-cpu", "raspberry-pi-5", "android-cpu")} == dict.fromkeys(
        ("onnxruntime-cpu", "intel-cpu", "raspberry-pi-5", "android-cpu"), "runtime"
    )
    assert by["iphone-ios18"] in ("reference", "runtime")
    assert by["snapdragon-8-gen-3"] == "simulator"


def test_the_report_speaks_of_every_target(manifest, tmp_path):
    from edgekd import report

    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    text = report.write(Path(tmp_path)).read_text()
    assert all(target.name in text for target in all_targets())
