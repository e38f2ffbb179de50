"""Timing over a real sshd on loopback: what comes back, what is refused, and that nothing is left behind however it ends."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from devices.conftest import Sshd, write_key

from edgekd.bench import measure, rates, suite
from edgekd.bench.process import WorkerDied
from edgekd.bench.things import Thing, thing_from
from edgekd.devices import found, link, open_device, packing
from edgekd.devices.ssh import Ssh
from edgekd.errors import BadInput, Missing
from edgekd.recipe import Bench

QUICK = Bench(min_seconds=0.1, min_count=20, interval=None, max_seconds=5, launches=1, threads=1, roofline=False)
LONG = Bench(min_seconds=300, min_count=20, interval=None, max_seconds=600, launches=1, threads=1, roofline=False)


def until(found, patience: float = 20.0) -> None:
    """Wait until found() is true."""
    end = time.monotonic() + patience
    while not found():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def working(sshd: Sshd) -> bool:
    """Say whether a process that times something runs on the device."""
    return any("edgekd.bench.worker" in line for line in sshd.processes().values())


def client(sshd: Sshd) -> int:
    """Return the process id of the ssh client."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and str(sshd.folder / "ssh_config").encode() in (entry / "cmdline").read_bytes().split(b"\0"):
            return int(entry.name)
    raise AssertionError("no client")


@pytest.mark.slow
def test_equals_a_local_run(sshd, product, tmp_path):
    """The same files, timed here and over ssh: the same keys, the same hashes, plausible times; nothing is left there."""
    things = [thing_from(product("small")), thing_from(product("large", 512, beside=True))]
    here, _ = measure(things, QUICK, tmp_path / "here")
    told: list[str] = []
    there, compared = measure(
        things,
        QUICK,
        tmp_path / "there",
        lambda share, what: told.append(what),
        device=open_device(sshd.address),
        one_control=True,
    )
    assert [one["artifact"] for one in there] == ["small", "large"]
    for local, remote in zip(here, there, strict=True):
        assert set(local) == set(remote)
        assert remote["device"] == sshd.address
        assert remote["environment"]["artifact_sha256"] == local["environment"]["artifact_sha256"]
        assert remote["environment"]["runtime"]["onnxruntime"] == local["environment"]["runtime"]["onnxruntime"]
        assert remote["providers"] == local["providers"] == {"CPUExecutionProvider": 1}
        assert all(0 < one["warm"]["median_s"] < np.inf for one in (local, remote))
        samples = np.load(tmp_path / "there" / remote["samples"])
        assert samples.shape == (remote["blocks"]["count"], remote["blocks"]["calls"])
        assert np.isclose(np.median(samples), remote["warm"]["median_s"])
        assert samples.size >= QUICK.min_count
    assert compared[0]["device"] == sshd.address
    assert any("alternation" in what for what in told)
    assert sshd.left() == ([], [])


def test_one_connection_serves_many_orders(sshd, product, monkeypatch, tmp_path):
    """Files are sent once: a second order sends none; a file of the same name and other content is another."""
    sent: list[str] = []
    copy = link.Link._copy
    monkeypatch.setattr(
        link.Link, "_copy", lambda self, file, size, tell: (sent.append(file.name), copy(self, file, size, tell))
    )
    things = [thing_from(product("net"))]
    with open_device(sshd.address) as device:
        first = client(sshd)
        measure_in(device, things, tmp_path)
        measure_in(device, things, tmp_path)
        assert sent == ["net.onnx"]
        measure_in(device, [thing_from(product("net", 32))], tmp_path)
        assert sent == ["net.onnx", "net.onnx"]
        assert client(sshd) == first
        folders = list(sshd.home.iterdir())
        assert len(folders) == 1
        assert folders[0].stat().st_mode & 0o777 == 0o700
    assert sshd.left(0) == ([], [])  # whoever leaves has tidied up


def measure_in(device, things, folder):
    """Time things on a device that was entered."""
    from edgekd.bench.timing import cells, know, run_cell

    return [run_cell(cell, device, QUICK, folder) for cell in cells(know(things), QUICK)]


