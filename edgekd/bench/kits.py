"""Kits: one file that times things on a device that cannot be reached from here, and what it brought back.

`python3 kit.pyz` there needs numpy and the runtime alone, and writes one JSON file, the record (devices/kit_main.py):
{"schema", "edgekd", "plan": what was to be timed, "name": of the machine, "when", "host": environment.describe(), "threads", "rates",
"skipped": [{"label", "reason"}], "cells": [{"place": in the plan, "things": [index in the plan], "told": what schedule.run returned |
"error"}], "sha256": of all else}. That hash finds what was damaged or edited; it is no signature.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from .. import __version__
from ..devices import kit_backends, kit_main, packing
from ..errors import BadInput
from ..recipe import Bench
from . import roofline
from .cost import Cost, NodeCost, cost
from .scenarios import batch_of, random_inputs
from .things import GraphFacts, Thing
from .timing import Cell, Comparison, Known, Measurement, Where, cells, job_of, outcome

SCHEMA = 1
LONGEST = 10**15
"""Nanoseconds that no block takes: eleven days."""

Made = Callable[[Path, str], tuple[list[Measurement], list[Comparison]]]


@dataclass(frozen=True)
class Brought:
    """What a kit measured. device: as in bench.json. cells: key -> made(folder for samples, address) -> (measurements, comparisons).

    skipped: [{"artifact", "scenario", "reason"}].
    """

    address: str
    device: dict[str, Any]
    cells: Mapping[str, Made]
    skipped: Sequence[dict[str, Any]]


def write(known: Sequence[Known], settings: Bench, file: Path) -> dict[str, Any]:
    """Write a kit; return {"kit", "things": labels, "needs": what pip has to install there}. Same things, same bytes.

    Raises BadInput for a thing that cannot travel, and where nothing is given.
    """
    if not known:
        raise BadInput("nothing to time: give a run folder, artifact folders or files")
    refused = [f"{one.thing.label}: {why}" for one in known if (why := packing.refuses(one.thing.backend, one.thing.files))]
    if refused:
        raise BadInput("a kit cannot time everything that was given:\n" + "\n".join(refused))
    if not file.parent.is_dir():
        raise BadInput(f"{file}: there is no folder {file.parent}")
    planned: list[dict[str, Any]] = []
    files: dict[str, Path | bytes] = {}
    with TemporaryDirectory(prefix="edgekd-kit-") as scratch:
        for place, cell in enumerate(cells(known, settings)):
            inputs = Path(scratch) / str(place)
            inputs.mkdir()
            job, travel = packing.travelling(job_of(cell, settings, 1, inputs))
            files |= travel
            planned.append(
                {
                    "name": cell.name,
                    "scenario": cell.scenario,
                    "batch": cell.batch,
                    "streams": cell.streams,
                    "things": [known.index(one) for one in cell.known],
                    "job": job,
                    "costs": [_cost(one, cell) for one in cell.known] if settings.roofline else [None] * len(cell.known),
                }
            )
        plan = {
            "schema": SCHEMA,
            "edgekd": __version__,
            "settings": settings.model_dump(mode="json"),
            "threads": settings.threads,
            "roofline": any(one for cell in planned for one in cell["costs"]),
            "things": [_described(one) for one in known],
            "cells": planned,
            "files": {name: packing.sha256(Path(str(path))) for name, path in files.items()},
        }
        code = packing.code()
        partial = file.with_name(f".{file.name}.partial")
        try:
            with partial.open("wb") as out:
                out.write(b"#!/usr/bin/env python3\n")
                packing.pack(code, {**files, "plan.json": json.dumps(plan, sort_keys=True).encode()}, out)
            partial.chmod(0o755)
            partial.replace(file)
        except OSError as error:
            raise BadInput(f"{file}: cannot be written ({error.strerror})") from None
        finally:
            partial.unlink(missing_ok=True)
    modules = dict.fromkeys(["numpy", *(module for one in known for module in kit_backends.RUNTIMES[one.thing.backend])])
    needs = [kit_backends.DISTRIBUTIONS[module][0] for module in modules]
    return {"kit": str(file), "things": [one.thing.label for one in known], "needs": needs}


def read(file: Path) -> Brought:
    """Read what a kit wrote. Raises BadInput for a file that is none, is damaged or was edited, or of a newer edgekd."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"), parse_constant=_no_number)
    except OSError as error:
        raise BadInput(f"{file}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{file}: not what a kit writes, or cut off ({error})") from None
    if not isinstance(record, dict) or not {"schema", "plan", "cells", "sha256"} <= set(record):
        raise BadInput(f"{file}: not what a kit writes; make a kit with `edgekd bench THING... --kit FILE.pyz`")
    if record["schema"] != SCHEMA:
        raise BadInput(
            f"{file}: written by a kit of edgekd {str(record.get('edgekd'))[:40]}, whose format is another; make the kit anew"
        )
    seal = record.pop("sha256")
    if json.loads(kit_main.sealed(record))["sha256"] != seal:
        raise BadInput(f"{file}: damaged or edited since the kit wrote it; take the file as it was, or run the kit again")
    try:
        return _brought(record, str(seal))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise _wrong(file, error) from None


