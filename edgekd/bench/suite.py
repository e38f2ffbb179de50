"""Several things on several devices in several scenarios, in one go: finished cells are kept, so an interrupted run goes on.

A suite is a YAML file:

    things: [../runs/digits, mobilenet.onnx]     # as for `edgekd bench`, from where the file lies
    devices: [local, "ssh://pi@raspberrypi", browser]
    scenarios: [latency, {streams: [2]}, {sustained_minutes: 5}]   # each: settings of `bench`, besides those below
    bench: {min_seconds: 2}
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import Field, ValidationError

from .. import __version__
from ..devices import Device, open_device
from ..errors import BadInput, Missing
from ..recipe import Bench, Strict
from ..run_folder import write_text
from .process import WorkerDied
from .things import Thing, thing_from
from .timing import Cell, Progress, cells, know, run_cell

if TYPE_CHECKING:
    from .kits import Brought

RECORD = "bench.json"
SCHEMA = 1


class SuiteFile(Strict):
    """What a suite's file says."""

    things: tuple[str, ...] = Field(min_length=1)
    devices: tuple[str, ...] = Field(("local",), min_length=1)
    scenarios: tuple[str | dict[str, Any], ...] = Field(("latency",), min_length=1)
    bench: dict[str, Any] = Field({})


@dataclass(frozen=True)
class Suite:
    """Things, the addresses of devices, and how they are timed: each of `settings` in turn."""

    things: tuple[Thing, ...]
    devices: tuple[str, ...] = ("local",)
    settings: tuple[Bench, ...] = (Bench(),)
    compare: bool = True


def read(file: Path) -> Suite:
    """Read a suite's file. Raises BadInput with the key that is wrong."""
    try:
        told = yaml.safe_load(file.read_text(encoding="utf-8"))
        if not isinstance(told, dict):
            raise BadInput(f"{file}: a suite has `things` and, where it wants, `devices`, `scenarios` and `bench`")
        suite = SuiteFile.model_validate(told)
        settings = [_settings(one, suite.bench) for one in suite.scenarios]
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{file}: cannot be read ({error})") from None
    except yaml.YAMLError as error:
        raise BadInput(f"{file}: not YAML ({' '.join(str(error).split())})") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise BadInput(f"{file}: {'.'.join(str(part) for part in first['loc'])}: {first['msg']}") from None
    for address in suite.devices:
        open_device(address)
    paths = [Path(thing) if Path(thing).is_absolute() else file.parent / thing for thing in suite.things]
    return Suite(things_of(paths), suite.devices, tuple(settings))


def _settings(scenario: str | dict[str, Any], common: Mapping[str, Any]) -> Bench:
    """Return how one scenario is timed. One that adds streams or minutes leaves the plain latency to the others."""
    if isinstance(scenario, str):
        if scenario != "latency":
            raise BadInput(
                f"scenario `{scenario}`: it is `latency`, or a table such as {{streams: [2]}} or {{sustained_minutes: 5}}"
            )
        return Bench.model_validate(dict(common))
    more = "streams" in scenario or "sustained_minutes" in scenario
    return Bench.model_validate({"latency": not more, **common, **scenario})


def things_of(paths: Sequence[Path], targets: Sequence[str] = ()) -> tuple[Thing, ...]:
    """Return the things at paths, every artifact of a run folder among them; the same path twice is two things.

    targets: of run folders, only artifacts for these.
    """
    found: list[Path] = []
    for path in paths:
        artifacts = sorted(record.parent for record in path.glob("targets/*/*/artifact.json"))
        chosen = [one for one in artifacts if not targets or one.parent.name in targets]
        if artifacts and not chosen:
            raise BadInput(f"{path}: has no artifacts for {', '.join(targets)}")
        found += chosen or [path]
    things = [thing_from(path) for path in found]
    labels = [thing.label for thing in things]
    named: list[Thing] = []
    for path, thing in zip(found, things, strict=True):
        label = thing.label if labels.count(thing.label) == 1 else str(path)
        again = sum(label == other.label or other.label.startswith(f"{label} (") for other in named)
        named.append(replace(thing, label=f"{label} ({again + 1})" if again else label))
    return tuple(named)


