"""check.py's findings, brought back from a device."""

import dataclasses
import json
import math
import platform
import shutil

import pytest
from export.test_check import run, ship

from edgekd import imported, verbs
from edgekd.errors import BadInput
from edgekd.export import artifact as artifacts
from edgekd.export import check_template


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """An artifact and what check.py found here."""
    made = ship(tmp_path_factory.mktemp("shipped"))
    return made, run(made.folder)


@pytest.fixture(scope="module")
def here(shipped, tmp_path_factory):
    """The same model for a target with other facts: here(key=value) -> (artifact, check.py's record of this machine)."""

    def here(**facts):
        home = tmp_path_factory.mktemp("here") / "a"
        shutil.copytree(shipped[0].folder, home)
        record = {**shipped[0].record, "device": {**shipped[0].record["device"], **facts}}
        record["sha256"] = check_template.digest(record)
        (home / "artifact.json").write_text(json.dumps(record))
        return artifacts.load(home), run(home)

    return here


@pytest.fixture
def told(shipped, tmp_path):
    """Write the record with changes: told(key=value) -> file."""

    def told(**changes):
        file = tmp_path / "check.json"
        file.write_text(json.dumps({**shipped[1], **changes}))
        return file

    return told


def test_what_ran_on_the_device_passes_by_the_device(shipped, told):
    record = imported.read(told())
    assert imported.match(record, shipped[0]) is None
    verdict = imported.verdict(record, shipped[0])
    assert (verdict["status"], verdict["by"], verdict["samples"]) == ("passed", "device", 3)
    assert (verdict["parity"]["runtime"]["relative"], verdict["parity"]["runtime"]["sqnr_db"]) == (0.0, 200.0)
    assert verdict["timings"]["model"]["warm_count"] == 20
    assert verdict["timings"]["model"]["warm_median_s"] > 0
    assert verdict["device"]["runtime"] == "onnxruntime"
    json.dumps(verdict)


def test_utf16_as_powershell_writes_it_is_read(told):
    file = told()
    file.write_text(file.read_text(), encoding="utf-16")
    assert imported.read(file)["right"]


def test_another_artifact_is_refused(shipped, told, tmp_path):
    other = ship(tmp_path / "other", batch=1)
    record = imported.read(told())
    assert "artifact.json on the device is another file" in imported.match(record, other)
    with pytest.raises(BadInput, match="another file"):
        imported.verdict(record, other)
    assert "about browser/int8, not onnxruntime-cpu/fp32" in imported.match(
        imported.read(told(artifact="browser/int8")), shipped[0]
    )


def test_a_file_missing_on_the_device_is_named(tmp_path):
    made = ship(tmp_path)
    (made.folder / "golden.npz").unlink()
    (tmp_path / "check.json").write_text(json.dumps(run(made.folder, code=3)))
    assert "golden.npz is missing on the device" in imported.match(imported.read(tmp_path / "check.json"), made)


def test_the_artifacts_tolerance_decides_not_the_records_word(shipped, told):
    graphs = {"model": {"relative_error": 0.5, "sqnr_db": 6.0}}
    assert shipped[0].record["golden"]["min_sqnr_db"] == 25
    verdict = imported.verdict(imported.read(told(graphs=graphs)), shipped[0])
    assert (verdict["status"], verdict["lost_at"]) == ("failed", "runtime")
    assert "6.0 dB above their error" in verdict["reason"]
    assert imported.verdict(imported.read(told(graphs={})), shipped[0])["reason"] == "graph model was not run"
    wrong = imported.verdict(imported.read(told(right=False, problems=["model: too far"])), shipped[0])
    assert (wrong["status"], wrong["reason"]) == ("failed", "model: too far")
    assert imported.verdict(imported.read(told(right=False)), shipped[0])["status"] == "failed"


def test_a_difference_without_a_number_fails(shipped, told):
    verdict = imported.verdict(imported.read(told(graphs={"model": {"relative_error": None, "sqnr_db": None}})), shipped[0])
    assert verdict["status"] == "failed"
    assert (verdict["parity"]["runtime"]["relative"], verdict["parity"]["runtime"]["sqnr_db"]) == (None, None)


def test_an_emulator_proves_the_runtime_and_times_nothing(shipped, tmp_path):
    (tmp_path / "check.json").write_text(json.dumps(run(shipped[0].folder, "--emulator", "qemu-aarch64")))
    verdict = imported.verdict(imported.read(tmp_path / "check.json"), shipped[0])
    assert (verdict["status"], verdict["by"], verdict["timings"]) == ("passed", "runtime", {})
    assert "under qemu-aarch64" in verdict["reason"]


