"""Several things on several devices in several scenarios, in one go: finished cells are kept, so an interrupted run goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..devices import Device, open_device
from ..errors import BadInput, EdgekdError, Missing
from ..recipe import Bench
from .kept import RECORD, Kept
from .planned import cannot, possible
from .process import WorkerDied
from .suite_file import Suite, read, things_of
from .things import Thing
from .timing import Cell, Known, Progress, cells, know, run_cell, threads_for

if TYPE_CHECKING:
    from .kits import Brought

__all__ = ["RECORD", "Suite", "read", "run", "things_of", "with_a_bar"]


def run(
    suite: Suite,
    folder: Path,
    progress: Progress | None = None,
    resume: bool = False,
    command: str = "",
    brought: Sequence[Brought] = (),
) -> dict[str, Any]:
    """Time a suite into `folder`: bench.json, raw samples, report.html; return what bench.json says.

    resume: cells that an earlier run finished, of the same files, settings and device, are kept; of a device that cannot be reached
    now, all that it measured. A device that cannot be reached or is lost, and a thing that fails, stop neither the other devices nor
    the other things; what is left is said at the end: raises Missing, BadInput or WorkerDied, all else kept. Where nothing at all
    was measured, the folder is left as it was. brought: what kits measured elsewhere. progress(share done, what is being done).
    """
    tell = progress or (lambda share, what: None)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cells").mkdir(exist_ok=True)
    kept = Kept(folder, resume)
    for record in brought:
        kept.bring(record)
    failed: list[EdgekdError] = []
    unreached: list[str] = []
    planned = len(suite.devices) * len(suite.settings)
    for place, address in enumerate(suite.devices):
        try:
            with open_device(address) as device:
                kept.device(device)
                known, rates = know(_taken(device, suite.things, kept)), cache(device.rates)
                for number, settings in enumerate(suite.settings):

                    def part(share: float, what: str, done: int = place * len(suite.settings) + number) -> None:
                        tell((done + share) / planned, what)

                    _time(device, list(_cells(known, settings, suite)), settings, kept, part, rates, failed)
        except (Missing, BadInput) as error:
            failed.append(error)
            unreached.append(address)
            kept.skip(None, address, None, str(error))
            for settings in suite.settings:
                for cell in _cells(_readable(suite.things) if resume else [], settings, suite):
                    kept.take_up(address, cell, settings)
    if not kept.cells and not failed:
        reasons = dict.fromkeys(f"{one['artifact']} on {one['device']}: {one['reason']}" for one in kept.skipped)
        raise Missing("nothing could be timed:\n" + "\n".join(reasons))
    if kept.cells:
        told = kept.finish(suite.things, command, unreached)
        tell(1.0, "done")
    if failed:
        again = "" if not resume else " The same command goes on with what is left."
        problem = type(failed[0])(
            "\n".join(dict.fromkeys(str(one) for one in failed))
            + (f"\nWhat was measured is in {folder}.{again}" if kept.cells else "")
        )
        problem.told = told if kept.cells else None
        raise problem
    return told


def _taken(device: Device, things: Sequence[Thing], kept: Kept) -> list[Thing]:
    """Return the things that a device takes; the others are noted with the reason."""
    taken = []
    for thing in things:
        if reason := device.takes(thing):
            kept.skip(thing.label, device.address, None, reason)
        else:
            taken.append(thing)
    return taken


def _readable(things: Sequence[Thing]) -> list[Known]:
    """Return what is known of things whose files can be read here."""
    found = []
    for thing in things:
        try:
            found += know([thing])
        except BadInput:
            continue
    return found


def _cells(known: Sequence[Known], settings: Bench, suite: Suite) -> Iterator[Cell]:
    """Yield what is timed together: all things, or each alone."""
    for group in [known] if suite.compare else [[one] for one in known]:
        yield from cells(group, settings)


def _time(
    device: Device,
    planned: Sequence[Cell],
    settings: Bench,
    kept: Kept,
    tell: Progress,
    rates: Callable[[int], dict[str, Any] | None],
    failed: list[EdgekdError],
) -> None:
    """Time cells on a device, or take those that are kept; the failures of things are added to `failed`."""
    address = device.address
    try:
        threads_for(settings, kept.devices[address]["host"], [one.thing for cell in planned for one in cell.known])
    except BadInput as error:
        failed.append(error)
        kept.skip(None, address, None, str(error))
        return
    for place, cell in enumerate(planned):

        def part(share: float, what: str, place: int = place, cell: Cell = cell) -> None:
            tell((place + share) / len(planned), f"{address} {cell.name}: {what}")

        able, lacking = possible(cell, device)
        for label, scenario in lacking.items():
            kept.skip(label, address, scenario, cannot(address, scenario))
        while able is not None and not kept.take(address, able, settings):
            try:
                made = run_cell(able, device, settings, kept.scratch, part, one_control=True, rates=rates)
            except (WorkerDied, BadInput) as error:  # the others are timed without it
                failed.append(error)
                able = _without(able, error, address, kept)
                continue
            if held := next((one for one in made[0] if one["roofline"]), None):
                kept.devices[address]["rates"] = rates(held["threads"])
            kept.add(address, able, settings, made)
            break


def _without(cell: Cell, error: WorkerDied | BadInput, address: str, kept: Kept) -> Cell | None:
    """Return a cell without what failed in it, which is noted; None where that is all, or it is not known what failed."""
    label = getattr(error, "label", None)
    labels = [one.thing.label for one in cell.known]
    gone = [label] if label in labels else labels
    for each in gone:
        kept.skip(each, address, cell.scenario, str(error).removeprefix(f"{each}: "))
    left = tuple(one for one in cell.known if one.thing.label not in gone)
    return replace(cell, known=left) if left else None


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
