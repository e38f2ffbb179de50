"""Devices: where things are timed. `local`, `ssh://user@host[:port]`, `browser`, `adb`. One file each, and a line here.

>>> open_device("local").address
'local'
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import BadInput, Missing
from ..names import nearest

if TYPE_CHECKING:
    from ..bench.things import Thing

Tell = Callable[[float, str], None]

DEVICES = {
    "local": ("edgekd.devices.local", "local"),
    "ssh": ("edgekd.devices.ssh", "ssh://[user@]host[:port][?python=/path/to/python3][&folder=/path]"),
    "browser": ("edgekd.devices.browser", "browser[?provider=webgpu], browser://HOST:PORT[?provider=webgpu]"),
    "adb": ("edgekd.devices.adb", "adb, adb://SERIAL"),
}
"""What comes before :// in an address -> (the module that has `open_(address)`, how such an address is written).

That is told here, not there: a module that this system cannot import need not be imported to list the others.
"""


class Device(Protocol):
    """One device, reached. A context manager: leaving it leaves nothing behind there.

    address: as given. title: what to call it, such as "AMD EPYC" or "Chromium 150 on x86_64".
    """

    address: str
    title: str

    def __enter__(self) -> Device: ...

    def __exit__(self, *rest: object) -> None: ...

    def describe(self) -> dict[str, Any]:
        """Describe it as bench.environment.describe does; keys that it cannot tell are left out or None."""

    def takes(self, thing: Thing) -> str | None:
        """Say why a thing cannot be timed there, and what to do; None when it can."""

    def scenarios(self) -> frozenset[str]:
        """Return the scenarios (bench/README.md) that it can run."""

    def run(self, job: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
        """Time a job's things there (bench/schedule.py); paths in it are this machine's. Raises WorkerDied, Missing."""

    def rates(self, threads: int) -> dict[str, Any] | None:
        """Return its matrix rate and memory bandwidth (bench/rates.py), measured once and kept; None where it has no such thing."""


def open_device(address: str) -> Device:
    """Return the device of that address, not yet entered.

    Raises BadInput for an address of no known kind, or a wrong one, and Missing where this system cannot have such a device.
    """
    kind = re.split(r"://|\?", address, maxsplit=1)[0]
    if kind not in DEVICES:
        raise BadInput(f"device `{address}`: no such kind of device{nearest(kind, DEVICES)}; there are {', '.join(kinds())}")
    try:
        module = importlib.import_module(DEVICES[kind][0])
    except ImportError as error:
        raise Missing(f"device `{address}`: a device of this kind cannot be used on this system ({error})") from None
    device: Device = module.open_(address)
    return device


def kinds() -> list[str]:
    """Return how addresses of each kind are written."""
    return [written for _, written in DEVICES.values()]
