"""How the variants were trained: the score before and after, epoch by epoch, and what looks wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import charts
from .formats import Metric, number
from .svg import COLOURS
from .words import METHODS, Manifest, adapters


def lessons(manifest: Manifest, metric: Metric, colours: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return a card for each training of each variant, in the order of the chain."""
    student = (manifest["training"] or {}).get("best_validation")
    return [
        {
            "name": name,
            "colour": colours[name] % COLOURS,
            "method": METHODS.get(lesson["method"], lesson["method"]),
            **_lesson(lesson, metric, student),
        }
        for name, v in manifest["variants"].items()
        for lesson in v.get("facts", {}).get("training") or []
    ]


def _lesson(lesson: Mapping[str, Any], metric: Metric, student: float | None) -> dict[str, Any]:
    epochs, best = lesson["epochs"], lesson["best_epoch"]
    scores = [lesson["initial_validation"], *(e["validation"] for e in epochs)]
    before, after = metric.score(scores[0]), metric.score(lesson["best_validation"])
    count = f"{len(epochs)} epoch{'' if len(epochs) == 1 else 's'}"
    settings = lesson["settings"]
    how = [f"{number(lesson['steps'])} steps"]
    if "batch_size" in settings:
        how[0] += f" of {settings['batch_size']}"
    if "optimizer" in settings and "learning_rate" in settings:
        how.append(f"{settings['optimizer']}, highest rate {settings['learning_rate']:g}")
    if lesson.get("lora"):
        how.append(f"{adapters(lesson['lora'])}; scored in full precision")
    return {
        "before": before,
        "after": after,
        "kept": f"epoch {best} of {len(epochs)} kept" if best else f"{count}, none better: kept as it began",
        "student": metric.score(student) if student is not None else None,
        "how": "; ".join(how),
        "warnings": lesson["warnings"],
        "validation": charts.curves(
            {"validation": scores},
            "epoch",
            metric.tick,
            mark=best,
            reference=("student", student) if student is not None else None,
            first=0,
        ),
        "losses": charts.losses(epochs) if epochs else None,
    }