def test_seconds_smuggled_into_an_emulators_record_are_left_out(shipped, told):
    record = imported.read(told(emulator="qemu", seconds_are_the_devices=False))
    assert "warm_median_s" in record["graphs"]["model"]
    assert imported.verdict(record, shipped[0])["timings"] == {}
    with pytest.raises(BadInput, match="an emulator's seconds"):
        imported.read(told(emulator="qemu"))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff\xfe\x00", b"{}", b"[" * 100_000, b'{"schema": 2}'])
def test_what_is_not_check_pys_json_is_bad_input(tmp_path, content):
    (tmp_path / "check.json").write_bytes(content)
    with pytest.raises(BadInput, match=r"check\.json"):
        imported.read(tmp_path / "check.json")


def test_a_missing_file_is_bad_input(tmp_path):
    with pytest.raises(BadInput, match="cannot be read"):
        imported.read(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("artifact", "a"), ("artifact", 3), ("artifact", "../a"), ("artifact", "a/.."), ("artifact", "/a"), ("artifact", "a/b/c"), ("files", []), ("files", {"a": "b"}), ("identity", "0" * 63), ("right", "yes"),
        ("problems", "none"), ("problems", [1]), ("graphs", []), ("graphs", {"model": 3}), ("graphs", {"model": {}}),
        ("graphs", {"model": {"relative_error": -1, "sqnr_db": 3}}), ("graphs", {"model": {"relative_error": 0, "sqnr_db": "3"}}),
        ("graphs", {"model": {"relative_error": 0, "sqnr_db": 3, "load_s": -1}}),
        ("graphs", {"model": {"relative_error": 0, "sqnr_db": math.nan}}),
        ("graphs", {"model": {"relative_error": 0, "sqnr_db": 3, "providers": {"CPU": -1}}}),
        ("versions", {"a": 1}), ("machine", None), ("threads", -1), ("threads", True), ("emulator", 1), ("emulator", ""), ("when", "today"),
        ("seconds_are_the_devices", None), ("identity", "0" * 64), ("schema", True), ("schema", 2.0), ("schema", [2]),
        ("processor", "\ud800"), ("problems", ["\udfff"]), ("artifact", "a/b\0"), ("artifact", f"a/{'b' * 300}"),
        ("when", "9999-99-99T99:99:99Z"), ("when", "2026-02-30T00:00:00Z"), ("when", "2026-01-01T1:1:1:::Z"),
        ("graphs", {"model": {"relative_error": 0, "sqnr_db": 1e308}}), ("graphs", {"model": {"relative_error": 0, "sqnr_db": 3, "load_s": 1e300}}),
        ("graphs", {"model": {"relative_error": 0, "sqnr_db": 3, "providers": {"CPU": 10**30}}}),
        ("threads", 10**30), ("versions", {"python": "3"}), ("simulator", 1), ("simulator", True), ("vnni", "yes"),
    ],
)  # fmt: skip
def test_a_key_that_is_wrong_is_named(told, key, value):
    with pytest.raises(BadInput, match=key):
        imported.read(told(**{key: value}))


def test_a_key_that_is_missing_is_named(shipped, tmp_path):
    for key in shipped[1].keys() - {"schema"}:
        (tmp_path / "check.json").write_text(json.dumps({k: v for k, v in shipped[1].items() if k != key}))
        with pytest.raises(BadInput, match=f"needs `{key}`"):
            imported.read(tmp_path / "check.json")


HERE = {
    "status": "not_verified", "by": None, "reason": "no GPU here", "lost_at": None, "parity": {}, "providers": {}, "scores": {},
}  # fmt: skip


def test_a_device_that_passed_verifies_what_could_not_be_here(shipped, told):
    joined = imported.join(HERE, imported.read(told()), shipped[0])
    assert (joined["status"], joined["by"], joined["lost_at"]) == ("passed", "device", None)
    assert joined["reason"].startswith("check.py passed on")
    assert joined["parity"]["device"]["sqnr_db"] == 200.0
    assert joined["device"]["runtime"] == "onnxruntime"


def test_a_device_that_failed_fails_what_passed_here(shipped, told):
    wrong = {"model": {**shipped[1]["graphs"]["model"], "relative_error": 0.5, "sqnr_db": 6.0}}
    joined = imported.join({**HERE, "status": "passed", "by": "runtime"}, imported.read(told(graphs=wrong)), shipped[0])
    assert (joined["status"], joined["by"], joined["lost_at"]) == ("failed", "device", "runtime")


