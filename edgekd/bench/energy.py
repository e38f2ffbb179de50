"""Energy: joules since the start, from whatever meter the device has. The standard library alone, Python 3.8 on: it travels.

What is metered differs: RAPL the processor packages alone, Jetson's INA3221 and batteries the whole device, powermetrics the
processor. Compare a figure only with others of the same `source`.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Callable, Iterable  # noqa: UP035 (what collections.abc has cannot be subscripted in Python 3.8)

Counter = Callable[[], float]
"""Joules since some moment, rising. Raises OSError or ValueError where a reading fails."""

ROOT = Path("/")

EVERY = 0.25
"""Seconds between two readings: 4 a second disturb nothing that is timed. RAPL's counters are read as often; they start again
after 262 kJ or less (44 minutes at 100 W), which must not happen twice between two readings."""

BATTERY = "battery (the whole device)"


class Meter:
    """Joules since the start, from one source. `close` it: a thread reads on its behalf, and a process for some sources."""

    def __init__(self, source: str, counter: Counter, end: Callable[[], None] = lambda: None) -> None:
        self.source = source
        self._counter, self._end = counter, end
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._first = self._last = counter()
        threading.Thread(target=self._follow, daemon=True).start()

    def joules(self) -> float:
        """Return the joules used since the start, in all. A reading that fails gives the last one."""
        with self._lock, contextlib.suppress(OSError, ValueError):
            self._last = self._counter()
        return self._last - self._first

    def idle_watts(self, seconds: float) -> float:
        """Wait `seconds`, in which nothing of ours works, and return the watts used meanwhile."""
        start, joules = time.perf_counter(), self.joules()
        time.sleep(seconds)
        return (self.joules() - joules) / max(time.perf_counter() - start, 1e-6)

    def close(self) -> None:
        """Stop reading."""
        self._closed.set()
        self._end()

    def _follow(self) -> None:
        while not self._closed.wait(EVERY):
            self.joules()


def meter(root: Path = ROOT) -> tuple[Meter | None, str | None]:
    """Return the best meter of this device and None, or None and why there is none ("not available here: ...").

    In this order: RAPL, Jetson's INA3221 sensors, tegrastats, powermetrics (macOS, as root), a battery that is discharging.
    root: where /sys lies; programs are asked only where it is the real one.
    """
    reasons: list[str] = []
    for find in (_rapl, _ina3221, _tegrastats, _powermetrics, _battery):
        if root != ROOT and find in (_tegrastats, _powermetrics):
            continue
        try:
            found = find(root)
        except (OSError, ValueError) as error:
            reasons.append(str(error))
            continue
        if found is not None:
            return found, None
    return None, "not available here: " + ("; ".join(reasons) or "no RAPL, no INA3221 sensor, no battery that is discharging")


def rapl_joules(before: int, after: int, wrap: int) -> float:
    """Return the joules between two readings of energy_uj, which starts again at 0 after `wrap` (max_energy_range_uj)."""
    return (after - before if after >= before else after - before + wrap) / 1e6


def tegrastats_watts(line: str) -> float | None:
    """Return the watts in a line of tegrastats: of the whole module where it has VDD_IN (POM_5V_IN), else all rails summed.

    >>> tegrastats_watts("RAM 2448/7620MB CPU [1%@729] VDD_IN 5012mW/4900mW VDD_CPU_GPU_CV 1000mW/990mW")
    5.012
    """
    rails = {name: int(now) for name, now in re.findall(r"\b((?:VDD|VIN|POM|NC)_\w+) (\d+)(?:mW)?/\d+", line)}
    whole = next((rails[name] for name in ("VDD_IN", "POM_5V_IN") if name in rails), None)
    return (sum(rails.values()) if whole is None else whole) / 1e3 if rails else None


def powermetrics_watts(line: str) -> float | None:
    """Return the watts in a line of powermetrics, None where it tells none: CPU, GPU and neural engine, or Intel's package."""
    found = re.match(r"Combined Power \(CPU \+ GPU(?: \+ ANE)?\): (\d+) mW", line)
    if found:
        return int(found.group(1)) / 1e3
    found = re.match(r"(?:Intel energy model derived p|P)ackage [Pp]ower.*: ([\d.]+) ?W", line)
    return float(found.group(1)) if found else None


