"""What the report says: the manifest turned into words, numbers and charts, section by section. No HTML here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import yaml

from ..bench.definitions import DEFINITIONS
from .answer import answer
from .background import environment, pipeline, training
from .formats import Metric
from .gate import STAGE_MEANING, gate
from .lessons import lessons
from .speed import comparisons, speed
from .tradeoff import models, tradeoff, variants
from .weights import weights
from .words import Manifest, targets


def view(manifest: Manifest, samples: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return all that the template shows. samples: path as in the manifest -> (blocks, calls) of seconds, those that are there."""
    metric = Metric(manifest["metric"])
    colours = {name: i for i, name in enumerate(manifest["variants"])}
    return {
        "title": _name(manifest),
        "kind": manifest.get("kind", "compress"),
        "metric": metric,
        "answers": [answer(manifest, target, metric) for target in targets(manifest)],
        "trained": _trained(manifest, metric),
        "models": models(manifest, metric),
        "gate": gate(manifest, metric),
        "stages_meaning": STAGE_MEANING,
        "tradeoff": tradeoff(manifest, metric, colours),
        "variants": variants(manifest, metric, colours),
        "weights": weights(manifest, colours),
        "refused": manifest.get("refused", []),
        "speed": speed(manifest, samples, colours),
        "comparisons": comparisons(manifest),
        "training": training(manifest, metric),
        "untrained": _untrained(manifest),
        "lessons": lessons(manifest, metric, colours),
        "pipeline": pipeline(manifest),
        "environment": environment(manifest),
        "recipe": yaml.safe_dump(dict(manifest["recipe"]), sort_keys=False, allow_unicode=True, width=88),
        "definitions": DEFINITIONS,
        "manifest": manifest,
    }


def _name(manifest: Manifest) -> str:
    parts = [p for p in manifest["recipe_file"].replace("\\", "/").split("/") if p]
    if parts and parts[-1].startswith("recipe."):
        parts.pop()
    return parts[-1].removesuffix(".yaml").removesuffix(".yml") if parts else "edgekd run"


def _trained(manifest: Manifest, metric: Metric) -> str | None:
    if manifest.get("kind") != "train":
        return None
    for role, score in manifest["scores"].items():
        if score is not None:
            return f"The {role} scores {metric.score(score)} {metric.name} on the test samples."
    return "The model is trained; it has no score yet." if manifest["training"] else "The model is not trained yet."


def _untrained(manifest: Manifest) -> str:
    """Say why there is no training to show."""
    done = {stage["name"] for stage in manifest["stages"]}
    if manifest.get("kind") == "train":
        return "Not trained yet: the run stopped before its training was finished. edgekd train goes on from here."
    if manifest["recipe"].get("distill") and "distill" not in done:
        return "Not trained yet: the run stopped before the student was finished. edgekd compress goes on from here."
    return "Nothing was trained: the student was taken as it came."