def test_a_device_that_passed_does_not_mend_an_accuracy_lost_here(shipped, told):
    lost = {**HERE, "status": "failed", "by": "simulator", "reason": "accuracy falls by 0.2", "lost_at": "variant"}
    joined = imported.join(lost, imported.read(told()), shipped[0])
    assert (joined["status"], joined["by"], joined["lost_at"]) == ("failed", "simulator", "variant")
    assert joined["reason"].startswith("accuracy falls by 0.2; check.py passed")


def test_a_record_about_an_earlier_artifact_says_nothing(shipped, told, tmp_path):
    other = ship(tmp_path / "other", factor=2.0)
    assert imported.join(HERE, imported.read(told()), other) == HERE


def test_a_record_is_kept_beside_its_run(shipped, told, tmp_path):
    home = tmp_path / "run" / "targets" / shipped[0].target / shipped[0].variant
    shutil.copytree(shipped[0].folder, home)
    assert imported.stored(tmp_path / "run", shipped[0].target, shipped[0].variant) is None
    assert imported.bring(tmp_path / "run", [told()]) == [f"{shipped[0].target}/{shipped[0].variant}"]
    kept = imported.stored(tmp_path / "run", shipped[0].target, shipped[0].variant)
    assert imported.read(kept) == imported.read(told())
    with pytest.raises(BadInput, match="has no such artifact"):
        imported.bring(tmp_path, [told()])


MACHINE = platform.machine()
OTHER = "aarch64" if MACHINE != "aarch64" else "x86_64"


@pytest.mark.parametrize(
    ("facts", "changes", "reason"),
    [
        ({"architecture": OTHER}, {}, f"is {OTHER} and that machine {MACHINE}"),
        ({"architecture": "aarch64"}, {"machine": "toaster"}, "is aarch64 and that machine toaster"),
        ({"architecture": "aarch64"}, {"machine": ""}, "is aarch64 and that machine unknown"),
        ({"kind": "phone", "architecture": "aarch64"}, {"machine": "arm64", "system": "macOS-15.1-arm64"}, "another device (phone)"),
        ({"vnni": True}, {"vnni": False}, "has VNNI and that machine has not"),
        ({"vnni": False}, {"vnni": True}, "that machine has VNNI"),
    ],
)  # fmt: skip
def test_another_machine_speaks_for_its_runtime_alone(here, tmp_path, facts, changes, reason):
    """And for no time: its seconds are not the device's."""
    made, found = here(**facts)
    assert found["seconds_are_the_devices"]
    (tmp_path / "check.json").write_text(json.dumps({**found, **changes}))
    verdict = imported.verdict(imported.read(tmp_path / "check.json"), made)
    assert (verdict["status"], verdict["by"], verdict["timings"]) == ("passed", "runtime", {})
    assert reason in verdict["reason"]


@pytest.mark.parametrize(
    ("facts", "changes"),
    [
        ({"architecture": "aarch64", "kind": "board"}, {"machine": "aarch64"}),
        ({"architecture": "arm64"}, {"machine": "arm64", "system": "macOS-15.1-arm64"}),
        ({"architecture": "aarch64", "kind": "phone"}, {"machine": "ARM64", "system": "Windows-11"}),
        ({"architecture": "x86_64", "vnni": True}, {"machine": "AMD64", "vnni": None}),
        ({"kind": "browser"}, {"system": "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7)"}),
    ],
)
def test_the_devices_own_machine_is_the_device_whatever_its_system_calls_it(here, tmp_path, facts, changes):
    made, found = here(**facts)
    (tmp_path / "check.json").write_text(json.dumps({**found, **changes}))
    verdict = imported.verdict(imported.read(tmp_path / "check.json"), made)
    assert (verdict["by"], list(verdict["timings"])) == ("device", ["model"])


def test_a_record_that_has_lost_its_emulators_name_is_no_devices(shipped, told):
    verdict = imported.verdict(imported.read(told(seconds_are_the_devices=False)), shipped[0])
    assert (verdict["by"], verdict["timings"]) == ("runtime", {})


def test_another_runtime_is_refused(shipped, told):
    record = imported.read(told(runtime="tensorrt", versions={"tensorrt": "10.1"}))
    assert (
        imported.match(record, shipped[0])
        == "onnxruntime-cpu/fp32 is for onnxruntime, and tensorrt ran it; run its own check.py"
    )


def test_a_graph_that_the_artifact_does_not_have_is_refused(shipped, told):
    graphs = {**shipped[1]["graphs"], "other": {"relative_error": 0, "sqnr_db": 200}}
    assert "has no graph other" in imported.match(imported.read(told(graphs=graphs)), shipped[0])


