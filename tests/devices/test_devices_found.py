"""`edgekd devices` without addresses: what is found from here."""

import importlib
import subprocess
import sys

import pytest

from edgekd.devices import DEVICES, found, kinds, open_device
from edgekd.errors import Missing


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


WITHOUT = """
import sys
sys.modules["edgekd.backends.chromium"] = None  # as where its fcntl is not: Windows
from edgekd import devices
from edgekd.devices import found
from edgekd.errors import BadInput
assert any(written.startswith("browser") for written in devices.kinds())
assert found.here()[:1] == ["local"], found.here()
(told,) = found.probe(["browser"])
print(told["reached"], told["why"])
try:
    devices.open_device("toaster")
except BadInput as error:
    print(error)
"""


def test_a_kind_that_this_system_cannot_have():
    """Where a module of a kind cannot be imported, the other kinds are listed and found, and asking for that one says why."""
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    reached, wrong = done.stdout.splitlines()
    assert reached.startswith("False device `browser`: a device of this kind cannot be used on this system (")
    assert "chromium" in reached
    assert "ssh://[user@]host" in wrong


def test_what_cannot_be_imported_is_not_found(monkeypatch, tmp_path):
    """A kind whose module is not there is left out of what is found, and is Missing when it is asked for."""
    monkeypatch.setenv("EDGEKD_ADB", str(tmp_path / "none"))
    monkeypatch.setitem(DEVICES, "browser", ("edgekd.devices.nowhere", "browser"))
    assert found.here() == ["local"]
    with pytest.raises(Missing, match="cannot be used on this system"):
        open_device("browser")


def test_one_way_to_write_an_address():
    """What the table says of each kind is what its module says where an address is wrong."""
    for (module, written), said in zip(DEVICES.values(), kinds(), strict=True):
        assert said == written
        assert getattr(importlib.import_module(module), "HELP", written) == written
