"""Reads the record that a kit brought back (kits.py), and makes measurements of it. All errors are BadInput."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..devices import kit_main
from ..errors import BadInput
from ..recipe import Bench
from . import roofline
from .cost import Cost, NodeCost
from .kit_check import Wrong, check
from .things import GraphFacts, Thing
from .timing import Cell, Comparison, Known, Measurement, Where, outcome

SCHEMA = 2
"""1: without launches."""

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


def read(file: Path) -> Brought:
    """Read what a kit wrote. Raises BadInput for a file that is none, is damaged or was edited, or of another edgekd's kit."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"), parse_constant=_no_number)
    except OSError as error:
        raise BadInput(f"{file}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{file}: not what a kit writes, or cut off ({error})") from None
    if not isinstance(record, dict) or not {"schema", "plan", "cells", "sha256"} <= set(record):
        raise BadInput(f"{file}: not what a kit writes; make a kit with `edgekd bench THING... --kit FILE.pyz`")
    if record["schema"] != SCHEMA:
        version = shown(str(record.get("edgekd")))[:40]
        raise BadInput(f"{file}: written by a kit of edgekd {version}, whose format is another; make the kit anew")
    seal = record.pop("sha256")
    try:
        text = kit_main.sealed(record)
        if json.loads(text)["sha256"] != seal:
            raise BadInput(f"{file}: damaged or edited since the kit wrote it; take the file as it was, or run the kit again")
        check(text)
        return _brought(record, str(seal), file)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise _wrong(file, error) from None


def shown(text: str) -> str:
    """Return what a runtime printed without its colours and whatever else a terminal or a page would obey."""
    plain = re.sub(r"\x1b\[[0-9;?]*[ -/]*[@-~]", "", text)
    return "".join(c if c.isprintable() or c == "\n" else " " for c in plain)[:4000]


def _brought(record: dict[str, Any], seal: str, file: Path) -> Brought:
    plan, host = record["plan"], record["host"]
    settings = Bench.model_validate(plan["settings"])
    known = [_known(one) for one in plan["things"]]
    address = f"imported: {record['name']}"
    device = {"address": address, "title": host["cpu"], "host": host, "rates": record["rates"]}
    made: dict[str, Made] = {}
    skipped = [{"artifact": one["label"], "scenario": None, "reason": shown(one["reason"])} for one in record["skipped"]]
    for cell in record["cells"]:
        planned = plan["cells"][cell["place"]]
        found = Cell(planned["scenario"], tuple(known[index] for index in cell["things"]), planned["batch"], planned["streams"])
        if cell.get("told") is None:
            reason = shown(cell["error"])
            skipped += [{"artifact": one.thing.label, "scenario": found.scenario, "reason": reason} for one in found.known]
            continue
        costs = [planned["costs"][planned["things"].index(index)] for index in cell["things"]]
        key = hashlib.sha256(f"{seal} {cell['place']}".encode()).hexdigest()[:24]
        where = functools.partial(Where, host=host, threads=record["threads"])
        made[key] = functools.partial(_made, file, found, cell["told"], costs, where, record["rates"], settings)
    return Brought(address, device, made, skipped)


def _made(
    file: Path,
    cell: Cell,
    told: Mapping[str, Any],
    costs: Sequence[Any],
    where: Callable[[str], Where],
    rates: dict[str, Any] | None,
    settings: Bench,
    folder: Path,
    address: str,
) -> tuple[list[Measurement], list[Comparison]]:
    """Turn what a cell told into measurements; what it costs was counted when the kit was made. Raises BadInput."""
    there = where(address)
    try:
        measurements, comparisons = outcome(cell, told, there, settings, folder, one_control=True)
        for one, counted in zip(measurements, costs, strict=True):
            if counted and rates and one["threads"] == there.threads:  # the rates are of that number
                whole = Cost(**{**counted, "nodes": tuple(NodeCost(**node) for node in counted["nodes"])})
                one["roofline"] = roofline.roofline(whole, rates, one["warm"]["median_s"], there.threads)
        json.dumps([measurements, comparisons], allow_nan=False)  # numbers that make no sense together
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, MemoryError) as error:
        raise _wrong(file, error) from None
    return measurements, comparisons


def _known(told: Mapping[str, Any]) -> Known:
    facts = None if told["facts"] is None else GraphFacts(**{**told["facts"], "inputs": tuple(told["facts"]["inputs"])})
    thing = Thing(
        told["label"], told["backend"], {}, target=told["target"], control=told["control"], threads=told.get("threads")
    )
    return Known(thing, facts, {}, told["digest"], told["size"], told["scenario"])


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _wrong(file: Path, error: Exception) -> BadInput:
    said = f"no {error}" if isinstance(error, KeyError) else shown(str(error)).partition("\n")[0]
    key = f"{error.key}: " if isinstance(error, Wrong) else ""
    return BadInput(f"{file}: not what a kit writes ({key}{said[:300]}); run the kit again, or make it anew")