def test_the_vendors_simulator_is_no_device(shipped, told):
    told = told(emulator="HTP simulator", simulator=True, seconds_are_the_devices=False)
    verdict = imported.verdict(imported.read(told), shipped[0])
    assert (verdict["status"], verdict["by"], verdict["timings"]) == ("passed", "simulator", {})
    assert "under HTP simulator" in verdict["reason"]


def test_the_same_bytes_for_another_target_are_another_artifact(shipped, told, tmp_path):
    """A record cannot be relabelled: the target and the variant are in what its identity is of."""
    home = tmp_path / "a"
    shutil.copytree(shipped[0].folder, home)
    record = {**shipped[0].record, "target": "x86-64"}
    record["sha256"] = check_template.digest(record)
    (home / "artifact.json").write_text(json.dumps(record))
    relabelled = imported.read(told(artifact="x86-64/fp32"))
    assert "artifact.json on the device is another file" in imported.match(relabelled, artifacts.load(home))


@pytest.mark.parametrize("key", ["golden", "files"])
def test_a_device_with_a_weakened_record_is_refused(shipped, tmp_path, key):
    """Even where its own hash was mended."""
    home = tmp_path / "a"
    shutil.copytree(shipped[0].folder, home)
    weak = {"golden": {**shipped[0].record["golden"], "min_sqnr_db": None}, "files": []}[key]
    record = {**shipped[0].record, key: weak}
    record["sha256"] = check_template.digest(record)
    (home / "artifact.json").write_text(json.dumps(record))
    (tmp_path / "check.json").write_text(json.dumps(run(home)))
    assert "artifact.json on the device is another file" in imported.match(imported.read(tmp_path / "check.json"), shipped[0])


def test_an_artifact_of_an_earlier_edgekd_is_to_be_made_again(shipped, told):
    old = dataclasses.replace(shipped[0], record={k: v for k, v in shipped[0].record.items() if k != "runtime"})
    assert "edgekd export" in imported.match(imported.read(told()), old)


def test_an_empty_file_is_of_a_check_that_found_nothing_out(tmp_path):
    (tmp_path / "check.json").write_text("\n")
    with pytest.raises(BadInput, match="its runtime or device was not there"):
        imported.read(tmp_path / "check.json")


@pytest.fixture
def run_folder(shipped, tmp_path):
    """A run with the artifact."""
    home = tmp_path / "run" / "targets" / shipped[0].target / shipped[0].variant
    shutil.copytree(shipped[0].folder, home)
    return tmp_path / "run"


def test_none_is_kept_when_one_of_them_is_bad(run_folder, told, tmp_path):
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_bytes(told().read_bytes())
    bad.write_text("{")
    with pytest.raises(BadInput, match=r"bad\.json"):
        imported.bring(run_folder, [good, bad])
    with pytest.raises(BadInput, match="bring the one that is to count"):
        imported.bring(run_folder, [good, good])
    assert not (run_folder / imported.FOLDER).exists()


def test_a_kept_record_that_is_damaged_is_named_and_stops_nothing(run_folder, shipped, told):
    assert imported.joined(HERE, run_folder, shipped[0]) == HERE
    imported.bring(run_folder, [told()])
    assert imported.joined(HERE, run_folder, shipped[0])["by"] == "device"
    kept = imported.stored(run_folder, shipped[0].target, shipped[0].variant)
    kept.write_text(kept.read_text()[:100])
    joined = imported.joined(HERE, run_folder, shipped[0])
    assert joined["reason"].startswith("no GPU here; what a device said of it cannot be read")
    assert f"delete {kept}" in joined["reason"]
    assert {**joined, "reason": HERE["reason"]} == HERE


def test_anything_else_in_a_record_can_be_kept(run_folder, told):
    """A key that is not read may hold what no UTF-8 file can."""
    assert imported.bring(run_folder, [told(browser={"agent": "\ud800"})])


@pytest.mark.parametrize(
    ("asked", "known", "expected"),
    [
        (["browser"], "onnxruntime-cpu", ["browser", "onnxruntime-cpu"]),
        (["browser"], "/my/onnxruntime-cpu.toml", ["browser", "/my/onnxruntime-cpu.toml"]),
        ([], "onnxruntime-cpu", []),
    ],
)
def test_what_is_brought_is_judged_too(run_folder, told, monkeypatch, asked, known, expected):
    """With --target of others alone its verdict would be out of date, and gone from the manifest."""
    monkeypatch.setattr("edgekd.run_folder.read_manifest", lambda home: {"recipe": {"targets": [known, "browser"]}})
    monkeypatch.setattr(verbs, "_plan_of_run", lambda run, settings, targets: targets)
    monkeypatch.setattr("edgekd.pipeline.run", lambda plan, **stages: plan)
    assert verbs.verify(run_folder, (), asked, [told()]) == expected
