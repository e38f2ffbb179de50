"""The plan: which stages a recipe needs, what each depends on, and what cannot work, told before hours of training.

Imports neither torch nor a backend, so that a run whose stages are all finished takes no time.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from . import data, host, imported, imports, plugins, quantize, run_folder
from .backends import backend_of, packages_of
from .errors import BadInput, Missing
from .names import nearest
from .quantize import adapter_base, dialects
from .recipe import Model, Recipe
from .run_folder import fingerprint
from .targets import Target, load_target, name_of

# what a stage's result depends on beside the recipe: edgekd's own source, and the packages that do the arithmetic
_CODE = {
    "model": ("models", "preprocess.py", "data", "augment.py", "tasks", "text", "distill"),
    "graphs": ("export/onnx.py", "export/graph.py", "models", "preprocess.py", "tasks", "text"),
    "quantize": ("quantize",),
    "network": ("quantize", "export/onnx.py", "export/graph.py", "models/saving.py"),
    "export": ("export", "backends"),
    "verify": ("verify.py", "verdict.py", "parity.py", "divergence.py", "imported.py", "backends"),
    "bench": ("bench", "backends", "devices"),
}
_PACKAGES = {
    "model": ("torch", "numpy", "timm", "transformers"),
    "graphs": ("torch", "onnx", "onnxscript"),
    "quantize": ("nncf", "onnx", "onnxruntime"),
    "network": ("torch", "onnx", "onnxscript"),
    "export": ("onnx",),
    "verify": ("torch", "onnxruntime"),
    "bench": (),
}


@dataclass(frozen=True)
class Step:
    """A stage to be: its name, the folder it fills (relative to the run), and the fingerprint of all it depends on."""

    name: str
    folder: str
    fingerprint: str


@dataclass(frozen=True)
class Refusal:
    """A variant that a target cannot take, and why."""

    target: str
    variant: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """A recipe, where its run lives, and its stages in order.

    only: names of the targets to work for, all when empty. inputs: what data, teacher and student were, as hashes.
    """

    recipe: Recipe
    out: Path
    targets: tuple[Target, ...]
    steps: tuple[Step, ...]
    refusals: tuple[Refusal, ...] = ()
    recipe_file: str = ""
    kind: str = "compress"
    only: tuple[str, ...] = ()
    inputs: dict[str, str | None] = field(default_factory=dict)
    roles: dict[str, str] = field(default_factory=dict)

    def step(self, name: str) -> Step:
        """Return the step of that name."""
        return next(step for step in self.steps if step.name == name)

    def pairs(self) -> list[tuple[Target, str]]:
        """Return every (target, variant) that is to become an artifact."""
        refused = {(r.target, r.variant) for r in self.refusals}
        return [(t, v.name) for t in self.targets for v in self.recipe.quantize if (t.name, v.name) not in refused]

    def wanted(self) -> list[Target]:
        """Return the targets to work for."""
        return [target for target in self.targets if not self.only or target.name in self.only]

    def wanted_pairs(self) -> list[tuple[Target, str]]:
        """Return the (target, variant) pairs to work for."""
        wanted = self.wanted()
        return [(target, variant) for target, variant in self.pairs() if target in wanted]

    def cached(self, step: Step) -> bool:
        """Say whether a step is finished in the run folder already."""
        return run_folder.finished(self.out, step.folder, step.fingerprint) is not None


def plan(
    recipe: Recipe, out: Path, recipe_file: str = "", only: Sequence[str] = (), known: dict[str, str | None] | None = None
) -> Plan:
    """Lay out the stages of `edgekd compress`. Raises BadInput or Missing for what cannot work.

    known: hashes of data, teacher and student from the manifest of a run, for those that are no longer where they were:
    what was made from them is still good.
    """
    targets = tuple(load_target(name) for name in recipe.targets)
    refusals = tuple(_refusals(recipe, targets))
    for variant in recipe.quantize:  # before the targets: what no method makes, no other target takes
        if reason := quantize.refuses(variant):
            raise BadInput(f"quantize `{variant.name}`: {reason}")
    for target in targets:
        mine = [r for r in refusals if r.target == target.name]
        if len(mine) == len(recipe.quantize):
            reasons = "\n".join(f"  {r.variant}: {r.reason}" for r in mine)
            raise BadInput(f"target `{target.name}` can take none of the variants:\n{reasons}{without(targets, [target.name])}")
    _check_devices(recipe, targets)
    _check_adapters(recipe)
    local = [target for target in targets if target.name not in recipe.bench.devices]  # a device says itself how many it takes
    if local and (recipe.bench.threads or 1) > 4 * host.usable_cores():
        raise BadInput(
            f"bench.threads: {recipe.bench.threads} on a machine with {host.usable_cores()} cores; leave it out, or give fewer"
        )
    _need_packages(targets)
    inputs = _inputs(recipe, known or {})
    names = tuple(name_of(name) for name in only)
    return Plan(
        recipe,
        out,
        targets,
        tuple(_steps(recipe, out, targets, refusals, inputs)),
        refusals,
        recipe_file,
        only=names,
        inputs=inputs,
    )


def without(targets: Iterable[Target], refused: Collection[str]) -> str:
    """Return the line that says how to go on without the targets that refuse; "" where none would be left."""
    left = [target.name for target in targets if target.name not in refused]
    return f"\nTo go on without: --set 'targets=[{', '.join(left)}]'" if left else ""


def plan_training(recipe: Recipe, out: Path, role: str, recipe_file: str = "") -> Plan:
    """Lay out `edgekd train`: an ordinary supervised run for the teacher or the student."""
    model = getattr(recipe, role)
    if recipe.like == "text-embedding":
        raise BadInput("text-embedding learns from a teacher alone, without labels: use `edgekd distill`")
    if model is None:
        raise BadInput(f"the recipe has no {role} to train: add `{role}: {{model: ...}}`, or give --model")
    check_model_files(role, model.model_copy(update={"weights": None}))
    if recipe.train.lora:
        adapter_base.check(model.model_copy(update={"weights": None}), "train.lora")
    made = fingerprint(
        "train", role, *_adapters(recipe.train.lora, model.adapter), _settings(recipe.train), data.fingerprint(recipe.data, recipe.reads_text), model_fingerprint(model.model_copy(update={"weights": None})),
        _plain(recipe.preprocess), recipe.seed, _code("model"), *_task(recipe)[1:],
    )  # fmt: skip
    return Plan(recipe, out, (), (Step("train", "model", made),), (), recipe_file, "train", roles={"train": role})


def _inputs(recipe: Recipe, known: dict[str, str | None]) -> dict[str, str | None]:
    def one(name: str, read: Callable[[], str]) -> str | None:
        try:
            return read()
        except (BadInput, OSError):
            if known.get(name) is None:
                raise
            return known[name]

    def of(role: str, model: Model) -> str:
        check_model_files(role, model)
        return model_fingerprint(model)

    teacher, student = recipe.teacher, recipe.student
    return {
        "data": one("data", lambda: data.fingerprint(recipe.data, recipe.reads_text)),
        "teacher": one("teacher", lambda: of("teacher", teacher)) if teacher else None,
        "student": one("student", lambda: of("student", student)),
    }


def _steps(
    recipe: Recipe, out: Path, targets: tuple[Target, ...], refusals: Iterable[Refusal], inputs: dict[str, str | None]
) -> Iterable[Step]:
    samples, teacher = inputs["data"], inputs["teacher"]
    shared = [samples, _plain(recipe.preprocess), recipe.seed, *_task(recipe)]
    distill = recipe.distill
    if distill and any(o.kind != "task" for o in distill.objectives) and distill.teacher == "cached":
        outputs = sorted(getattr(o, "teacher", o.kind) for o in distill.objectives if o.kind != "task")
        cache = fingerprint("teacher-cache", shared, teacher, _plain(distill.augment), distill.views, outputs, _code("model"))
        yield Step("teacher-cache", "teacher_cache", cache)
    student = fingerprint(
        "student", shared, inputs["student"], _settings(distill) if distill else None,
        teacher if distill or recipe.student.teacher_layers else None, *_adapters(distill and distill.lora, recipe.student.adapter),
        _code("model"),
    )  # fmt: skip
    yield Step("distill" if distill else "student", "student", student)
    if teacher:
        yield Step("score/teacher", "scores/teacher", fingerprint("score", shared, teacher, _code("model")))
    yield Step("score/student", "scores/student", fingerprint("score", student))
    graphs = fingerprint("graphs", student, _code("graphs"))
    yield Step("graphs", "graphs", graphs)
    variants: dict[str, str] = {}
    for variant in recipe.quantize:
        settings = _plain(variant)
        made_from: list[Any] = [narrow(variant, targets), dialects.wanted(variant.scheme, targets), _code("quantize")]
        if quantize.from_the_network(variant):
            settings.pop("calibration")
            made_from = [quantize.opset_for(targets, variant.scheme), _code("network")]
        if variant.trains:
            lessons = [(method, _settings(training)) for method, training in variant.lessons(recipe.teaching)]
            made_from += [teacher, lessons, _code("model"), *_adapters("lora" in variant.methods)]
        variants[variant.name] = fingerprint("quantize", graphs, samples, settings, *made_from)
        yield Step(f"quantize/{variant.name}", f"variants/{variant.name}", variants[variant.name])
    refused = {(r.target, r.variant) for r in refusals}
    exported: dict[tuple[str, str], str] = {}
    for target in targets:
        for name in (v.name for v in recipe.quantize if (target.name, v.name) not in refused):
            # check.py judges by them on the device
            tolerance = [recipe.gate.max_error, recipe.gate.min_sqnr_db, recipe.gate.min_fp16_sqnr_db]
            runtime = packages_of(target.backend)
            made = fingerprint("export", variants[name], target.fingerprint, samples, tolerance, runtime, _code("export"))
            exported[target.name, name] = made
            yield Step(f"export/{target.name}/{name}", f"targets/{target.name}/{name}", made)
    for (target_name, name), made in exported.items():
        here = _here(next(target for target in targets if target.name == target_name))
        brought = imported.stored(out, target_name, name)
        device = run_folder.file_hash(brought) if brought else None
        judged = fingerprint("verify", made, teacher, _plain(recipe.gate), here, device, _code("verify"))
        yield Step(f"verify/{target_name}/{name}", f"verdicts/{target_name}/{name}", judged)
    for target in targets:
        mine = {f"{t}/{v}": made for (t, v), made in exported.items() if t == target.name}
        clock = {**_plain(recipe.bench), "devices": recipe.bench.devices.get(target.name)}
        timed = fingerprint("bench", mine, clock, _here(target), _code("bench"))
        yield Step(f"bench/{target.name}", f"measurements/{target.name}", timed)


def _check_devices(recipe: Recipe, targets: tuple[Target, ...]) -> None:
    """Raise BadInput where `bench.devices` names a target that the recipe has not, or an address that is none."""
    from .devices import open_device

    names = [target.name for target in targets]
    for name, address in recipe.bench.devices.items():
        if name not in names:
            raise BadInput(
                f"bench.devices: `{name}` is no target of this recipe{nearest(name, names)}; it has {', '.join(names)}"
            )
        open_device(address)


def _check_adapters(recipe: Recipe) -> None:
    """Raise BadInput or Missing where the student is to learn by adapters, and cannot."""
    if recipe.distill and recipe.distill.lora:
        adapter_base.check(recipe.student, "distill.lora")
    for variant in recipe.quantize:
        if "lora" in variant.methods:
            adapter_base.check(None if recipe.distill else recipe.student, f"quantize `{variant.name}`")


def _adapters(*asked: Any) -> list[str]:
    """What a result depends on beside the rest where adapters are asked for."""
    return [run_folder.code_fingerprint(("quantize/lora.py",)), f"peft {_version('peft')}"] if any(asked) else []


def narrow(variant: Any, targets: tuple[Target, ...]) -> tuple[bool, str]:
    """Decide whether weights keep to 7 bits (the overflow fix), and why."""
    from .quantize.post_training import overflow_fix

    return overflow_fix(variant, targets)


def _refusals(recipe: Recipe, targets: tuple[Target, ...]) -> Iterable[Refusal]:
    for target in targets:
        for variant in recipe.quantize:
            if reason := backend_of(target.backend).refuses(variant.scheme, target):
                yield Refusal(target.name, variant.name, reason)


def _need_packages(targets: tuple[Target, ...]) -> None:
    missing = {t.name: reason for t in targets if (reason := backend_of(t.backend).missing())}
    if missing:
        raise Missing("\n".join(f"target `{name}`: {reason}" for name, reason in missing.items()))


def check_model_files(role: str, model: Model) -> None:
    """Check that the files which a model names are there. Raises BadInput."""
    if model.weights and not model.weights.is_file():
        raise BadInput(
            f"{role}.weights: no file {model.weights}. Train one with `edgekd train RECIPE --model {role}`, or mend the path"
        )
    if model.adapter:
        adapter_base.check(model, f"{role}.adapter")
        if not (model.adapter / "adapter_config.json").is_file():
            raise BadInput(
                f"{role}.adapter: no adapter_config.json in {model.adapter}; give the folder that save_pretrained() of peft wrote"
            )
    if model.model.startswith("py:"):
        file, colon, function = model.model.removeprefix("py:").rpartition(":")
        if not colon or not file or not function:
            raise BadInput(f"{role}.model: {model.model} names no function. Write py:FILE.py:FUNCTION")
        if not Path(file).is_file():
            raise BadInput(f"{role}.model: no file {file}. Write py:FILE.py:FUNCTION, the file relative to the recipe")


def model_fingerprint(model: Model) -> str:
    """Return a hash of what a model is: its code, its weights' content, its preprocessing and classes, wherever they lie."""
    kind, _, rest = model.model.partition(":")
    if kind == "py":
        file = Path(rest.rpartition(":")[0])
        source: Any = [run_folder.file_hash(path) for path in imports.sources(file)], rest.rpartition(":")[2]
    elif Path(rest if kind == "hf" else model.model).is_dir():
        source = _folder_hash(Path(rest if kind == "hf" else model.model))
    else:
        source = model.model
    weights = run_folder.file_hash(model.weights) if model.weights else None
    folder = Path(model.tokenizer) if model.tokenizer else None
    tokens = _folder_hash(folder) if folder and folder.is_dir() else model.tokenizer
    told = _plain(model.preprocess), list(model.classes or ()), model.arguments, model.pooling, model.teacher_layers
    return fingerprint(source, weights, tokens, *told, *([_folder_hash(model.adapter)] if model.adapter else []))