def run(
    suite: Suite,
    folder: Path,
    progress: Progress | None = None,
    resume: bool = False,
    command: str = "",
    brought: Sequence[Brought] = (),
) -> dict[str, Any]:
    """Time a suite into `folder`: bench.json, raw samples, report.html; return what bench.json says.

    resume: cells that an earlier run finished, of the same files and settings, are kept. A device that cannot be reached or is
    lost, and a thing that fails, stop neither the other devices nor the other things; what is left is said at the end:
    raises Missing or WorkerDied, all else kept. brought: what kits measured elsewhere. progress(share done, what is being done).
    """
    tell = progress or (lambda share, what: None)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cells").mkdir(exist_ok=True)
    kept = _Kept(folder, resume)
    for record in brought:
        kept.bring(record)
    lost: list[Missing | WorkerDied] = []
    planned = len(suite.devices) * len(suite.settings)
    for place, address in enumerate(suite.devices):
        try:
            with open_device(address) as device:
                kept.device(device, suite)
                things = _taken(device, suite.things, kept)
                for number, settings in enumerate(suite.settings):

                    def part(share: float, what: str, done: int = place * len(suite.settings) + number) -> None:
                        tell((done + share) / planned, what)

                    lost += _time(device, things, settings, suite, kept, part)
        except Missing as error:
            lost.append(error)
            kept.skip(None, address, None, str(error))
    told = kept.finish(suite, command)
    tell(1.0, "done")
    if lost:
        again = "" if not resume else " The same command goes on with what is left."
        kind = type(lost[0])
        raise kind(
            "\n".join(dict.fromkeys(str(one) for one in lost))
            + (f"\nWhat was measured is in {folder}.{again}" if told["measurements"] else "")
        )
    if not told["measurements"]:
        reasons = dict.fromkeys(f"{one['artifact']} on {one['device']}: {one['reason']}" for one in told["skipped"])
        raise Missing("nothing could be timed:\n" + "\n".join(reasons))
    return told


def _taken(device: Device, things: Sequence[Thing], kept: _Kept) -> list[Thing]:
    """Return the things that a device takes; the others are noted with the reason."""
    taken = []
    for thing in things:
        if reason := device.takes(thing):
            kept.skip(thing.label, device.address, None, reason)
        else:
            taken.append(thing)
    return taken


def _time(
    device: Device, things: Sequence[Thing], settings: Bench, suite: Suite, kept: _Kept, tell: Progress
) -> list[Missing | WorkerDied]:
    """Time all cells of one device at one setting, or take those that are kept; return the failures of things."""
    known = know(things)
    groups = [known] if suite.compare else [[one] for one in known]
    planned = [cell for group in groups if group for cell in cells(group, settings)]
    failed: list[Missing | WorkerDied] = []
    for place, cell in enumerate(planned):

        def part(share: float, what: str, place: int = place, cell: Cell = cell) -> None:
            tell((place + share) / len(planned), f"{device.address} {cell.name}: {what}")

        if cell.scenario not in device.scenarios() or (cell.streams and "streams" not in device.scenarios()):
            for one in cell.known:
                wanted = "streams" if cell.streams else cell.scenario
                kept.skip(one.thing.label, device.address, wanted, f"{device.address} cannot run the scenario `{wanted}`")
            continue
        key = kept.key(device.address, cell, settings)
        if kept.take(key):
            continue
        try:
            measurements, comparisons = run_cell(cell, device, settings, kept.scratch, part, one_control=True)
        except WorkerDied as error:
            failed.append(error)
            for one in cell.known:
                kept.skip(one.thing.label, device.address, cell.scenario, str(error))
            continue
        kept.add(key, measurements, comparisons)
        if any(one["roofline"] for one in measurements):
            kept.devices[device.address]["rates"] = device.rates(measurements[0]["threads"])
    return failed


