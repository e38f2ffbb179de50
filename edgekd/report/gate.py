"""The gate: the score from stage to stage, what was lost where, and how far outputs lie apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import charts
from .formats import DASH, Metric, digits, number, small
from .words import Manifest, providers, sentence, short, status, targets

KINDS = {"passed": "good", "failed": "bad", "not_verified": "unsure"}

STAGE_MEANING = {
    "teacher": "the teacher in torch",
    "student": "the student in torch",
    "variant": "the quantized student, in the exact arithmetic of its method",
    "file": "the shipped file, in exact arithmetic (every optimisation off)",
    "runtime": "the shipped file as the runtime executes it, or what stands for it here: the vendor's simulator, a reference interpreter",
    "device": "the golden samples on the device itself (check.py)",
}


def gate(manifest: Manifest, metric: Metric) -> dict[str, Any]:
    """Return a card, a row of scores and rows of parity for each artifact, and the rule they are held to."""
    cards, rows, parity = [], [], []
    for target in targets(manifest):
        mine = {k: v for k, v in manifest["verdicts"].items() if k.startswith(f"{target}/")}
        for key, v in mine.items():
            scores = v["scores"]
            domain, floor = score_axis({key: v}, manifest["gate"]["max_drop"], metric)
            cards.append(
                {
                    "target": target,
                    "variant": short(key),
                    "status": status(v),
                    "kind": KINDS[v["status"]],
                    "chart": charts.through_stages(scores, metric, domain, floor, v["lost_at"]) if scores else None,
                    "drop": metric.drop(v.get("drop")),
                    "interval": _drop_interval(v, metric),
                    "first": "teacher" if "teacher" in scores else "student",
                    "samples": number(v["samples"]),
                    "reason": sentence(v["reason"]),
                    "lost_at": v["lost_at"],
                    "divergence": _divergence(v["first_divergence"]),
                    "providers": providers(v["providers"]),
                }
            )
            cells = {stage: metric.score(scores.get(stage)) for stage in charts.STAGES}
            rows.append(
                {
                    "target": target,
                    "name": short(key),
                    **cells,
                    "lost_at": v["lost_at"],
                    "drop": metric.drop(v.get("drop")),
                    "interval": _drop_interval(v, metric),
                    "samples": number(v["samples"]),
                    "kind": KINDS[v["status"]],
                    "status": status(v),
                }
            )
            parity += [
                {"target": target, "variant": short(key), "stage": stage, **_parity(p)} for stage, p in v["parity"].items()
            ]
    gate = manifest["gate"]
    rule = f"An artifact may lose {metric.gate(gate['max_drop'])} of {metric.name}, from the first stage to the runtime."
    return {"cards": cards, "rows": rows, "parity": parity, "rule": rule, "limits": gate}


def score_axis(verdicts: Mapping[str, Any], max_drop: float, metric: Metric) -> tuple[tuple[float, float], float | None]:
    """Return a score axis that holds all of the verdicts, and the score below (or above) which the gate fails them."""
    known = [score for v in verdicts.values() for score in v["scores"].values()]
    if not known:
        return (0.0, 1.0), None
    first = next(iter(next(v["scores"] for v in verdicts.values() if v["scores"]).values()))
    floor = first - max_drop if metric.higher_is_better else first + max_drop
    low, high = min(*known, floor), max(*known, floor)
    pad = 0.06 * (high - low) or 0.01 * max(abs(high), 1e-9)
    return (low - pad, high + pad), floor


def _drop_interval(verdict: Mapping[str, Any], metric: Metric) -> str | None:
    if not verdict.get("interval"):
        return None
    low, high = verdict["interval"]
    return f"{metric.drop(high, unit=False)} to {metric.drop(low)}"


def _divergence(found: Mapping[str, Any] | None) -> dict[str, str] | None:
    if not found:
        return None
    far = found.get("reason") or (
        f"{digits(found['relative'], 2)} of the largest value apart" if found.get("relative") is not None else ""
    )
    return {"module": found.get("module") or "", "node": found["node"], "operation": found.get("operation", ""), "far": far}


def _agreement(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f}% of the tokens are the same"


def _parity(told: Mapping[str, Any]) -> dict[str, str]:
    db = told["sqnr_db"]
    return {
        "max_abs": small(told["max_abs"]),
        "relative": small(told["relative"]),
        "sqnr": DASH if db is None else "identical" if db >= 200 else f"{db:.1f} dB",
        "reason": told.get("reason") or _agreement(told.get("agreement")),
    }