def test_what_it_is(sshd):
    """It describes itself, and a thing without a runtime there is refused with the command that mends it."""
    device = open_device(sshd.address)
    assert device.describe()["cores"] >= 1  # connects for that, and leaves
    assert sshd.left(0) == ([], [])
    assert device.runtimes()["onnxruntime"] is not None
    file = Path("none.onnx")
    assert device.takes(Thing("a", "onnxruntime", {"model": file})) is None
    assert "Apple" in str(device.takes(Thing("a", "coreml", {"model": file})))
    assert "--device browser" in str(device.takes(Thing("a", "web", {"model": file})))
    assert "no engine" in str(device.takes(Thing("a", "tensorrt", {"model": file}))) or "neither" in str(
        device.takes(Thing("a", "tensorrt", {"model": file}))
    )
    if device.runtimes()["tensorrt"] is None:
        said = device.takes(Thing("a", "tensorrt", {"model": Path("a.engine")}))
        assert f"{sys.executable} -m pip install tensorrt" in str(said)


def test_a_python_without_packages(sshd, product, tmp_path):
    """numpy and the runtime that are missing there are named, with the command for that very Python."""
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    device = open_device(re.sub(r"python=[^&]*", f"python={bare}/bin/python", sshd.address))
    said = device.takes(thing_from(product("net")))
    assert said == (
        f"numpy and onnxruntime are not installed for {bare}/bin/python there: {bare}/bin/python -m pip install numpy onnxruntime"
    )
    with device, pytest.raises(Missing, match=rf"numpy is not installed for {bare}/bin/python"):
        measure_in(device, [thing_from(product("net"))], tmp_path)
    assert sshd.left() == ([], [])


def test_the_thing_that_fails_is_named(sshd, tmp_path):
    """A broken file is the thing's failure, not the device's; the connection goes on."""
    broken = tmp_path / "broken.onnx"
    with open_device(sshd.address) as device:
        broken.write_bytes(b"no model")
        thing = {"label": "broken", "backend": "onnxruntime", "target": None, "files": {"model": str(broken)}, "inputs": None}
        job = {**JOB, "things": [{**thing, "scenario": "single-stream", "interfaces": {}}]}
        packing._external, kept = lambda main: [], packing._external
        try:
            with pytest.raises(WorkerDied, match=r"(?s)broken: the process that timed it failed.*on ssh://"):
                device.run(job, lambda share, what: None)
        finally:
            packing._external = kept
        assert device._link.order({"do": "describe", "runtimes": {}})["runtimes"] == {}


JOB = {
    "scenario": "single-stream", "batch": 1, "streams": None, "threads": 1, "control": 0, "seed": 0, "minutes": 0, "min_seconds": 0.1,
    "min_count": 5, "max_seconds": 1, "interval": None, "launches": 1, "prompt_tokens": 8, "new_tokens": 2,
}  # fmt: skip


def refused(address: str) -> str:
    """Return why a device cannot be entered."""
    with pytest.raises(Missing) as caught, open_device(address):
        raise AssertionError("entered")
    assert str(caught.value).startswith(f"{address}: ")
    return str(caught.value)


def test_unknown_host_key(sshd, monkeypatch, tmp_path):
    """A host key that is not known is not taken, and the command to compare it by hand is given."""
    known = tmp_path / "known_hosts"
    monkeypatch.setenv("EDGEKD_SSH", sshd.command("-o", f"UserKnownHostsFile={known}"))
    said = refused(sshd.address)
    assert "host key is not known here" in said
    assert f"`ssh -p {sshd.port} {os.environ.get('USER') or 'root'}@127.0.0.1`" in said or "@127.0.0.1`" in said
    assert not known.exists()


def test_a_permissive_config_does_not_help(sshd, monkeypatch, tmp_path):
    """StrictHostKeyChecking no in the user's file does not make edgekd trust a host."""
    config = tmp_path / "config"
    text = (sshd.folder / "ssh_config").read_text().replace(str(sshd.folder / "known_hosts"), str(tmp_path / "known_hosts"))
    config.write_text(f"{text}  StrictHostKeyChecking no\n")
    monkeypatch.setenv("EDGEKD_SSH", f"ssh -F {config}")
    assert "host key is not known here" in refused(sshd.address)


