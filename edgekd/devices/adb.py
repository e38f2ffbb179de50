"""An Android device on a cable (or over adb connect): ONNX Runtime on its processor, timed by onnxruntime_perf_test."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ..bench import environment, schedule
from ..errors import BadInput, Missing
from . import adb_link
from .adb_worker import TOOL, PerfWorker
from .elsewhere import elsewhere

if TYPE_CHECKING:
    from ..bench.things import Thing
    from . import Tell

HELP = "adb, adb://SERIAL"
VARIABLE = "EDGEKD_ORT_PERF_TEST"
HOW = (
    f"{TOOL} for Android is wanted, ONNX Runtime's own clock; no package has it (the AAR onnxruntime-android has the library alone). "
    "Build it from ONNX Runtime's sources: ./build.sh --android --android_sdk_path SDK --android_ndk_path NDK "
    "--android_abi arm64-v8a --android_api 27 --config Release --build_shared_lib --parallel; "
    f"then set {VARIABLE} to build/Android/Release/{TOOL}. The .so files beside it go along"
)
SUSTAINED, BLOCKS = 10.0, 30
"""Seconds of a block in a sustained run; shorter where `minutes` would not hold so many blocks."""
WARM = ("", "light", "moderate", "severe", "critical", "emergency", "shutdown")
"""Android's thermal status in words (PowerManager.THERMAL_STATUS_*)."""


class Android:
    """An Android device. Files lie in a folder of ours there while it is open."""

    def __init__(self, address: str, serial: str | None) -> None:
        self.address, self.title = address, serial or "an Android device"
        self._link = adb_link.Link(serial)
        self._described: dict[str, Any] = {}
        self._things = 0

    def __enter__(self) -> Android:
        tool = perf_tool()
        self._link.__enter__()
        try:
            self._described = adb_link.describe(self._link)
            self.title = f"{self._described['model']} ({self._described['cpu']})"
            libraries = sorted(tool.parent.glob("*.so"))
            for file in (tool, *libraries):
                self._link.push(file, f"{self._link.folder}/{TOOL if file == tool else file.name}")
            self._link.shell(f"chmod 700 {self._link.folder}/{TOOL}")
            self._described["packages"] = {"onnxruntime": version_in([*libraries, tool])}
        except BaseException:
            self._link.__exit__()
            raise
        return self

    def __exit__(self, *rest: object) -> None:
        self._link.__exit__()

    def describe(self) -> dict[str, Any]:
        """Describe the device."""
        return dict(self._described)

    def takes(self, thing: Thing) -> str | None:
        """Say why a thing cannot be timed here; None when it can: one .onnx or .ort file."""
        if thing.backend not in ("onnxruntime", "onnxruntime_mobile"):
            return f"it was made for {thing.backend}; {TOOL} runs what was made for onnxruntime and onnxruntime_mobile"
        if len(thing.files) > 1:
            return f"{TOOL} runs one graph, and this has {len(thing.files)}: give one of {', '.join(thing.files)}"
        return None if thing.file.suffix in (".onnx", ".ort") else f"{TOOL} runs .onnx and .ort files"

    def scenarios(self) -> frozenset[str]:
        """Return what the tool can do."""
        return frozenset({"single-stream", "sustained"})

    def run(self, job: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
        """Time a job's things there, block by block. Raises WorkerDied, Missing when the device is lost."""
        sustained = job["scenario"] == "sustained"
        # long blocks, since the model is loaded again before each and the device cools meanwhile; enough to see a fall between them
        seconds = min(SUSTAINED, 60 * job["minutes"] / BLOCKS) if sustained else 0.0
        begun: dict[str, float] = {}
        watched: list[dict[str, Any]] = []

        def look(label: str) -> None:
            begun.setdefault(label, time.perf_counter())
            seen = {key: value for key, value in adb_link.now(self._link).items() if key in ("temperature_c", "frequency_mhz")}
            watched.append({"label": label, "at_s": time.perf_counter() - begun[label], "others": None, **seen})

        def open_worker(label: str) -> PerfWorker:
            thing = next(one for one in job["things"] if one["label"] == label)
            self._things += 1
            version = self._described["packages"]["onnxruntime"]
            worker = PerfWorker(label, self._link, self._things, version, seconds, look if sustained else None)
            with TemporaryDirectory(prefix="edgekd-adb-") as scratch:
                worker.give(thing, dict(job), Path(scratch))
            return worker

        before = adb_link.now(self._link)
        # Each block is a process of its own, which loads the model afresh: what launches are for. So one is asked for, which brings
        # the files there once, and each block is told as a launch: intervals are then over processes, as everywhere.
        told = schedule.run({**job, "launches": 1, "meter": False}, open_worker, tell)
        after = adb_link.now(self._link)
        self._link.shell(f"rm -rf {self._link.folder}/[0-9]*")
        for one in told["timed"]:
            for number, block in enumerate(one["blocks"]):
                block["launch"] = number
        return elsewhere(told, self._around(before, after), "adb does not tell what the device draws", watched)

    def rates(self, threads: int) -> dict[str, Any] | None:
        """Return None: there is no Python there to measure what the processor can do."""
        return None

    def _around(self, before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
        notes = [
            "each block is a process of its own, which loads the model again, and counts as a launch; the first call is told in "
            "whole milliseconds"
        ]
        warm, hot = before["temperature_c"], after["temperature_c"]
        if warm is not None and hot is not None and hot - warm > environment.HOT:
            notes.append(f"the device warmed from {warm:.0f} to {hot:.0f} degrees: the end may be slower than the beginning")
        if after["thermal_status"]:
            notes.append(
                f"the device slows itself down because of heat (thermal status: {WARM[min(after['thermal_status'], 6)]})"
            )
        if before["load_average"] is not None and before["load_average"] > 0.5 * self._described["cores"]:
            notes.append(f"the device was busy: load average {before['load_average']:.1f} before the clock started")
        return {
            "cpu": self._described["cpu"],
            "vnni": self._described["vnni"],
            "load_average": [before["load_average"], after["load_average"]],
            "temperature_c": [warm, hot],
            "frequency_mhz": [before["frequency_mhz"], after["frequency_mhz"]],
            "governor": before["governor"],
            "notes": notes,
        }


def perf_tool() -> Path:
    """Return the tool's path here. Raises Missing, with how to get it."""
    told = os.environ.get(VARIABLE)
    if not told:
        raise Missing(HOW)
    if not Path(told).is_file():
        raise Missing(f"{VARIABLE} is set to `{told}`, where no file lies. {HOW}")
    return Path(told)


def version_in(files: list[Path]) -> str:
    """Return ONNX Runtime's version out of a binary: the version of the library's symbols, "VERS_1.31.1"; "?" where none has it."""
    for file in files:
        if found := re.search(rb"VERS_(\d+\.\d+\.\d+)", file.read_bytes()):
            return found[1].decode()
    return "?"


def open_(address: str) -> Android:
    """Return the device of an address. Raises BadInput for an address that is not as in HELP."""
    kind, _, serial = address.partition("://")
    # a serial number, or HOST:PORT of a device that `adb connect` reached
    if kind != "adb" or ("://" in address and not re.fullmatch(r"[\w.:\[\]-]+", serial)):
        raise BadInput(f"device `{address}`: it is written {HELP} (`adb devices` lists serial numbers)")
    return Android(address, serial or None)
