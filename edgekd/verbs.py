"""The verbs of the command line as functions: each returns plain data, raises EdgekdError, and prints nothing but progress."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import imported, pipeline, run_folder
from . import plan as planning
from .errors import BadInput, Missing
from .names import nearest
from .plan import Plan
from .recipe import Recipe, load
from .recipe_file import from_manifest, locate
from .targets import name_of, target_names

Manifest = dict[str, Any]
Settings = Sequence[str]
ALL = "all"
"""Stands for every target that ships, where targets are named."""


def compress(
    recipe: str | Path, out: str | Path | None = None, settings: Settings = (), targets: Sequence[str] = ()
) -> Manifest:
    """Go the whole way from a recipe to verified, measured files in a run folder; return the manifest.

    An artifact that fails the gate does not raise: see `failed`. Raises BadInput, Diverged, Missing.
    """
    return pipeline.run(_plan(recipe, out, settings, targets))


def dry_run(
    recipe: str | Path, out: str | Path | None = None, settings: Settings = (), targets: Sequence[str] = ()
) -> dict[str, Any]:
    """Return what `compress` would do: every stage with whether it is finished already, refusals, estimated sizes."""
    from .estimate import estimate

    plan = _plan(recipe, out, settings, targets)
    run_folder.check(plan.out, plan.recipe.model_dump(mode="json"), plan.kind)
    return {
        "recipe": plan.recipe_file,
        "out": str(plan.out),
        "stages": [{"name": s.name, "fingerprint": s.fingerprint, "cached": plan.cached(s)} for s in plan.steps],
        "refused": [vars(r) for r in plan.refusals],
        "estimates": estimate(plan),
    }


def train(recipe: str | Path, out: str | Path | None = None, role: str = "teacher", settings: Settings = ()) -> Manifest:
    """Fit the recipe's teacher (or student) on labels alone; the weights land in OUT/model."""
    if role not in ("teacher", "student"):
        raise BadInput(f"--model {role}: teacher or student{nearest(role, ['teacher', 'student'])}")
    read, file = load(recipe, settings), locate(recipe)
    home = Path(out) if out else Path("runs") / f"{_name(file)}-{role}"
    return pipeline.train(planning.plan_training(read, home, role, str(file)), role)


def distill(recipe: str | Path, out: str | Path | None = None, settings: Settings = ()) -> Manifest:
    """Fit the student to the teacher and score both; the weights land in OUT/student."""
    return pipeline.run(_plan(recipe, out, settings, ()), last="distill")


def quantize(run: str | Path, settings: Settings = ()) -> Manifest:
    """Make the variants of the student in a run folder."""
    return pipeline.run(_plan_of_run(run, settings, ()), first="quantize", last="quantize")


def export(run: str | Path, settings: Settings = (), targets: Sequence[str] = ()) -> Manifest:
    """Write every variant in a run folder for every target."""
    return pipeline.run(_plan_of_run(run, settings, targets), first="export", last="export")


def verify(
    run: str | Path, settings: Settings = (), targets: Sequence[str] = (), records: Sequence[str | Path] = ()
) -> Manifest:
    """Judge the artifacts in a run folder by the gate, on their runtimes. records: what check.py --json wrote on devices."""
    manifest = run_folder.read_manifest(Path(run))
    brought = imported.bring(Path(run), [Path(record) for record in records])
    if targets and brought:  # what a device says changes its target's verdict: one that is not judged again is out of date
        named = {name_of(target): target for target in manifest["recipe"]["targets"]}
        names = (name.partition("/")[0] for name in brought)
        targets = [*targets, *(named.get(name, name) for name in names)]
    return pipeline.run(_plan_of_run(run, settings, targets), first="verify", last="verify")


