"""The way to an Android device: the program adb, and what the device says of itself."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import host
from ..errors import BadInput, Missing

VARIABLE = "EDGEKD_ADB"
PLACE = "/data/local/tmp"
"""Where adb's user may put and start programs."""

PATIENCE = 60.0
"""Seconds for what adb does at once."""

_END = "edgekd-exit:"
_STATES = {
    "unauthorized": "allow USB debugging on its screen",
    "offline": "it does not answer: plug it in again, or `adb reconnect`",
    "authorizing": "it is being asked whether it allows this: look at its screen",
    "no permissions": "this machine's user may not open it: see https://developer.android.com/studio/run/device (udev rules)",
}


class Link:
    """One device. folder: ours on it, while it is open; leaving removes it, and ends what runs in it."""

    def __init__(self, serial: str | None) -> None:
        self.serial, self.folder = serial, ""
        self._program = ""

    def __enter__(self) -> Link:
        found = shutil.which(os.environ.get(VARIABLE) or "adb")
        if found is None:
            raise Missing(
                "adb is not here: install the Android SDK's platform tools (Debian: apt-get install adb), "
                f"or set {VARIABLE} to its program"
            )
        self._program = found
        self.serial = choose(attached(self._ask([found, "devices", "-l"], PATIENCE).stdout), self.serial)
        self.folder = f"{PLACE}/edgekd-{secrets.token_hex(4)}"
        self.shell(f"mkdir -m 700 {self.folder}")
        return self

    def __exit__(self, *rest: object) -> None:
        # what we started there does not end with adb, which only carries its output
        kill = f"for pid in $(cat {self.folder}/*/pid 2>/dev/null); do kill -9 $pid 2>/dev/null; done"
        with contextlib.suppress(subprocess.TimeoutExpired):  # the device is gone: nothing can be done there
            self._ask([self._program, "-s", str(self.serial), "shell", f"{kill}; rm -rf {self.folder}"], PATIENCE)

    def push(self, file: Path, to: str, patience: float = 600) -> None:
        """Copy a file to a path on the device. Raises Missing, with what adb says."""
        done = self._ask([self._program, "-s", str(self.serial), "push", str(file), to], patience)
        if done.returncode:
            raise Missing(f"{self.serial}: adb could not copy {file.name} there: {_last(done.stdout + done.stderr)}")

    def shell(self, command: str, patience: float = PATIENCE) -> tuple[int, str]:
        """Run a command there; return its exit status and what it printed. Raises Missing when the connection is lost,
        subprocess.TimeoutExpired after `patience` seconds."""
        whole = f"{{ {command}\n}} 2>&1; echo {_END}$?"  # older Androids' adb does not hand on the status
        done = self._ask([self._program, "-s", str(self.serial), "shell", whole], patience)
        printed, found, status = done.stdout.replace("\r\n", "\n").rpartition(_END)
        if not found:
            raise Missing(f"{self.serial}: the connection was lost: {_last(done.stderr or done.stdout)}")
        return int(status), printed

    def _ask(self, words: list[str], patience: float) -> subprocess.CompletedProcess[str]:
        # a session of its own: Ctrl-C is for us, who then tidy up over adb
        return subprocess.run(
            words,
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=patience,
            start_new_session=True,
            check=False,
        )


def attached(listed: str) -> dict[str, str]:
    """Return serial -> state from what `adb devices -l` prints.

    >>> attached("List of devices attached\\nR58M  device usb:1-1 model:SM_G973F\\nemulator-5554  offline")
    {'R58M': 'device', 'emulator-5554': 'offline'}
    """
    lines = re.findall(r"^(\S+)[ \t]+(no permissions|[a-z]+)\b", listed.partition("List of devices attached")[2], re.MULTILINE)
    return dict(lines)


def choose(found: Mapping[str, str], serial: str | None) -> str:
    """Return the device to use: the one asked for, else the only one. Raises Missing, BadInput where there are several."""
    if serial is None:
        ready = [name for name, state in found.items() if state == "device"]
        if len(ready) > 1:
            raise BadInput(f"several Android devices are attached; give one: {', '.join(f'adb://{name}' for name in ready)}")
        if not found:
            raise Missing("no Android device is attached: plug one in, with USB debugging on (Settings, Developer options)")
        serial = ready[0] if ready else next(iter(found))
    if serial not in found:
        raise Missing(f"no Android device {serial} is attached; there are {', '.join(found) or 'none'}")
    if found[serial] != "device":
        raise Missing(f"{serial} is {found[serial]}: {_STATES.get(found[serial], 'start Android on it')}")
    return serial


