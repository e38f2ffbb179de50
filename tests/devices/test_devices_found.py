"""`edgekd devices` without addresses: what is found from here."""

from edgekd.devices import found, open_device


def test_what_is_found_from_here(tmp_path, monkeypatch):
    """This machine, a browser, and every device that adb lists, also one that it may not use: that is said when it is tried."""
    adb = tmp_path / "adb"
    adb.write_text(
        "#!/bin/sh\necho 'List of devices attached'\necho 'R5CT10 device usb:1-2 model:Pixel'\necho 'emulator-5554 unauthorized'\n"
    )
    adb.chmod(0o755)
    monkeypatch.setenv("EDGEKD_ADB", str(adb))
    assert found.here() == ["local", "browser", "adb://R5CT10", "adb://emulator-5554"]
    assert [open_device(address).address for address in found.here()] == found.here()
    adb.write_text("#!/bin/sh\nexit 1\n")
    assert found.here() == ["local", "browser"]
    monkeypatch.setenv("EDGEKD_ADB", str(tmp_path / "none"))
    assert found.here() == ["local", "browser"]


def test_a_device_that_is_not_there(monkeypatch, tmp_path):
    """One that cannot be reached is listed with the reason; this machine says what it runs."""
    monkeypatch.setenv("EDGEKD_ADB", str(tmp_path / "none"))
    (tmp_path / "perf").write_text("a program")
    monkeypatch.setenv("EDGEKD_ORT_PERF_TEST", str(tmp_path / "perf"))
    here, phone = found.probe(["local", "adb://R5CT10"])
    assert here["reached"]
    assert here["runtimes"]["onnxruntime"]
    assert not phone["reached"]
    assert "adb is not here" in phone["why"]
    assert phone["host"] == phone["runtimes"] == {}