class _Kept:
    """What was measured so far: one file a cell in folder/cells, by a key of what was timed and how."""

    def __init__(self, folder: Path, resume: bool) -> None:
        self.folder, self.resume = folder, resume
        self.scratch = folder / "cells" / ".partial"
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.cells: dict[str, dict[str, Any]] = {}
        self.devices: dict[str, dict[str, Any]] = {}
        self.skipped: list[dict[str, Any]] = []

    def device(self, device: Device, suite: Suite) -> None:
        """Note what a device is."""
        self.devices[device.address] = {
            "address": device.address,
            "title": device.title,
            "host": device.describe(),
            "rates": None,
        }

    def skip(self, artifact: str | None, device: str, scenario: str | None, reason: str) -> None:
        self.skipped.append({"artifact": artifact, "device": device, "scenario": scenario, "reason": reason})

    def key(self, address: str, cell: Cell, settings: Bench) -> str:
        things = [(one.thing.label, one.digest, one.thing.target_file) for one in cell.known]
        told = [
            __version__,
            address,
            cell.name,
            cell.scenario,
            cell.batch,
            cell.streams,
            things,
            settings.model_dump(mode="json"),
        ]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:24]

    def take(self, key: str) -> bool:
        """Take a finished cell, if this run may and its samples are there."""
        try:
            cell = json.loads((self.folder / "cells" / f"{key}.json").read_text(encoding="utf-8")) if self.resume else None
        except (OSError, ValueError):
            return False
        if cell is None or not all((self.folder / m["samples"]).is_file() for m in cell["measurements"]):
            return False
        self.cells[key] = cell
        return True

    def add(self, key: str, measurements: list[dict[str, Any]], comparisons: list[dict[str, Any]]) -> None:
        """Keep a finished cell; its samples get names of their own."""
        for one in measurements:
            for kind in ("samples", "times"):
                name = f"{one[kind].removesuffix('.npy')}-{key[:8]}.npy"
                (self.scratch / one[kind]).replace(self.folder / name)
                one[kind] = name
        self.cells[key] = {"measurements": measurements, "comparisons": comparisons}
        write_text(self.folder / "cells" / f"{key}.json", json.dumps(self.cells[key], indent=1, allow_nan=False))

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
            self.add(key, *made(self.scratch, address))

    def finish(self, suite: Suite, command: str) -> dict[str, Any]:
        """Write bench.json and the page, and remove the samples and cells of earlier runs that are no part of this."""
        told = {
            "schema": SCHEMA,
            "when": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "command": command,
            "folder": str(self.folder),
            "devices": self.devices,
            "measurements": [m for cell in self.cells.values() for m in cell["measurements"]],
            "comparisons": [c for cell in self.cells.values() for c in cell["comparisons"]],
            "skipped": self.skipped,
            "scores": scores(suite.things),
        }
        _forget(self.folder, told, set(self.cells))
        write_text(self.folder / RECORD, json.dumps(told, indent=1, allow_nan=False))
        from ..report import write_bench

        write_bench(self.folder)
        return told


def _forget(folder: Path, told: Mapping[str, Any], cells_kept: set[str]) -> None:
    """Remove what an earlier bench.json names and this one does not, and nothing else."""
    try:
        earlier = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        names = {str(one[key]) for one in earlier["measurements"] for key in ("samples", "times") if one.get(key)}
    except (OSError, ValueError, KeyError, TypeError):
        names = set()
    for name in names - {one[key] for one in told["measurements"] for key in ("samples", "times")}:
        if name == Path(name).name and name.endswith(".npy"):
            (folder / name).unlink(missing_ok=True)
    for file in (folder / "cells").glob("*.json"):
        if file.stem not in cells_kept:
            file.unlink()


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


def with_a_bar(work: Callable[[Progress], Any]) -> Any:
    """Call work(progress) with a progress bar."""
    from ..progress import bar

    with bar("bench", 100) as advance:
        shown = 0

        def progress(share: float, what: str) -> None:
            nonlocal shown
            now = max(shown, round(100 * share))
            advance(now - shown, what)
            shown = now

        return work(progress)
