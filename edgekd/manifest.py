"""The manifest: the one record of a run, put together from what each finished stage left in its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from . import __version__, run_folder
from .plan import Plan
from .report.formats import duration, throughput
from .report.words import kind_of, of_the_model, one_way, unusual
from .run_folder import Stage
from .targets import covers
from .tasks import task_of

SCHEMA = 1


class Record:
    """The stages finished so far, and the manifest they add up to."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.stages: list[Stage] = []
        if not ((plan.out / "manifest.json").exists() and run_folder.has_stages(plan.out)):
            self.write()  # before anything else: the folder is this recipe's from now on, whenever we are killed

    def add(self, stage: Stage) -> None:
        """Note a finished stage; the manifest on disk follows whenever something new was made."""
        self.stages.append(stage)
        if not stage.cached:
            self.write()

    def write(self) -> None:
        """Write manifest.json."""
        run_folder.write_manifest(self.plan.out, self.manifest)

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest, schema 1 (manifest.schema.json)."""
        plan, recipe = self.plan, self.plan.recipe
        by_name = {stage.name: stage for stage in self.stages}
        variants = {name: self._json(by_name, f"quantize/{name}", "variant.json") for name in (v.name for v in recipe.quantize)}
        artifacts, verdicts, measurements, comparisons = {}, {}, [], []
        for target, variant in plan.pairs():
            key = f"{target.name}/{variant}"
            if made := self._json(by_name, f"export/{key}", "artifact.json"):
                artifacts[key] = {"files": made["files"], "graphs": made["graphs"]}
            if judged := self._json(by_name, f"verify/{key}", "verdict.json"):
                verdicts[key] = judged
        for target in plan.targets:
            if timed := self._json(by_name, f"bench/{target.name}", "bench.json"):
                measurements += timed["measurements"]
                comparisons += timed["comparisons"]
        scores = self._scores(by_name)
        return {
            "schema": SCHEMA,
            "edgekd": __version__,
            "kind": plan.kind,
            "recipe": recipe.model_dump(mode="json"),
            "recipe_file": plan.recipe_file,
            "inputs": plan.inputs,
            "seed": recipe.seed,
            "host": _host(),
            "stages": [
                {"name": s.name, "fingerprint": s.fingerprint, "seconds": s.seconds, "cached": s.cached} for s in self.stages
            ],
            "metric": asdict(task_of(recipe.task).metric),
            "scores": {role: facts["score"] if facts else None for role, facts in scores.items()},
            "models": {
                role: {k: facts[k] for k in ("reference", "parameters")} | {"bytes": 4 * facts["parameters"]} if facts else None
                for role, facts in scores.items()
            },
            "training": self._json(by_name, "distill", "history.json") or self._json(by_name, "train", "history.json"),
            "variants": {
                name: _variant(made, [v for key, v in verdicts.items() if key.endswith(f"/{name}")])
                for name, made in variants.items()
                if made
            },
            "artifacts": artifacts,
            "refused": [vars(refusal) for refusal in plan.refusals],
            "verdicts": verdicts,
            "chosen": {
                t.name: choose(t, plan, verdicts, measurements, comparisons)
                for t in plan.targets
                if f"bench/{t.name}" in by_name
            },
            "measurements": measurements,
            "comparisons": comparisons,
            "gate": recipe.gate.model_dump(mode="json"),
        }

    def _scores(self, by_name: dict[str, Stage]) -> dict[str, Any]:
        if self.plan.kind == "train":
            made = self._json(by_name, "train", "score.json")
            return {role: made if role == self.plan.roles["train"] else None for role in ("teacher", "student")}
        return {role: self._json(by_name, f"score/{role}", "score.json") for role in ("teacher", "student")}

    def _json(self, by_name: dict[str, Stage], stage: str, file: str) -> Any:
        if stage not in by_name:
            return None
        path = by_name[stage].folder / file
        return json.loads(path.read_text()) if path.is_file() else None


def _variant(made: dict[str, Any], verdicts: list[dict[str, Any]]) -> dict[str, Any]:
    score = next((v["scores"].get("variant") for v in verdicts if v["scores"].get("variant") is not None), None)
    return {**made, "score": score}


def choose(
    target: Any,
    plan: Plan,
    verdicts: Mapping[str, Any],
    measurements: Sequence[Mapping[str, Any]],
    comparisons: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Return the variant to ship to a target: the fastest that passed, measured where it was, else by the target's rule.

    Only what was timed in one way counts (report.words.one_way). Of those that the clock cannot tell from the fastest it is the smallest: weights alone in few bits save size, and no time.
    """
    status = {v: verdicts.get(f"{target.name}/{v}", {}).get("status") for t, v in plan.pairs() if t.name == target.name}
    passed = [v for v, told in status.items() if told == "passed"]
    if not passed:
        none = set(status.values()) == {"not_verified"}
        return {"variant": None, "why": "none could be verified here" if none else "no variant passed the gate", "by": "rule"}
    alike, comparisons = one_way(target.name, measurements, comparisons)
    found = {m["artifact"].split("/", 1)[1]: m for m in reversed(alike)}
    timed = [v for v in passed if v in found]
    if timed:
        fastest = min(timed, key=lambda v: _cost(found[v]))
        even = [v for v in timed if v == fastest or _as_fast(f"{target.name}/{v}", f"{target.name}/{fastest}", comparisons)]
        # what compares alike with the fastest may still be seen to be slower than another of these
        even = [
            v for v in even if not any(_slower(f"{target.name}/{v}", f"{target.name}/{other}", comparisons) for other in even)
        ]
        best = min(even, key=lambda v: _bytes(plan, target, v))
        ms = _speed(found[best])
        if len(timed) == 1:
            why = f"the only one that passed, {ms}"
        elif len(even) > 1:
            why = f"the smallest of {len(even)} that are as fast as each other, {ms}"
        elif any(_unsure(f"{target.name}/{v}", f"{target.name}/{best}", comparisons) for v in timed):
            why = f"the lowest median of {len(timed)} that passed, {ms}; the clock cannot tell whether it is the fastest"
        else:
            why = f"the fastest of {len(timed)} that passed, {ms}"
        return {"variant": best, "why": why, "by": "measurement"}
    labels = {v.name: v.scheme.label for v in plan.recipe.quantize}
    smallest_first = sorted(passed, key=lambda v: _bytes(plan, target, v))
    order = [v for wanted in target.prefer for v in smallest_first if covers([wanted], labels[v])]
    best = (order or smallest_first)[0]
    return {"variant": best, "why": f"not measured here; `{target.name}` prefers {best}", "by": "rule"}