def _rapl(root: Path) -> Meter | None:
    # AMD's too. Not intel-rapl-mmio:0, the same package again; not core and dram, parts of it; not psys, the board around it
    zones = sorted(root.glob("sys/class/powercap/intel-rapl:*"))
    zones = [zone for zone in zones if _line(zone / "name").startswith("package")]
    if not zones:
        return None
    try:
        last = [_number(zone / "energy_uj") for zone in zones]
    except PermissionError:
        raise OSError("RAPL is readable by root alone: sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj") from None
    wraps = [_number(zone / "max_energy_range_uj") for zone in zones]
    total = 0.0

    def counter() -> float:
        nonlocal total, last
        read = [_number(zone / "energy_uj") for zone in zones]
        total += sum(map(rapl_joules, last, read, wraps))
        last = read
        return total

    return Meter("RAPL " + " + ".join(_line(zone / "name") for zone in zones), counter)


def _ina3221(root: Path) -> Meter | None:
    """Find the sensor of the whole module: mV x mA as hwmon (JetPack 5 on), mW as iio before."""
    for label in sorted(root.glob("sys/bus/i2c/drivers/ina3221*/*/hwmon/hwmon*/in*_label")):
        channel = re.match(r"in(\d+)_label", label.name)
        if channel and _line(label) in {"VDD_IN", "POM_5V_IN"}:
            volts, amperes = label.with_name(f"in{channel[1]}_input"), label.with_name(f"curr{channel[1]}_input")
            return Meter(f"INA3221 {_line(label)}", _integrate_files((volts, amperes), 1e-6))
    for label in sorted(root.glob("sys/bus/i2c/drivers/ina3221*/*/iio:device*/rail_name_*")):
        if _line(label) in {"VDD_IN", "POM_5V_IN"}:
            power = label.with_name(f"in_power{label.name[-1]}_input")
            return Meter(f"INA3221 {_line(label)}", _integrate_files((power,), 1e-3))
    return None


def _battery(root: Path) -> Meter | None:
    """Find a battery that is discharging. Its reading changes every few seconds at best: for long runs alone."""
    for supply in sorted(root.glob("sys/class/power_supply/*")):
        if _line(supply / "type") != "Battery" or _line(supply / "scope") == "Device":
            continue
        if _line(supply / "status") != "Discharging":
            raise OSError("the battery does not discharge while the machine is plugged in")
        if (supply / "power_now").exists():
            return Meter(BATTERY, _integrate_files((supply / "power_now",), 1e-6))
        if (supply / "current_now").exists():  # microvolts x microamperes; some phones count a discharge as negative
            return Meter(BATTERY, _integrate_files((supply / "current_now", supply / "voltage_now"), 1e-12))
    return None


def _tegrastats(root: Path) -> Meter | None:
    if shutil.which("tegrastats") is None:
        return None
    return _printed("tegrastats", ["tegrastats", "--interval", str(round(1000 * EVERY))], tegrastats_watts)


def _powermetrics(root: Path) -> Meter | None:
    if sys.platform != "darwin":
        return None
    if os.geteuid() != 0:
        raise OSError("powermetrics needs root: run with sudo")
    command = ["powermetrics", "--samplers", "cpu_power", "-i", str(round(1000 * EVERY))]
    return _printed("powermetrics (processor)", command, powermetrics_watts)


def _printed(source: str, command: list[str], watts: Callable[[str], float | None], patience: float = 5.0) -> Meter:
    """Start a program that prints power again and again; OSError where it prints none within `patience` seconds."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    latest: list[float] = []
    told = threading.Event()

    def listen(lines: Iterable[str]) -> None:
        for line in lines:
            found = watts(line)
            if found is not None:
                latest[:] = [found]
                told.set()

    def end() -> None:
        process.kill()
        process.wait()

    def power() -> float:
        if process.poll() is not None:
            raise OSError(f"{command[0]} ended")
        return latest[0]

    threading.Thread(target=listen, args=(process.stdout,), daemon=True).start()
    if not told.wait(patience):
        end()
        raise OSError(f"{command[0]} told no power within {patience:g} s")
    return Meter(source, _integrate(power), end)


def _integrate(watts: Callable[[], float]) -> Counter:
    """Return a counter of joules from readings of power: the mean of two neighbouring readings holds between them."""
    joules, at, last = 0.0, time.perf_counter(), watts()

    def counter() -> float:
        nonlocal joules, at, last
        power, now = watts(), time.perf_counter()
        joules, at, last = joules + (now - at) * (power + last) / 2, now, power
        return joules

    return counter


def _integrate_files(files: tuple[Path, ...], unit: float) -> Counter:
    """Return a counter of joules where the product of what `files` hold is the power in `unit` watts."""
    return _integrate(lambda: abs(math.prod(map(_number, files))) * unit)


def _line(path: Path) -> str:
    try:
        return path.read_text(errors="replace").partition("\n")[0].strip()
    except OSError:
        return ""


def _number(path: Path) -> int:
    return int(path.read_text())
