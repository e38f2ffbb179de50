"""check.py's findings, brought back from a device."""

import json
import math
import shutil

import pytest
from export.test_check import run, ship

from edgekd import imported
from edgekd.errors import BadInput


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """An artifact and what check.py found here."""
    made = ship(tmp_path_factory.mktemp("shipped"))
    return made, run(made.folder)


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
    assert "model.onnx on the device is another file" in imported.match(record, other)
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
        ("versions", {"a": 1}), ("machine", None), ("threads", -1), ("threads", True), ("emulator", 1), ("when", "today"),
        ("seconds_are_the_devices", None), ("identity", "0" * 64),
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
    assert imported.bring(tmp_path / "run", told()) == f"{shipped[0].target}/{shipped[0].variant}"
    kept = imported.stored(tmp_path / "run", shipped[0].target, shipped[0].variant)
    assert imported.read(kept) == imported.read(told())
    with pytest.raises(BadInput, match="has no such artifact"):
        imported.bring(tmp_path, told())
