"""Which devices there are: tries those that are asked for, or those that are found from here without an address."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from typing import Any

from ..bench.agent import version
from ..errors import EdgekdError, Missing
from . import Device, open_device
from .kit_backends import DISTRIBUTIONS


def probe(addresses: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Try devices; return [{"address", "title", "reached", "why", "host", "runtimes"}].

    Without addresses: this machine, a browser on it, and what is attached to it. why: of one that was not reached; else None.
    host: Device.describe(); runtimes: module -> version, None for one that is not installed; both empty for one that was not reached.
    Raises BadInput for an address that is none.
    """
    opened = [(address, _opened(address)) for address in addresses or here()]
    return [_lost(address, address, one) if isinstance(one, Missing) else _tried(one) for address, one in opened]


def here() -> list[str]:
    """Return the addresses of devices that are found without one: this machine, a browser on it, Android devices that adb lists."""
    found = []
    for kind in ("local", "browser"):
        with contextlib.suppress(Missing):  # of a kind that this system cannot have
            found.append(open_device(kind).address)
    try:
        from . import adb_link
    except ImportError:
        return found
    adb = shutil.which(os.environ.get(adb_link.VARIABLE) or "adb")
    if adb:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            listed = subprocess.run([adb, "devices", "-l"], capture_output=True, text=True, timeout=20, check=False).stdout
            found += [f"adb://{serial}" for serial in adb_link.attached(listed)]
    return found


def _opened(address: str) -> Device | Missing:
    """Return a device, or why this system cannot have one of its kind. Raises BadInput for an address that is none."""
    try:
        return open_device(address)
    except Missing as error:
        return error


def _lost(address: str, title: str, error: EdgekdError) -> dict[str, Any]:
    why = str(error).removeprefix(f"{address}: ")
    return {"address": address, "title": title, "reached": False, "why": why, "host": {}, "runtimes": {}}


def _tried(device: Device) -> dict[str, Any]:
    try:
        with device:
            host = device.describe()
            runtimes = getattr(device, "runtimes", None)
            told = runtimes() if runtimes else _runtimes(device.address, host)
    except EdgekdError as error:
        return _lost(device.address, device.title, error)
    return {"address": device.address, "title": device.title, "reached": True, "why": None, "host": host, "runtimes": told}


def _runtimes(address: str, host: dict[str, Any]) -> dict[str, str | None]:
    """Return the runtimes of a device that has no way of its own to say: of this machine what is installed, else what host names."""
    if address == "local":
        return {module: version(module, list(names)) for module, names in DISTRIBUTIONS.items()}
    return dict(host.get("runtime") or host.get("packages") or {})
