"""Meters on devices that are written out file by file, and lines as the tools print them."""

import os
import sys
import time
from pathlib import Path

import pytest
from patience import patient

from edgekd.bench import energy

RAPL = "sys/class/powercap"
INA = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3"
ORIN = (
    "11-21-2026 10:00:00 RAM 2448/7620MB (lfb 4x4MB) SWAP 0/3810MB (cached 0MB) CPU [1%@729,0%@729,off,off] EMC_FREQ 0%@2133 "
    "GR3D_FREQ 0%@305 cpu@45.343C tj@46.5C VDD_IN 4956mW/4900mW VDD_CPU_GPU_CV 520mW/516mW VDD_SOC 1445mW/1440mW"
)
NANO = "RAM 1000/3964MB CPU [5%@102,off] PMIC@100C GPU@33C POM_5V_IN 2532/2480 POM_5V_GPU 40/40 POM_5V_CPU 480/470"
XAVIER = "RAM 2/31927MB CPU [0%@1190] GPU 0/0 CPU 310/310 SOC 930/930 VDDRQ 155/155"
AGX = "RAM 2/31927MB CPU [0%@729] VDD_GPU_SOC 2391mW/2391mW VDD_CPU_CV 398mW/398mW VIN_SYS_5V0 3326mW/3326mW NC 0mW/0mW"


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


def package(number: int, joules: float) -> dict[str, str]:
    zone = f"{RAPL}/intel-rapl:{number}"
    return {
        f"{zone}/name": f"package-{number}",
        f"{zone}/energy_uj": str(round(joules * 1e6)),
        f"{zone}/max_energy_range_uj": "1000000000",
    }


@pytest.fixture(autouse=True)
def slow_thread(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(energy, "EVERY", 60.0)  # readings come from the test alone


def test_rapl_sums_packages_and_counts_on_after_a_wrap(tmp_path: Path):
    write(
        tmp_path,
        {
            **package(0, 999.0),
            **package(1, 10.0),
            f"{RAPL}/intel-rapl:0:0/name": "core",
            f"{RAPL}/intel-rapl:0:0/energy_uj": "1",
        },
    )
    write(
        tmp_path, {f"{RAPL}/intel-rapl-mmio:0/name": "package-0", f"{RAPL}/intel-rapl-mmio:0/energy_uj": "1"}
    )  # package 0 again
    write(tmp_path, {f"{RAPL}/intel-rapl:2/name": "psys", f"{RAPL}/intel-rapl:2/energy_uj": "1"})  # the whole board
    meter, why = energy.meter(tmp_path)
    assert meter is not None
    assert why is None
    assert meter.source == "RAPL package-0 + package-1"
    assert meter.joules() == 0
    write(tmp_path, {**package(0, 4.0), **package(1, 12.5)})  # 1,000 J and it starts again: 5 more; and 2.5
    assert meter.joules() == pytest.approx(7.5)
    write(tmp_path, package(0, 1.0))  # once more round: 997
    assert meter.joules() == pytest.approx(1004.5)
    meter.close()


def test_rapl_that_is_closed_to_us_says_how_to_open_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path, package(0, 1.0))
    read = Path.read_text

    def refuse(path: Path, *rest: object, **named: object) -> str:
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path, *rest, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "read_text", refuse)
    meter, why = energy.meter(tmp_path)
    assert meter is None
    assert why is not None
    assert why.startswith("not available here: RAPL is readable by root alone: sudo chmod")


def test_nothing_to_read_says_what_was_looked_for(tmp_path: Path):
    assert energy.meter(tmp_path) == (None, "not available here: no RAPL, no INA3221 sensor, no battery that is discharging")


