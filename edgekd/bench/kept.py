"""What a suite has measured so far, on disk: a file for each finished cell, so that the same command goes on with what is left.

FOLDER/cells/KEY.json: {"of": what was timed and how, "on": what it was timed on, "when", "device": as in bench.json, "measurements",
"comparisons"}. The key is a hash of `of` and `on`. `of` is known without the device, so that of one that cannot be reached what was
measured earlier still counts.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..devices import Device
from ..recipe import Bench
from ..run_folder import code_fingerprint, write_text
from ..targets import load_target
from .things import Thing
from .timing import Cell, Known, threads_for

if TYPE_CHECKING:
    from .kits import Brought

RECORD = "bench.json"
SCHEMA = 1
CODE = ("bench", "backends", "devices")
"""Parts of edgekd on which a measurement depends."""
KINDS = ("samples", "times")


class Kept:
    """The cells of one suite.run, those that an earlier one finished among them where `resume` says so."""

    def __init__(self, folder: Path, resume: bool) -> None:
        self.folder = folder
        self.scratch = folder / "cells" / ".partial"
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.cells: dict[str, dict[str, Any]] = {}
        self.devices: dict[str, dict[str, Any]] = {}
        self.skipped: list[dict[str, Any]] = []
        self._earlier = {key: cell for key, cell in _read(folder).items() if resume and _whole(cell, folder)}
        self._on: dict[str, dict[str, Any]] = {}
        self._inputs: dict[str, str] = {}
        self._code = code_fingerprint(CODE)

    def device(self, device: Device) -> None:
        """Note what a device is that was entered."""
        host, address = device.describe(), device.address
        runtimes = device.runtimes() if hasattr(device, "runtimes") else None
        told = {name: host.get(name) for name in ("cpu", "cores", "physical_cores", "packages", "browser", "adapter")}
        self._on[address] = json.loads(json.dumps({**told, "runtimes": runtimes}, sort_keys=True))
        self.devices[address] = {"address": address, "title": device.title, "host": host, "rates": None}

    def skip(self, artifact: str | None, device: str, scenario: str | None, reason: str) -> None:
        """Note what was not timed, and why."""
        self.skipped.append({"artifact": artifact, "device": device, "scenario": scenario, "reason": reason})

    def take(self, address: str, cell: Cell, settings: Bench) -> bool:
        """Take what an earlier run made of the very same cell on the very same device, where it did."""
        key = self._key(address, cell, settings)
        if key not in self._earlier:
            return False
        self._take(key)
        return True

    def take_up(self, address: str, cell: Cell, settings: Bench) -> None:
        """Take what an earlier run made of a cell, or of a part of its things, on a device that cannot be asked now.

        What it is was told when it was entered in this run, else by the newest of what was measured on it.
        """
        of = self._of(address, cell, settings)
        mine = [(key, one) for key, one in self._earlier.items() if one["of"]["address"] == address]
        if mine and address not in self._on:
            self._on[address] = max((one for _, one in mine), key=lambda one: str(one["when"]))["on"]
        alike = [
            (key, one)
            for key, one in mine
            if one["on"] == self._on[address]
            and {**one["of"], "things": of["things"]} == of
            and all(thing in of["things"] for thing in one["of"]["things"])
        ]
        done = {m["artifact"] for made in self.cells.values() if _same_cell(made.get("of"), of) for m in made["measurements"]}
        for key, one in sorted(alike, key=lambda pair: len(pair[1]["measurements"]), reverse=True):
            labels = {m["artifact"] for m in one["measurements"]}
            if not labels & done:
                done |= labels
                self._take(key)

    def add(self, address: str, cell: Cell, settings: Bench, made: tuple[list[dict[str, Any]], list[dict[str, Any]]]) -> None:
        """Keep a finished cell: (measurements, comparisons)."""
        told = {
            "of": self._of(address, cell, settings),
            "on": self._on[address],
            "when": _now(),
            "device": self.devices[address],
        }
        self._add(self._key(address, cell, settings), told, *made)

    def bring(self, record: Brought) -> None:
        """Take in what a kit measured on a device; a second record of a device of that name is another device's."""
        if record.cells and set(record.cells) <= set(self.cells):
            return  # the same record, given twice
        address, count = record.address, 1
        while address in self.devices:
            count += 1
            address = f"{record.address} ({count})"
        self.devices[address] = {**record.device, "address": address}
        for one in record.skipped:
            self.skip(one["artifact"], address, one["scenario"], one["reason"])
        for key, made in record.cells.items():
            self._add(key, {}, *made(self.scratch, address))

    def finish(self, things: Sequence[Thing], command: str, unreached: Sequence[str] = ()) -> dict[str, Any]:
        """Write bench.json and the page, and remove the samples and cells of earlier runs that are no part of this.

        unreached: addresses of devices of which what is left could not be measured: nothing of theirs is removed.
        """
        told = {
            "schema": SCHEMA,
            "when": _now(),
            "command": command,
            "folder": str(self.folder),
            "devices": self.devices,
            "measurements": [m for cell in self.cells.values() for m in cell["measurements"]],
            "comparisons": [c for cell in self.cells.values() for c in cell["comparisons"]],
            "skipped": self.skipped,
            "scores": scores(things),
        }
        try:
            earlier = _samples(json.loads((self.folder / RECORD).read_text(encoding="utf-8")))
        except (OSError, ValueError):
            earlier = set()
        write_text(self.folder / RECORD, json.dumps(told, indent=1, allow_nan=False))
        from ..report import write_bench

        write_bench(self.folder)
        stay = {key for key, one in self._earlier.items() if one["of"]["address"] in unreached} | set(self.cells)
        left = _read(self.folder)
        dropped = {name for key, cell in left.items() if key not in stay for name in _samples(cell)}
        needed = _samples(told).union(*(_samples(cell) for key, cell in left.items() if key in stay))
        for name in (earlier | dropped) - needed:
            if name == Path(name).name and name.endswith((".npy", ".npz")):
                (self.folder / name).unlink(missing_ok=True)
        for file in (self.folder / "cells").glob("*.json"):
            if file.stem not in stay:
                file.unlink()
        return told

    def _take(self, key: str) -> None:
        cell = self.cells[key] = self._earlier[key]
        device = self.devices.setdefault(cell["of"]["address"], {**cell["device"]})
        device["rates"] = device["rates"] or cell["device"]["rates"]

    def _add(self, key: str, told: dict[str, Any], measurements: list[Any], comparisons: list[Any]) -> None:
        for one in measurements:  # samples get names of their own
            for kind in KINDS:
                made = Path(one[kind])
                name = f"{made.stem}-{key[:8]}{made.suffix}"
                (self.scratch / one[kind]).replace(self.folder / name)
                one[kind] = name
        self.cells[key] = {**told, "measurements": measurements, "comparisons": comparisons}
        write_text(self.folder / "cells" / f"{key}.json", json.dumps(self.cells[key], indent=1, allow_nan=False))

    def _of(self, address: str, cell: Cell, settings: Bench) -> dict[str, Any]:
        told = {
            "address": address,
            "cell": [cell.scenario, cell.batch, cell.streams],
            "things": [self._thing(one) for one in cell.known],
            "settings": settings.model_dump(mode="json"),
            "code": self._code,
        }
        return dict(json.loads(json.dumps(told)))

    def _thing(self, known: Known) -> list[Any]:
        thing = known.thing
        if thing.label not in self._inputs:
            self._inputs[thing.label] = _hash_of_inputs(thing)
        target = load_target(thing.target_file).fingerprint if thing.target_file else None
        return [thing.label, thing.backend, known.digest, thing.control, target, self._inputs[thing.label], thing.threads]

    def _key(self, address: str, cell: Cell, settings: Bench) -> str:
        threads = threads_for(settings, self.devices[address]["host"])
        told = [self._of(address, cell, settings), self._on[address], threads]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:24]