def test_changed_host_key(sshd, monkeypatch, tmp_path):
    """Another key than the known one is refused in plain words."""
    other = write_key(tmp_path / "other").with_suffix(".pub").read_text().split()[:2]
    known = tmp_path / "known_hosts"
    known.write_text(f"[127.0.0.1]:{sshd.port} {' '.join(other)}\n")
    monkeypatch.setenv("EDGEKD_SSH", sshd.command("-o", f"UserKnownHostsFile={known}"))
    assert "host key has CHANGED" in refused(sshd.address)


def test_wrong_key(sshd, monkeypatch, tmp_path):
    """A key that the device does not know: it does not let us in."""
    key = write_key(tmp_path / "stranger")
    config = tmp_path / "config"
    config.write_text((sshd.folder / "ssh_config").read_text().replace(str(sshd.folder / "user_key"), str(key)))
    monkeypatch.setenv("EDGEKD_SSH", f"ssh -F {config}")
    said = refused(sshd.address)
    assert "does not let us in" in said
    assert "Permission denied" in said


def test_what_is_not_there(sshd, monkeypatch):
    """No such host, nobody listening, no such Python, no folder, no ssh: each is said, with what to do."""
    assert "there is no such host" in refused("ssh://nowhere.invalid")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEKD_SSH", sshd.command())
        assert "cannot be reached" in refused("ssh://127.0.0.1:1")
    said = refused(re.sub(r"python=[^&]*", "python=/opt/none/python9", sshd.address))
    assert "no `/opt/none/python9` there" in said
    assert "?python=" in said
    assert "?folder=" in refused(re.sub(r"folder=[^&]*", "folder=/nowhere/at/all", sshd.address))
    monkeypatch.setenv("EDGEKD_SSH", "/no/such/ssh")
    assert "OpenSSH's client is needed here" in refused(sshd.address)
    assert sshd.left() == ([], [])


@pytest.mark.parametrize(
    "address",
    [
        "ssh://",
        "ssh://-oProxyCommand=touch%20x",
        "ssh://-l@host",
        "ssh://me:secret@host",
        "ssh://host:0",
        "ssh://host:70000",
        "ssh://host?pyton=/usr/bin/python3",
        "ssh://host?python=",
        "ssh://host name",
        "ssh://host;reboot",
        "ssh://host/path",
    ],
)
def test_wrong_addresses(address):
    """What ssh or a shell could take for something else is no address."""
    with pytest.raises(BadInput, match="device `ssh://"):
        open_device(address)


def test_addresses():
    """Names keep their capitals; users, ports, IPv6 numbers and a Python of one's own have their place in the command."""
    from edgekd.devices.ssh import parse

    assert parse("ssh://RaspberryPi").host == "RaspberryPi"
    command = parse("ssh://pi@[fe80::1%eth0]:2222?python=/opt/my env/bin/python").command()
    assert command[-4:-1] == ["pi", "--", "fe80::1%eth0"]
    assert command[command.index("-p") + 1] == "2222"
    assert command[-1].startswith("'/opt/my env/bin/python' -u -c ")
    assert "StrictHostKeyChecking=yes" in command
    assert "BatchMode=yes" in command


EDGEKD = """
import sys
from edgekd.bench import measure, rates, suite
from edgekd.bench.things import thing_from
from edgekd.devices import open_device
from edgekd.errors import EdgekdError
from edgekd.recipe import Bench
long = Bench(min_seconds=300, min_count=20, interval=None, max_seconds=600, launches=1, threads=1, roofline=False)
try:
    from pathlib import Path
    measure([thing_from(Path(sys.argv[2]))], long, Path(sys.argv[3]), device=open_device(sys.argv[1]))
except EdgekdError as error:
    print(error)
    sys.exit(error.exit_code)
"""


@pytest.fixture
def running(sshd, product, tmp_path):
    """An edgekd that times something on the device for minutes, in a process and a session of its own."""
    command = [sys.executable, "-c", EDGEKD, sshd.address, str(product("net")), str(tmp_path / "out")]
    around = {**os.environ, "TMPDIR": str(tmp_path)}  # one that is killed leaves its inputs at this end
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True, env=around)
    try:
        until(lambda: working(sshd) or process.poll() is not None)
        assert process.poll() is None, process.communicate()
        time.sleep(0.3)
        yield process
    finally:
        process.kill()
        process.communicate()