def _cost(m: Mapping[str, Any]) -> float:
    """Return seconds: of a warm call; with streams, of all that ran at once, as their comparisons count."""
    return float(m["batch"] / m["throughput_per_s"] if m.get("streams") else m["warm"]["median_s"])


def _speed(m: Mapping[str, Any]) -> str:
    if m.get("streams"):
        return f"{throughput(m['throughput_per_s'])} a second, {unusual(m)}"
    return ", ".join(said for said in (f"{duration(m['warm']['median_s'])} a call", unusual(m)) if said)


def _as_fast(a: str, b: str, comparisons: Sequence[Mapping[str, Any]]) -> bool:
    """Say whether the clock saw no difference: between the two, or, of two candidates, in how they compare with their control."""
    from .bench.statistics import SAME

    for c in comparisons:
        if {c["control"], c["candidate"]} == {a, b}:
            return bool(c["verdict"].startswith("no difference"))
    one, other = (next((c for c in comparisons if c["candidate"] == name and c["low"] is not None), None) for name in (a, b))
    if one is None or other is None or one["control"] != other["control"]:
        return False
    near = max(one["ratio"], other["ratio"]) <= (1 + SAME) * min(one["ratio"], other["ratio"])
    return bool(near or (one["low"] <= other["high"] and other["low"] <= one["high"]))


def _unsure(a: str, b: str, comparisons: Sequence[Mapping[str, Any]]) -> bool:
    return any({c["control"], c["candidate"]} == {a, b} and kind_of(c) == "unsure" for c in comparisons)


def _slower(candidate: str, control: str, comparisons: Sequence[Mapping[str, Any]]) -> bool:
    return any((c["candidate"], c["control"]) == (candidate, control) and "SLOWER" in c["verdict"] for c in comparisons)


def _bytes(plan: Plan, target: Any, variant: str) -> int:
    folder: Path = plan.out / "targets" / target.name / variant
    files = [file for file in folder.rglob("*") if file.is_file() and file != folder / "artifact.json"]
    return sum(file.stat().st_size for file in files if of_the_model(file.name))


def _host() -> dict[str, Any]:
    from .host import describe

    return describe()