def bench(
    things: Sequence[str | Path],
    settings: Settings = (),
    targets: Sequence[str] = (),
    devices: Sequence[str] = (),
    out: str | Path | None = None,
    compare: bool = True,
    fresh: bool = False,
    command: str = "",
    records: Sequence[str | Path] = (),
    threads: Sequence[int] = (),
) -> dict[str, Any]:
    """Measure a run folder's artifacts, any artifact folders and files side by side, or a suite of them.

    One run folder without devices: as a stage of the run, into its manifest. Else into `out`, on each of the devices in turn.
    A suite (.yaml) goes on from where it was stopped, unless fresh. records: what kits wrote on devices, to be put beside what is
    measured now (if anything is). threads: of the runtime; of several numbers, each thing is timed with each, alternately.
    """
    paths = [Path(thing) for thing in things]
    settings, threads = _of_threads(settings, threads)
    if len(paths) == 1 and not (devices or out or records) and (paths[0] / "manifest.json").is_file():
        without_effect(
            f"{paths[0]}: timed as a stage of its run (give -o to time it beside)",
            **{"--no-compare": not compare, "--fresh": fresh, "--threads more than once": threads},
        )
        return pipeline.run(_plan_of_run(paths[0], settings, targets), first="bench", last="bench")
    from .bench import measure_paths, measure_suite

    if not paths and not records:
        raise BadInput("nothing to time: give a run folder, artifact folders or files, a suite (.yaml), or --import")
    if any(path.suffix in (".yaml", ".yml") for path in paths):
        if len(paths) > 1 or settings or targets or devices or threads:
            raise BadInput(f"{paths[0]}: a suite says itself what is timed, where and how: give it alone (and -o)")
        without_effect(f"{paths[0]}: a suite is timed alone", **{"--import": records, "--no-compare": not compare})
        return measure_suite(paths[0], Path(out or f"runs/{paths[0].stem}"), fresh, command)
    without_effect("only a suite goes on from finished cells; all else is measured anew", **{"--fresh": fresh})
    if not paths:
        unused = {"--device": devices, "--target": targets, "--no-compare": not compare, "--threads": threads}
        without_effect("no thing is given to be timed beside what is imported", **unused, **{"settings of the clock": settings})
    return measure_paths(paths, settings, Path(out or "runs/bench"), devices, targets, compare, command, records, threads)


def _of_threads(settings: Settings, threads: Sequence[int]) -> tuple[Settings, Sequence[int]]:
    """Return the settings with a single number of threads among them; several numbers stay, for things to be timed with each."""
    return ([*settings, f"bench.threads={threads[0]}"], ()) if len(threads) == 1 else (settings, threads)


def without_effect(why: str, **options: object) -> None:
    """Raise BadInput for options that were given and would do nothing. options: as they are written -> what was given."""
    if given := [name for name, value in options.items() if value]:
        raise BadInput(f"{why}: leave out {', '.join(given)}")


def bench_kit(
    things: Sequence[str | Path],
    file: str | Path,
    settings: Settings = (),
    targets: Sequence[str] = (),
    threads: Sequence[int] = (),
) -> dict[str, Any]:
    """Write one file that times things on any device with Python; return {"kit", "things", "needs"}.

    threads: of the runtime; of several numbers, each thing is timed with each, alternately.
    """
    from .bench import stage

    settings, threads = _of_threads(settings, threads)
    return stage.write_kit([Path(thing) for thing in things], Path(file), settings, targets, threads)