def describe(link: Link) -> dict[str, Any]:
    """Describe the device, with the keys of host.describe, and abi."""
    _, printed = link.shell("getprop")
    props = dict(re.findall(r"^\[(.+?)\]: \[(.*)\]$", printed, re.MULTILINE))
    _, cpuinfo = link.shell("cat /proc/cpuinfo")
    _, meminfo = link.shell("cat /proc/meminfo")
    features = re.search(r"^(?:Features|flags)\s*: (.*)$", cpuinfo, re.MULTILINE)
    flags = sorted(set(host.FLAGS) & set(features[1].split() if features else ()))
    memory = re.search(r"MemTotal:\s+(\d+) kB", meminfo)
    cores = len(re.findall(r"^processor\s*:", cpuinfo, re.MULTILINE)) or 1
    chip = " ".join(filter(None, (props.get("ro.soc.manufacturer"), props.get("ro.soc.model")))) or props.get(
        "ro.board.platform"
    )
    model = " ".join(filter(None, (props.get("ro.product.manufacturer"), props.get("ro.product.model")))) or str(link.serial)
    return {
        "cpu": chip or props.get("ro.hardware") or "unknown",
        "architecture": {"arm64-v8a": "aarch64", "armeabi-v7a": "armv7l"}.get(str(props.get("ro.product.cpu.abi"))),
        "flags": flags,
        "vnni": bool({"asimddp", "i8mm", "avx512_vnni", "avx_vnni"} & set(flags)) if features else None,
        "cores": cores,
        "physical_cores": cores,
        "governor": now(link)["governor"],
        "memory_bytes": 1024 * int(memory[1]) if memory else None,
        "os": f"Android {props.get('ro.build.version.release', '?')} (API {props.get('ro.build.version.sdk', '?')})",
        "python": None,
        "packages": {},
        "model": model,
        "abi": props.get("ro.product.cpu.abi"),
    }


def now(link: Link) -> dict[str, Any]:
    """Return what changes: load_average, temperature_c (the hottest of the processor's sensors, else the battery's), governor,
    frequency_mhz (mean of the cores now), thermal_status (0: not throttled, to 6), None where the device does not tell."""
    cpu = "/sys/devices/system/cpu"
    _, printed = link.shell(
        f"cat /proc/loadavg; cat {cpu}/cpu0/cpufreq/scaling_governor | sed 's/^/governor /'; "
        f"cat {cpu}/cpu*/cpufreq/scaling_cur_freq | sed 's/^/khz /'; dumpsys battery; dumpsys thermalservice"
    )
    sensors = printed.partition("Current temperatures from HAL")[2].partition("Current cooling devices")[0]
    degrees = [float(value) for value in re.findall(r"mValue=([\d.]+), mType=0\b", sensors)]  # type 0: CPU
    battery = re.search(r"^\s*temperature: (\d+)", printed, re.MULTILINE)  # tenths of a degree
    load = re.match(r"[\d.]+(?= )", printed)
    governor, status = re.search(r"^governor (\w+)", printed, re.MULTILINE), re.search(r"Thermal Status: (\d)", printed)
    khz = [int(value) for value in re.findall(r"^khz (\d+)", printed, re.MULTILINE)]
    return {
        "load_average": float(load[0]) if load else None,
        "temperature_c": max(degrees) if degrees else int(battery[1]) / 10 if battery else None,
        "governor": governor[1] if governor else None,
        "frequency_mhz": sum(khz) / len(khz) / 1000 if khz else None,
        "thermal_status": int(status[1]) if status else None,
    }


def quote(*words: str) -> str:
    """Return words as the device's shell takes them."""
    return " ".join(map(shlex.quote, words))


def _last(text: str) -> str:
    return (text.strip().splitlines() or ["adb said nothing"])[-1]