def _folder_hash(folder: Path) -> str:
    """Hash the small files of a model folder by content and the large ones by size and time."""
    digest = hashlib.sha256()
    for file in sorted(p for p in folder.rglob("*") if p.is_file() and ".partial" not in p.parts):
        facts = file.stat()
        content = run_folder.file_hash(file) if facts.st_size < 1 << 26 else f"{facts.st_size} {facts.st_mtime_ns}"
        digest.update(f"{file.relative_to(folder)}\0{content}\0".encode())
    return digest.hexdigest()


def _here(target: Target) -> list[Any]:
    """What a verdict and a measurement depend on beside the files: what this machine executes them with."""
    means = asdict(backend_of(target.backend).executes(target))
    return [host.cpu_model(), sorted(host.cpu_flags()), host.usable_cores(), means, packages_of(target.backend)]


def _code(stage: str) -> list[str]:
    return [run_folder.code_fingerprint(_CODE[stage]), *(f"{name} {_version(name)}" for name in _PACKAGES[stage])]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "-"


def _plain(model: Any) -> Any:
    return model.model_dump(mode="json") if model is not None else None


def _settings(training: Any) -> Any:
    """The training settings that change the result: how often to save does not."""
    settings = training.model_dump(mode="json", exclude={"checkpoint_minutes"})
    others = plugins.versions(plugins.OBJECTIVES, [goal.kind for goal in getattr(training, "objectives", ())])
    return {**settings, "others": others} if others else settings


def _task(recipe: Recipe) -> list[str]:
    return [recipe.task, *plugins.versions(plugins.TASKS, [recipe.task])]
