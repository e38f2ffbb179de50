"""Which devices there are: tries those that are asked for, or those that are found from here without an address."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from ..bench.agent import version
from ..errors import EdgekdError
from . import DEVICES, Device, open_device
from .kit_backends import DISTRIBUTIONS


def probe(addresses: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Try devices; return [{"address", "title", "reached", "why", "host", "runtimes"}].

    Without addresses: this machine, a browser on it, and what is attached to it. why: of one that was not reached; else None.
    host: Device.describe(); runtimes: module -> version, None for one that is not installed; both empty for one that was not reached.
    Raises BadInput for an address that is none.
    """
    devices = [open_device(address) for address in addresses or _here()]
    return [_tried(device) for device in devices]


def _here() -> list[str]:
    """Return the addresses of devices that need none: local, browser, and those that a kind of device finds itself."""
    found = ["local", "browser"]
    for kind, module in DEVICES.items():
        if kind not in found:
            find = getattr(importlib.import_module(module), "found", None)
            found += find() if find else []
    return found


def _tried(device: Device) -> dict[str, Any]:
    try:
        with device:
            host = device.describe()
            runtimes = getattr(device, "runtimes", None)
            told = runtimes() if runtimes else _runtimes(device.address, host)
    except EdgekdError as error:
        lost = {"reached": False, "why": str(error).removeprefix(f"{device.address}: "), "host": {}, "runtimes": {}}
        return {"address": device.address, "title": device.title, **lost}
    return {"address": device.address, "title": device.title, "reached": True, "why": None, "host": host, "runtimes": told}


def _runtimes(address: str, host: dict[str, Any]) -> dict[str, str | None]:
    """Return the runtimes of a device that has no way of its own to say: of this machine what is installed, else what host names."""
    if address == "local":
        return {module: version(module, list(names)) for module, names in DISTRIBUTIONS.items()}
    return dict(host.get("runtime") or host.get("packages") or {})