def test_killing_the_client_midway(sshd, running):
    """kill -9 of ssh: a clear message, exit code 4, nothing left there."""
    os.kill(client(sshd), signal.SIGKILL)
    out, _ = running.communicate(timeout=60)
    assert "the connection was lost" in out
    assert out.startswith(sshd.address)
    assert running.returncode == 4
    assert sshd.left() == ([], [])


def test_killing_the_servers_process_midway(sshd, running):
    """kill -9 of the sshd process that serves the session."""
    ours = [pid for pid, line in sshd.processes().items() if "exec(sys.stdin" in line]
    parent = min(int((Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[1]) for pid in ours)
    assert "sshd" in (Path("/proc") / str(parent) / "cmdline").read_text()
    os.kill(parent, signal.SIGKILL)
    out, _ = running.communicate(timeout=60)
    assert "the connection was lost" in out
    assert running.returncode == 4
    assert sshd.left() == ([], [])


def test_killing_edgekd_midway(sshd, running):
    """kill -9 of edgekd itself: nobody is there to tidy up, the device does it."""
    running.kill()
    running.communicate()
    assert sshd.left() == ([], [])


def test_interrupting_edgekd_midway(sshd, running):
    """Ctrl-C: it ends, and nothing is left there."""
    os.killpg(running.pid, signal.SIGINT)
    running.communicate(timeout=60)
    assert running.returncode != 0
    assert sshd.left() == ([], [])


def test_killing_what_serves_there(sshd, running):
    """kill -9 of the process on the device that serves us: the one that measures ends itself and takes the folder along."""
    (served,) = [pid for pid, line in sshd.processes().items() if "exec(sys.stdin" in line and "sh -c" not in line]
    os.kill(served, signal.SIGKILL)
    out, _ = running.communicate(timeout=60)
    assert "the connection was lost" in out
    assert sshd.left() == ([], [])


@pytest.mark.slow
def test_silence_ends_it(sshd, product, monkeypatch, tmp_path):
    """A network that is stuck (here: an ssh that is stopped) ends it there after the patience; once it is back, here too."""
    patience = 6.0  # a sign of life each second: a busy machine may be late by five
    monkeypatch.setattr(link, "PATIENCE", patience)
    monkeypatch.setattr(link.Link.__init__, "__defaults__", (None, patience))
    failed: list[Exception] = []

    def run() -> None:
        try:
            measure([thing_from(product("net"))], LONG, tmp_path / "out", device=open_device(sshd.address))
        except Missing as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    until(lambda: working(sshd))
    time.sleep(1.5 * patience)
    assert working(sshd)  # signs of life keep it going beyond its patience
    stopped = client(sshd)
    os.kill(stopped, signal.SIGSTOP)
    try:
        assert sshd.left(60) == ([], [])
    finally:
        os.kill(stopped, signal.SIGCONT)
    thread.join(60)
    assert "heard nothing from the caller for 6 s" in str(failed[0])


STUCK = """
import time

class SessionOptions:
    def add_session_config_entry(self, *_): pass

class Value:
    def __init__(self, name): self.name = name

class InferenceSession:
    def __init__(self, *_, **__): pass
    def get_inputs(self): return [Value("x")]
    def get_outputs(self): return [Value("y")]
    def run(self, *_):
        open({begun!r}, "w").close()
        time.sleep(600)
"""


@pytest.mark.parametrize("dies", ["client", "server"])
def test_a_worker_stuck_in_its_runtime(sshd, product, monkeypatch, tmp_path, dies):
    """A worker that hears nothing, as it is in a call of its runtime for minutes, is killed when the connection dies."""
    stub, begun = tmp_path / "stub", tmp_path / "begun"
    stub.mkdir()
    (stub / "onnxruntime.py").write_text(STUCK.format(begun=str(begun)))
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={stub} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    device = open_device(re.sub(r"python=[^&]*", f"python={python}", sshd.address))
    failed: list[Exception] = []

    def run() -> None:
        try:
            measure([thing_from(product("net"))], LONG, tmp_path / "out", device=device)
        except (Missing, WorkerDied) as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    until(begun.exists)
    assert working(sshd)
    if dies == "client":
        os.kill(client(sshd), signal.SIGKILL)
    else:
        (served,) = [pid for pid, line in sshd.processes().items() if "exec(sys.stdin" in line and "sh -c" not in line]
        os.kill(served, signal.SIGKILL)
    assert sshd.left(30) == ([], [])
    thread.join(60)
    assert "the connection was lost" in str(failed[0])


def test_a_suite_goes_on_after_a_lost_connection(sshd, product, monkeypatch, tmp_path):
    """A connection that is lost midway costs the cell that was under way; the same command again measures what is left, no more."""
    things = (thing_from(product("net")),)
    wanted = suite.Suite(things, (sshd.address,), (QUICK, QUICK.model_copy(update={"batch_sizes": (2,)})))
    run, runs = Ssh.run, []

    def lost_in_the_second(self, job, tell):
        runs.append(job["batch"])
        if runs == [1, 2]:
            os.kill(client(sshd), signal.SIGKILL)
        return run(self, job, tell)

    monkeypatch.setattr(Ssh, "run", lost_in_the_second)
    with pytest.raises(Missing, match=r"(?s)connection was lost.*goes on with what is left") as caught:
        suite.run(wanted, tmp_path / "out", resume=True)
    assert str(tmp_path / "out") in str(caught.value)
    assert [one["batch"] for one in json.loads((tmp_path / "out" / "bench.json").read_text())["measurements"]] == [1]
    assert sshd.left() == ([], [])
    told = suite.run(wanted, tmp_path / "out", resume=True)
    assert [one["batch"] for one in told["measurements"]] == [1, 2]
    assert runs == [1, 2, 2]


def test_found(sshd):
    """`edgekd devices` says of each address whether it was reached, what it is and what it runs, or why not."""
    reached, lost, here = found.probe([sshd.address, "ssh://127.0.0.1:1", "local"])
    assert reached["reached"]
    assert reached["host"]["cores"] == here["host"]["cores"]
    assert reached["runtimes"] == here["runtimes"]
    assert reached["runtimes"]["numpy"] == np.__version__
    assert (lost["reached"], lost["host"], lost["address"]) == (False, {}, "ssh://127.0.0.1:1")
    assert lost["why"].startswith("it cannot be reached")
    with pytest.raises(BadInput):
        found.probe(["nowhere"])


def told_rates(threads: int, load: float) -> dict:
    """Return rates as a device tells them."""
    more = {"float32_flops": 1e9, "bandwidth": [[1 << 15, 1e9]], "load_average": load}
    return {"format": rates.FORMAT, "threads": threads, **more}


@pytest.fixture
def asked(monkeypatch):
    """Devices that are asked for their rates answer at once: (threads asked for, {"then", "now": load average}), both to be changed."""
    counts: list[int] = []
    load = {"then": 0.0, "now": 0.0}
    kept = link.Link.order

    def order(self, order, tell=lambda share, what: None):
        if order["do"] == "rates":
            counts.append(order["threads"])
            return told_rates(order["threads"], load["then"])
        told = kept(self, order, tell)
        return {**told, "load_average": load["now"]} if order["do"] == "describe" else told

    monkeypatch.setattr(link.Link, "order", order)
    return counts, load


def test_rates_are_kept(sshd, asked, tmp_path):
    """A device's rates are measured once and read from the cache then; of another thread count they are others."""
    for _ in range(2):
        with open_device(sshd.address) as device:
            assert device.rates(1)["threads"] == 1
            assert device.rates(2)["threads"] == 2
    assert asked[0] == [1, 2]
    file = tmp_path / "cache" / "edgekd" / "rates-of-devices.json"
    stored = json.loads(file.read_text())
    assert len(stored) == 2
    file.write_text(json.dumps({key: {**told, "bandwidth": []} for key, told in stored.items()}))
    with open_device(sshd.address) as device:
        assert device.rates(1)["bandwidth"]  # what cannot be used is measured again
    assert asked[0] == [1, 2, 1]


def test_rates_of_a_busy_machine(sshd, asked):
    """Rates of a busy machine serve for the connection, and for others as long as it is busy; once it is quiet they are measured anew."""
    counts, load = asked
    load.update(then=1e4, now=1e4)
    for _ in range(2):
        with open_device(sshd.address) as device:
            assert device.rates(1) == device.rates(1)
        assert counts == [1]
    load.update(now=0.0)
    with open_device(sshd.address) as device:
        device.rates(1)
        device.rates(1)
    assert counts == [1, 1]
