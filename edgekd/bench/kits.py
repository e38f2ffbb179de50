"""Kits: one file that times things on a device that cannot be reached from here, and what it brought back.

`python3 kit.pyz` there needs numpy and the runtime alone, and writes one JSON file, the record (devices/kit_main.py):
{"schema", "edgekd", "plan": what was to be timed, "name": of the machine, "when", "host": environment.describe(), "threads", "rates",
"skipped": [{"label", "reason"}], "cells": [{"place": in the plan, "things": [index in the plan], "told": what schedule.run returned |
"error"}], "sha256": of all else}. That hash finds what was damaged or edited; it is no signature. kit_reading.py takes it in,
kit_check.py says what is believed.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from .. import __version__
from ..devices import kit_backends, packing
from ..errors import BadInput
from ..recipe import Bench
from .cost import cost
from .kit_reading import SCHEMA, Brought, read
from .timing import Cell, Known, cells, input_shapes, job_of

__all__ = ["SCHEMA", "Brought", "read", "write"]


def write(known: Sequence[Known], settings: Bench, file: Path) -> dict[str, Any]:
    """Write a kit; return {"kit", "things": labels, "needs": what pip has to install there}. Same things, same bytes.

    Raises BadInput for a thing that cannot travel, and where nothing is given.
    """
    if not known:
        raise BadInput("nothing to time: give a run folder, artifact folders or files")
    if file.suffix != ".pyz":
        raise BadInput(f"--kit {file}: a kit is a Python archive; give it a name that ends in .pyz")
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


def _described(one: Known) -> dict[str, Any]:
    """Return what the record has to say of a thing, so that the file itself need not be here when it comes back."""
    thing = one.thing
    told = {
        "label": thing.label,
        "backend": thing.backend,
        "target": thing.target,
        "control": thing.control,
        "threads": thing.threads,
    }
    facts = None if one.facts is None else dataclasses.asdict(one.facts)
    return {**told, "digest": one.digest, "size": one.size, "scenario": one.scenario, "facts": facts}


def _cost(one: Known, cell: Cell) -> dict[str, Any] | None:
    """Count what a call costs, where that can be counted: one ONNX graph, one stream."""
    if one.facts is None or cell.scenario != "single-stream" or cell.streams:
        return None
    ((graph, file),) = one.thing.files.items()
    return dataclasses.asdict(cost(file, input_shapes(one, graph, cell.batch)))