def _brought(record: dict[str, Any], seal: str) -> Brought:
    plan, host = record["plan"], record["host"]
    settings = Bench.model_validate(plan["settings"])
    known = [_known(one) for one in plan["things"]]
    address = f"imported: {_name(record['name'])}"
    device = {"address": address, "title": _name(host["cpu"]), "host": host, "rates": record["rates"]}
    threads = _whole(record["threads"], 1, 1 << 16)
    made: dict[str, Made] = {}
    skipped = [{"artifact": _name(one["label"]), "scenario": None, "reason": str(one["reason"])} for one in record["skipped"]]
    for cell in record["cells"]:
        planned = plan["cells"][_whole(cell["place"], 0)]
        chosen = [planned["things"].index(index) for index in cell["things"]]
        found = Cell(planned["scenario"], tuple(known[index] for index in cell["things"]), planned["batch"], planned["streams"])
        if "told" not in cell:
            reason = str(cell["error"])
            skipped += [{"artifact": one.thing.label, "scenario": found.scenario, "reason": reason} for one in found.known]
            continue
        check(cell["told"], found)
        costs = [planned["costs"][at] for at in chosen]
        key = hashlib.sha256(f"{seal} {cell['place']}".encode()).hexdigest()[:24]
        made[key] = functools.partial(_made, found, cell["told"], costs, host, threads, record["rates"], settings)
    return Brought(address, device, made, skipped)


def _made(
    cell: Cell,
    told: Mapping[str, Any],
    costs: Sequence[Any],
    host: Mapping[str, Any],
    threads: int,
    rates: dict[str, Any] | None,
    settings: Bench,
    folder: Path,
    address: str,
) -> tuple[list[Measurement], list[Comparison]]:
    """Turn what a cell told into measurements; what it costs was counted when the kit was made."""
    measurements, comparisons = outcome(cell, told, Where(address, host, threads), settings, folder, one_control=True)
    for one, counted in zip(measurements, costs, strict=True):
        if counted and rates:
            whole = Cost(**{**counted, "nodes": tuple(NodeCost(**node) for node in counted["nodes"])})
            one["roofline"] = roofline.roofline(whole, rates, one["warm"]["median_s"], threads)
    return measurements, comparisons


def check(told: Mapping[str, Any], cell: Cell) -> None:
    """Raise ValueError, TypeError or KeyError where what a cell told is not what schedule.run returns for it."""
    if [one["label"] for one in told["timed"]] != [one.thing.label for one in cell.known]:
        raise ValueError("other things were timed than were to be")
    for one in told["timed"]:
        for name in ("load_s", "first_call_s"):
            _seconds(one[name])
        _seconds(one["warm_up"]["seconds"])
        for name in ("peak_memory_bytes", "peak_memory_above_runtime_bytes"):
            if one[name] is not None:
                _whole(one[name], 0, 1 << 60)
        for provider, nodes in one["providers"].items():
            _name(provider), _whole(nodes, 0)
        for package, version in one["runtime"].items():
            _name(package), _name(version)
        if not one["blocks"]:
            raise ValueError(f"{one['label']}: no calls")
        for block in one["blocks"]:
            _block(block)
    if not isinstance(told["watched"], list) or not all(isinstance(note, str) for note in told["around"]["notes"]):
        raise TypeError("notes")


def _block(block: Mapping[str, Any]) -> None:
    calls = block["nanoseconds"]
    if not isinstance(calls, list) or not calls:
        raise ValueError("a block without calls")
    for nanoseconds in calls:
        _whole(nanoseconds, 1)
    _whole(block["wall"], 1)
    _whole(block["at"], -(2**63), 2**63)
    if block.get("joules") is not None:
        _seconds(block["joules"])
    for values in block["marks"].values():
        if len(values) != len(calls):
            raise ValueError("parts of more or fewer calls than were made")
        for value in values:
            for nanoseconds in value if isinstance(value, list) else [value]:
                _whole(nanoseconds, 0)


def _whole(value: Any, least: int, most: int = LONGEST) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{str(value)[:40]} is no number that can be here")
    return value


def _seconds(value: Any) -> None:
    if type(value) not in (int, float) or not 0 <= value < 1e9 or not math.isfinite(value):
        raise ValueError(f"{str(value)[:40]} are no seconds")


def _name(value: Any) -> str:
    if not isinstance(value, str) or not value.isprintable() or not 0 < len(value) <= 500:
        raise ValueError(f"{str(value)[:40]!r} is no name")
    return value


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _wrong(file: Path, error: Exception) -> BadInput:
    said = f"no {error}" if isinstance(error, KeyError) else str(error).partition("\n")[0]
    return BadInput(f"{file}: not what a kit writes ({said}); run the kit again, or make it anew")


def _described(one: Known) -> dict[str, Any]:
    """Return what the record has to say of a thing, so that the file itself need not be here when it comes back."""
    thing = one.thing
    told = {"label": thing.label, "backend": thing.backend, "target": thing.target, "control": thing.control}
    facts = None if one.facts is None else dataclasses.asdict(one.facts)
    return {**told, "digest": one.digest, "size": one.size, "scenario": one.scenario, "facts": facts}


def _known(told: Mapping[str, Any]) -> Known:
    digest = _name(told["digest"])
    if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise ValueError(f"{digest[:70]} is no SHA-256")
    facts = None if told["facts"] is None else GraphFacts(**{**told["facts"], "inputs": tuple(told["facts"]["inputs"])})
    target = None if told["target"] is None else _name(told["target"])
    thing = Thing(_name(told["label"]), _name(told["backend"]), {}, target=target, control=bool(told["control"]))
    return Known(thing, facts, {}, digest, _whole(told["size"], 0, 1 << 60), _name(told["scenario"]))


def _cost(one: Known, cell: Cell) -> dict[str, Any] | None:
    """Count what a call costs, where that can be counted: one ONNX graph, one stream."""
    if one.facts is None or cell.scenario != "single-stream" or cell.streams:
        return None
    ((graph, file),) = one.thing.files.items()
    inputs = one.thing.inputs.get(graph) or random_inputs(one.interfaces[graph]["inputs"], cell.batch)
    shapes = {name: list(value.shape) for name, value in batch_of(inputs, cell.batch).items()}
    return dataclasses.asdict(cost(file, shapes))
