"""Timing as a stage of a run, and as `edgekd bench` for files that belong to none."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..devices import open_device
from ..errors import BadInput
from . import suite
from .planned import Known, cannot, cells, know, possible, scenario_of, threads_for
from .things import Thing, thing_from
from .timing import measure

if TYPE_CHECKING:
    from ..export.graph import Interfaces
    from ..plan import Plan
    from ..recipe import Bench
    from ..targets import Target

RECORD = suite.RECORD


def fill(plan: Plan, target: Target, folder: Path) -> None:
    """Time a target's artifacts into `folder`: bench.json {measurements, comparisons, skipped}, and the raw samples.

    skipped: why nothing was timed (this machine is not the device, or has not its runtime), else null. Sample paths are relative
    to the run. Timed on the device that the recipe names for the target, else on this machine.
    """
    from ..backends import backend_of

    home = plan.step(f"bench/{target.name}").folder
    address = plan.recipe.bench.devices.get(target.name)
    means = backend_of(target.backend).executes(target)
    reason = None if address or means.seconds_are_the_devices else means.why or f"{target.title} is not this machine"
    told: dict[str, Any] = {"measurements": [], "comparisons": [], "skipped": reason}
    if not reason:
        folders = [plan.out / "targets" / target.name / name for t, name in plan.pairs() if t.name == target.name]
        things = [replace(thing_from(artifact), target_file=target.file or None) for artifact in folders]
        device = open_device(address) if address else None
        settings = plan.recipe.bench
        told["measurements"], told["comparisons"] = suite.with_a_bar(
            lambda progress: measure(things, settings, folder, progress, device=device)
        )
        for one in told["measurements"]:
            one |= {"samples": f"{home}/{one['samples']}", "times": f"{home}/{one['times']}"}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECORD).write_text(json.dumps(told, indent=1, allow_nan=False), encoding="utf-8")


def check(plan: Plan, graphs: Interfaces) -> None:
    """Reach the devices of `bench.devices`, before hours of training and not after. graphs: of the student, name -> interface.

    Raises Missing for one that is not there, BadInput for one that cannot time what its target's artifacts will be, or not so.
    """
    settings = plan.recipe.bench
    wrong = []
    for address in dict.fromkeys(settings.devices.values()):
        with open_device(address) as device:
            try:
                threads_for(settings, device.describe())
            except BadInput as error:
                wrong.append(f"{address}: {error}")
            for target in plan.targets:
                if settings.devices.get(target.name) != address:
                    continue
                # as far as a device looks at files, a name has to do; those of other backends are looked into
                suffix = {"onnxruntime": ".onnx", "onnxruntime_mobile": ".ort", "web": ".onnx"}.get(target.backend)
                files = {name: Path(f"{name}{suffix}") for name in graphs} if suffix else {}
                thing = Thing(target.name, target.backend, files, target=target.name, target_file=target.file or None)
                if reason := device.takes(thing):
                    wrong.append(f"{target.name} on {address}: {reason}")
                one = Known(thing, None, {}, "", 0, scenario_of(graphs))
                lacking = dict.fromkeys(s for cell in cells([one], settings) for s in possible(cell, device)[1].values())
                wrong += [f"{target.name}: {cannot(address, scenario)}" for scenario in lacking]
    if wrong:
        raise BadInput("bench.devices: " + "\nbench.devices: ".join(wrong))


def measure_paths(
    paths: Sequence[Path],
    settings: Sequence[str] = (),
    folder: Path = Path("runs/bench"),
    devices: Sequence[str] = (),
    targets: Sequence[str] = (),
    compare: bool = True,
    command: str = "",
    records: Sequence[str | Path] = (),
    threads: Sequence[int] = (),
) -> dict[str, Any]:
    """Time artifact folders, whole run folders and bare files side by side, on each device in turn; all are compared with one control.

    settings: such as "bench.min_seconds=3". Samples and bench.json land in `folder`, in the place of an earlier call's. The same
    file given twice is timed twice: then the answer should be that no difference is seen. targets: of run folders, only these.
    records: what kits wrote on devices, taken in beside what is measured now. threads: each thing is timed with each number of them.
    Raises BadInput, Missing and process.WorkerDied.
    """
    chosen = tuple(dict.fromkeys(devices)) or (("local",) if paths else ())
    for address in chosen:
        open_device(address)
    things = with_threads(suite.things_of(paths, targets), threads)
    asked = suite.Suite(things, chosen, (settings_of(settings),), compare)
    brought = []
    if records:
        from . import kits

        brought = [kits.read(Path(record)) for record in records]
    told: dict[str, Any] = suite.with_a_bar(
        lambda progress: suite.run(asked, folder, progress, command=command, brought=brought)
    )
    return told


def with_threads(things: Sequence[Thing], threads: Sequence[int]) -> tuple[Thing, ...]:
    """Return each thing once for each number of threads, named after it; things as they are where no number is given.

    Raises BadInput for a number below 1, or one given twice.
    """
    for count in threads:
        if count < 1 or threads.count(count) > 1:
            raise BadInput(f"--threads {count}: {'at least 1' if count < 1 else 'given twice'}")
    if not threads:
        return tuple(things)
    return tuple(
        replace(thing, label=f"{thing.label} ({count} thread{'s' if count > 1 else ''})", threads=count)
        for thing in things
        for count in threads
    )


def write_kit(
    paths: Sequence[Path], file: Path, settings: Sequence[str] = (), targets: Sequence[str] = (), threads: Sequence[int] = ()
) -> dict[str, Any]:
    """Write one file that times things on a device (see kits.py); return {"kit", "things", "needs"}.

    threads: each thing is timed with each number of them.
    """
    from . import kits

    return kits.write(know(with_threads(suite.things_of(paths, targets), threads)), settings_of(settings), file)


def measure_suite(file: Path, folder: Path, fresh: bool = False, command: str = "") -> dict[str, Any]:
    """Time what a suite's file lists into `folder`, going on from where an earlier call was stopped, unless `fresh`."""
    asked = suite.read(file)
    told: dict[str, Any] = suite.with_a_bar(
        lambda progress: suite.run(asked, folder, progress, resume=not fresh, command=command)
    )
    return told


def settings_of(settings: Sequence[str]) -> Bench:
    """Return the clock's settings from such as "bench.min_seconds=3". Raises BadInput for any that is not of the clock."""
    wrong = next((s for s in settings if not s.startswith("bench.")), None)
    if wrong:
        raise BadInput(f"--set {wrong}: only bench.* matters to files that belong to no run, such as bench.min_seconds=3")
    from ..recipe_file import from_manifest

    return from_manifest({"data": {"source": "-"}, "student": {"model": "-"}}, Path("--set"), settings).bench
