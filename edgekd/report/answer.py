"""The answer: what to ship to each target, and why."""

from __future__ import annotations

from typing import Any

from .formats import Metric, duration, size, times
from .words import Manifest, one_way, sentence, shipped_bytes, short, unusual, where

EXECUTED = {
    "simulator": "Verified in the vendor's simulator.",
    "reference": "Verified by a reference interpreter of the file; the runtime itself is not here.",
    "device": "Verified on the device.",
}


def answer(manifest: Manifest, target: str, metric: Metric) -> dict[str, Any]:
    """Return the words and facts of one target: what to ship, or why nothing."""
    choice = manifest["chosen"].get(target)
    verdicts = {key.partition("/")[2]: v for key, v in manifest["verdicts"].items() if key.startswith(f"{target}/")}
    variant = choice["variant"] if choice else None
    if variant is not None:
        said = f"Ship {variant}"
        kind, why = "good", sentence(choice["why"])
        timed, _ = one_way(target, manifest["measurements"], manifest["comparisons"])
        how = (
            f"Chosen by measurement {where(timed[0]['device'] if timed else 'local')}."
            if choice["by"] == "measurement"
            else "Not measured: chosen by the target's rule."
        )
        if by := EXECUTED.get(verdicts.get(variant, {}).get("by")):
            how += f" {by}"
        return {
            "target": target,
            "say": said,
            "kind": kind,
            "why": why,
            "how": how,
            "facts": _facts(manifest, target, variant, metric),
        }
    failed = [name for name, v in verdicts.items() if v["status"] == "failed"]
    unsure = [name for name, v in verdicts.items() if v["status"] == "not_verified"]
    if any(v["status"] == "passed" for v in verdicts.values()) and not choice:
        say, kind = "Verified, not chosen yet", "unsure"
        why = "The run stopped before it measured; edgekd bench and edgekd compress go on from here."
    elif unsure and not failed:
        say, kind = "Not verified: nothing to ship yet", "unsure"
        why = sentence(verdicts[unsure[0]]["reason"])
    elif failed:
        say, kind = "Nothing to ship: the gate failed", "bad"
        worst = verdicts[failed[0]]
        why = (
            f"{failed[0]} lost it at the {worst['lost_at']} stage: {worst['reason']}."
            if len(failed) == 1
            else f"None of {len(verdicts)} variants passed; the reasons are below."
        )
    else:
        say, kind, why = (
            "Not verified yet",
            "unsure",
            "The run stopped before its files were proven; edgekd verify goes on from here.",
        )
    return {"target": target, "say": say, "kind": kind, "why": why, "how": "", "facts": []}


def _facts(manifest: Manifest, target: str, variant: str, metric: Metric) -> list[tuple[str, str, str]]:
    """Return (what, number, remark) of the chosen artifact."""
    key, told = f"{target}/{variant}", []
    verdict = manifest["verdicts"].get(key, {})
    scores = verdict.get("scores", {})
    score = next((scores[stage] for stage in ("runtime", "file", "variant") if stage in scores), None)
    if score is not None:
        first = "teacher" if "teacher" in verdict["scores"] else "student"
        told.append((metric.name, metric.score(score), f"{metric.drop(verdict.get('drop'))} from the {first}"))
    count = shipped_bytes(manifest, key)
    teacher = manifest["models"].get("teacher")
    if count:
        smaller = teacher["bytes"] / count if teacher else 1.0
        told.append(("size", size(count), f"{times(smaller)} smaller than the teacher" if smaller > 1.05 else "model files"))
    timed, compared = one_way(target, manifest["measurements"], manifest["comparisons"])
    measured = next((m for m in timed if m["artifact"] == key), None)
    if measured:
        against = next((c for c in compared if c["candidate"] == key), None)
        remark = f"a warm call, batch {measured['batch']}"
        if said := unusual(measured):
            against, remark = None, f"{remark}, {said}"  # a ratio of streams is of their throughput, not of this
        if against and against["low"] is not None and against["ratio"] >= 1 and against["low"] > 1:
            remark = f"{times(against['ratio'])} faster than {short(against['control'])}"
        told.append(("latency", duration(measured["warm"]["median_s"]), remark))
        above = measured.get("peak_memory_above_runtime_bytes")
        if above is not None:
            told.append(("memory", size(above), "at most, above the bare runtime"))
    return told