def _read(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the cells in a folder: key -> what its file says; {} for one that says nothing."""
    found = {}
    for file in sorted((folder / "cells").glob("*.json")):
        try:
            told = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            told = {}
        found[file.stem] = told if isinstance(told, dict) else {}
    return found


def _whole(cell: Mapping[str, Any], folder: Path) -> bool:
    """Say whether a cell can be taken: a suite's own, all samples there."""
    needs = {"of", "on", "when", "device", "measurements", "comparisons"}
    return needs <= set(cell) and all((folder / one[kind]).is_file() for one in cell["measurements"] for kind in KINDS)


def _samples(told: Any) -> set[str]:
    """Return the names of the samples that a cell's file, or bench.json, speaks of."""
    try:
        return {str(one[kind]) for one in told["measurements"] for kind in KINDS if one.get(kind)}
    except (KeyError, TypeError, AttributeError):
        return set()


def _same_cell(one: Mapping[str, Any] | None, other: Mapping[str, Any]) -> bool:
    return one is not None and {**one, "things": None} == {**other, "things": None}


def _hash_of_inputs(thing: Thing) -> str:
    digest = hashlib.sha256()
    for graph, named in sorted(thing.inputs.items()):
        for name, value in sorted(named.items()):
            digest.update(f"{graph}/{name} {value.dtype.str} {value.shape}\0".encode())
            digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def scores(things: Sequence[Thing]) -> dict[str, dict[str, Any]]:
    """Return what the runs that things are artifacts of say of their accuracy: label -> {"value", "metric"}."""
    found = {}
    for thing in things:
        home = thing.file.parent
        try:
            manifest = json.loads((home.parents[2] / "manifest.json").read_text(encoding="utf-8"))
            verdict = manifest["verdicts"][f"{home.parent.name}/{home.name}"]
            found[thing.label] = {"value": verdict["scores"]["runtime"], "metric": manifest["metric"]["name"]}
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            continue
    return found