def devices(addresses: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Try devices (none given: those that are found from here); return address, title, reached, why, what each is."""
    from .devices import found

    return found.probe(addresses)


def report(run: str | Path) -> Path:
    """Write RUN/report.html again from the manifest; return its path."""
    from . import report as html

    run_folder.read_manifest(Path(run))
    return html.write(Path(run))


def targets() -> list[dict[str, Any]]:
    """Return the known device classes: name, title, backend, schemes, what is missing to convert, how this machine executes them."""
    from .backends import Means, backend_of
    from .targets import all_targets

    found = []
    for target in all_targets():
        try:
            missing = _unusable(target.backend)
            means = backend_of(target.backend).executes(target)
        except Exception as error:  # one runtime's broken installation must not hide the others
            missing = f"{target.backend} does not work here: {(str(error).splitlines() or [repr(error)])[0]}"
            means = Means(None, missing)
        found.append(
            {
                "name": target.name,
                "title": target.title,
                "backend": target.backend,
                "stores": list(target.stores),
                "accelerates": list(target.accelerates),
                "precision": target.precision,
                "limits": dict(target.limits),
                "source": target.source,
                "missing": missing,
                "verified_by": means.by,
                "why": means.why,
            }
        )
    return found


def models() -> list[dict[str, Any]]:
    """Return the pairs that ship: name, teacher, student, data, targets."""
    from .resources import listing

    found = []
    for path in listing("models", "*/recipe.yaml"):
        recipe = load(path)
        found.append(
            {
                "name": f"models/{path.parent.name}",
                "task": recipe.task,
                "data": recipe.data.source,
                "variants": [variant.name for variant in recipe.quantize],
                "targets": list(recipe.targets),
            }
        )
    return found


def failed(manifest: Manifest) -> str:
    """Return one line for each artifact that failed the gate; an empty string when none did."""
    verdicts = manifest.get("verdicts", {})
    return "\n".join(f"{name} failed the gate: {v['reason']}" for name, v in verdicts.items() if v["status"] == "failed")


def home_of(recipe: str | Path, out: str | Path | None) -> Path:
    """Return the run folder: `out`, or runs/NAME-OF-RECIPE."""
    return Path(out) if out else Path("runs") / _name(locate(recipe))


def _plan(recipe: str | Path, out: str | Path | None, settings: Settings, targets: Sequence[str]) -> Plan:
    read, targets = load(recipe, settings), _every(targets)
    return _tried(planning.plan(_with(read, targets), home_of(recipe, out), str(locate(recipe)), targets))


def _plan_of_run(run: str | Path, settings: Settings, targets: Sequence[str]) -> Plan:
    home, targets = Path(run), _every(targets)
    manifest = run_folder.read_manifest(home)
    if manifest.get("kind") == "train":
        raise BadInput(
            f"{home}: made by `edgekd train`; give its weights to a recipe (weights: {home / 'model/model.safetensors'})"
        )
    read = from_manifest(manifest["recipe"], home / "manifest.json", settings)
    return _tried(planning.plan(_with(read, targets), home, manifest["recipe_file"], targets, manifest.get("inputs")))


def _tried(plan: Plan) -> Plan:
    """Import the runtimes that unfinished stages need: an installation can be there and broken. Raises Missing."""
    of_targets = [step for step in plan.steps if step.name.startswith(("export/", "verify/", "bench/"))]
    ahead = {s.name.split("/")[1] for s in of_targets if not run_folder.made_from(plan.out, s.folder, s.fingerprint)}
    reasons = {t.name: reason for t in plan.wanted() if t.name in ahead and (reason := _unusable(t.backend))}
    if reasons:
        raise Missing("\n".join(f"target `{name}`: {reason}" for name, reason in reasons.items()))
    return plan


def _unusable(name: str) -> str | None:
    """Say why a backend cannot convert here, its imports included; None when it can."""
    from .backends import backend_of, installed

    backend = backend_of(name)
    imports = getattr(backend, "IMPORTS", ())
    return backend.missing() or next((reason for module in imports if (reason := installed.broken(module))), None)


def _every(targets: Sequence[str]) -> Sequence[str]:
    """Write `all` out: every target that ships, and those asked for beside."""
    return list(dict.fromkeys([*target_names(), *(t for t in targets if t != ALL)])) if ALL in targets else targets


def _with(recipe: Recipe, targets: Sequence[str]) -> Recipe:
    """Add the targets asked for that the recipe does not have: the others stay, with what was made for them. Raises BadInput."""
    asked = [str(Path(t).resolve()) if t.endswith(".toml") else t for t in targets]
    known: dict[str, str] = {}
    for target in dict.fromkeys((*recipe.targets, *asked)):
        if (other := known.setdefault(name_of(target), target)) != target:
            raise BadInput(
                f"two targets are named `{name_of(target)}`, {other} and {target}: each names a folder, so leave one out or "
                "rename its file"
            )
    return recipe.model_copy(update={"targets": tuple(known.values())})


def _name(file: Path) -> str:
    return file.resolve().parent.name if file.name == "recipe.yaml" else file.stem