def ticking(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(energy.time, "perf_counter", lambda: now[0])
    return now


def test_power_is_integrated_over_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    now = ticking(monkeypatch)
    write(tmp_path, {f"{INA}/in1_label": "VDD_IN", f"{INA}/in1_input": "5000", f"{INA}/curr1_input": "1000"})  # 5 V x 1 A
    write(tmp_path, {f"{INA}/in2_label": "VDD_SOC", f"{INA}/in2_input": "5000", f"{INA}/curr2_input": "9000"})
    meter, _ = energy.meter(tmp_path)
    assert meter is not None
    assert meter.source == "INA3221 VDD_IN"
    now[0] = 2.0
    assert meter.joules() == pytest.approx(10.0)
    write(tmp_path, {f"{INA}/curr1_input": "3000"})
    now[0] = 3.0  # from 5 to 15 W within a second: 10 J
    assert meter.joules() == pytest.approx(20.0)
    (tmp_path / INA / "curr1_input").write_text("")  # a reading that fails gives the last
    now[0] = 4.0
    assert meter.joules() == pytest.approx(20.0)
    write(tmp_path, {f"{INA}/curr1_input": "3000"})
    monkeypatch.setattr(energy.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    meter.joules()
    assert meter.idle_watts(4) == pytest.approx(15.0)
    meter.close()


def test_older_jetsons_tell_milliwatts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    now = ticking(monkeypatch)
    folder = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    write(tmp_path, {f"{folder}/rail_name_0": "POM_5V_IN", f"{folder}/in_power0_input": "2500"})
    meter, _ = energy.meter(tmp_path)
    assert meter is not None
    now[0] = 2.0
    assert meter.joules() == pytest.approx(5.0)


@pytest.mark.parametrize(
    ("battery", "watts"),
    [
        ({"status": "Discharging", "power_now": "7500000"}, 7.5),
        ({"status": "Discharging", "current_now": "-500000", "voltage_now": "4000000"}, 2.0),  # a phone: 0.5 A at 4 V
        ({"status": "Charging", "power_now": "7500000"}, None),
        ({"status": "Discharging", "power_now": "1", "scope": "Device"}, None),
    ],
)
def test_a_battery_is_the_last_resort(
    battery: dict[str, str], watts: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    now = ticking(monkeypatch)
    write(tmp_path, {f"sys/class/power_supply/BAT0/{name}": text for name, text in {"type": "Battery", **battery}.items()})
    meter, why = energy.meter(tmp_path)
    if watts is None:
        assert meter is None
        assert why is not None
        assert why.startswith("not available here: ")
        return
    assert meter is not None
    now[0] = 10.0
    assert meter.joules() == pytest.approx(10 * watts)
    write(tmp_path, package(0, 1.0))
    better, _ = energy.meter(tmp_path)
    assert better is not None
    assert better.source.startswith("RAPL")


@pytest.mark.parametrize(("line", "watts"), [(ORIN, 4.956), (NANO, 2.532), (AGX, 6.115), (XAVIER, None), ("RAM 1/2MB", None)])
def test_lines_of_tegrastats(line: str, watts: float | None):
    assert energy.tegrastats_watts(line) == (None if watts is None else pytest.approx(watts))


@pytest.mark.parametrize(
    ("line", "watts"),
    [
        ("Combined Power (CPU + GPU + ANE): 1834 mW", 1.834),
        ("CPU Power: 812 mW", None),
        ("Intel energy model derived package power (CPUs+GT+SA): 2.54W", 2.54),
        ("**** Processor usage ****", None),
    ],
)
def test_lines_of_powermetrics(line: str, watts: float | None):
    assert energy.powermetrics_watts(line) == watts


@patient
def test_a_program_that_prints_power_is_followed_and_ended():
    prints = f"import time\nfor _ in range(600): print({NANO!r}, flush=True); time.sleep(0.02)"
    meter = energy._printed("tool", [sys.executable, "-c", prints], energy.tegrastats_watts, patience=30)
    start = time.perf_counter()
    begun = meter.joules()
    time.sleep(0.3)
    assert meter.joules() - begun == pytest.approx(2.532 * (time.perf_counter() - start), rel=0.2)
    process = meter._end.__closure__[0].cell_contents  # type: ignore[index]
    meter.close()
    assert process.poll() is not None
    stopped = meter.joules()
    time.sleep(0.05)
    assert meter.joules() == stopped, "a program that has ended tells no power"


def test_a_program_that_prints_none_is_said_and_ended():
    with pytest.raises(OSError, match="told no power within"):
        energy._printed("tool", [sys.executable, "-c", "print('hello')"], energy.tegrastats_watts, patience=0.5)


def test_powermetrics_needs_root(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(energy.sys, "platform", "darwin")
    monkeypatch.setattr(os, "geteuid", lambda: 501, raising=False)
    with pytest.raises(OSError, match="needs root"):
        energy._powermetrics(energy.ROOT)


def test_the_thread_reads_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(energy, "EVERY", 0.01)
    write(tmp_path, package(0, 990.0))
    meter, _ = energy.meter(tmp_path)
    assert meter is not None
    for joules in (5.0, 995.0, 8.0):  # two wraps, each seen by the thread alone
        write(tmp_path, package(0, joules))
        time.sleep(0.3)
    assert meter.joules() == pytest.approx(15 + 990 + 13)
    meter.close()
