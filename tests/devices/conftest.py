"""A real sshd on this machine, with keys of its own, and small things to time over it."""

from __future__ import annotations

import getpass
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

MARK = "EDGEKD_TEST_MARK"


@dataclass(frozen=True)
class Sshd:
    """A running server. marked: its sessions have MARK in their environment, to be found by. home: where kits make their folders."""

    folder: Path
    port: int
    mark: str
    home: Path

    @property
    def address(self) -> str:
        """The address of a device: this Python, its folders in `home`."""
        return f"ssh://{getpass.getuser()}@127.0.0.1:{self.port}?python={sys.executable}&folder={self.home}"

    def command(self, *more: str) -> str:
        """Return what EDGEKD_SSH has to be."""
        return shlex.join(["ssh", "-F", str(self.folder / "ssh_config"), *more])

    def processes(self) -> dict[int, str]:
        """Return all processes that sessions started: id -> command line."""
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                if f"{MARK}={self.mark}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
        return found

    def left(self, patience: float = 15.0) -> tuple[list[str], list[str]]:
        """Return (processes, folders) that are left on the device, once nothing changes any more: two empty lists when all is well."""
        end = time.monotonic() + patience
        while time.monotonic() < end and (self.processes() or list(self.home.iterdir())):
            time.sleep(0.05)
        return list(self.processes().values()), [str(one) for one in self.home.iterdir()]


def write_key(file: Path) -> Path:
    """Make a key pair without a passphrase."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(file)], check=True, stdin=subprocess.DEVNULL)
    return file


@pytest.fixture(scope="session")
def _server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    program = shutil.which("sshd", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))
    if not sys.platform.startswith("linux"):
        pytest.skip("looks for processes in /proc")
    if not program or not shutil.which("ssh"):
        pytest.skip("no OpenSSH server and client here")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd gives up its rights there
    folder = tmp_path_factory.mktemp("sshd")
    host, user = write_key(folder / "host_key"), write_key(folder / "user_key")
    shutil.copyfile(user.with_suffix(".pub"), folder / "authorized_keys")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mark = f"{os.getpid()}-{port}"
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {host}\nPidFile {folder}/pid\nAuthorizedKeysFile {folder}/authorized_keys\n"
        f"UsePAM no\nStrictModes no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\n"
        f"SetEnv {MARK}={mark}\n"
    )
    (folder / "ssh_config").write_text(
        f"Host *\n  IdentityFile {user}\n  IdentitiesOnly yes\n  IdentityAgent none\n  UserKnownHostsFile {folder}/known_hosts\n"
        "  GlobalKnownHostsFile /dev/null\n"
    )
    key = " ".join(host.with_suffix(".pub").read_text().split()[:2])
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {key}\n")
    home = tmp_path_factory.mktemp("device")
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [program, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=log, stdin=subprocess.DEVNULL
        )
    try:
        end = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                if time.monotonic() > end or server.poll() is not None:
                    pytest.skip(f"sshd does not start here: {(folder / 'log').read_text().strip()[-300:]}")
                time.sleep(0.05)
        yield Sshd(folder, port, mark, home)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(10)


@pytest.fixture
def sshd(_server: Sshd, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Sshd:
    """A server that the ssh of this test trusts, and nothing else of the user's; caches lie elsewhere."""
    monkeypatch.setenv("EDGEKD_SSH", _server.command())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return _server


def write_product(file: Path, size: int = 64, beside: bool = False) -> Path:
    """Write a small ONNX file, y = x W; beside: W in a file of its own."""
    weights = np.random.default_rng(size).standard_normal((size, size)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", size])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    more = {"save_as_external_data": True, "location": f"{file.stem}.weights", "size_threshold": 0} if beside else {}
    onnx.save(model, str(file), **more)
    return file


@pytest.fixture
def product(tmp_path: Path):
    """Return product(name, size, beside): a small ONNX file of that name."""
    return lambda name, size=64, beside=False: write_product(tmp_path / f"{name}.onnx", size, beside)
