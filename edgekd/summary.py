"""The table at the end of a run: for every target, each variant's size, score, latency and verdict, and which one to ship."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.text import Text

from .report.formats import DASH, Metric, duration, size
from .report.words import STATUS, gain, kind_of, one_way, shipped_bytes, short, status, stored, targets, unusual, weights_alone
from .tables import Fitting

COLOURS = {"passed": "green", "failed": "red", "not_verified": "yellow"}

MANY = 3
"""Targets, above which each gets one line."""

DROPPED = ("change", "size", "latency")
"""Columns that go, in this order, where the terminal is too narrow for all."""

LEFT = ("variant", "verdict", " ")


def table(manifest: Mapping[str, Any]) -> Group:
    """Return what to print: for each target a table, then in words what to ship and why. Fits 80 columns, and narrower.

    Of many targets it is one table, a line each, and in words what is not as it should be.
    """
    metric = Metric(manifest["metric"])
    parts: list[RenderableType] = []
    if len(named := targets(manifest)) > MANY:
        rows = [_line(manifest, target, metric) for target in named]
        return Group(Fitting(rows, ("others", "size"), ("target", "ship", "verdict", "others")), *_exceptions(manifest))
    for target in named:
        rows = _rows(manifest, target, metric)
        bold = [number for number, row in enumerate(rows) if row[" "]]
        parts += [Fitting(rows, DROPPED, LEFT, target, bold), *_words(manifest, target)]
    return Group(*parts or [Text("no files for a target yet")])


def _rows(manifest: Mapping[str, Any], target: str, metric: Metric) -> list[dict[str, str]]:
    chosen = (manifest["chosen"].get(target) or {}).get("variant")
    mine, _ = one_way(target, manifest["measurements"], manifest["comparisons"])
    timed = {m["artifact"]: m["warm"]["median_s"] for m in reversed(mine)}
    rows = []
    for key in dict.fromkeys([*manifest["artifacts"], *manifest["verdicts"]]):
        home, _, variant = key.partition("/")
        if home != target:
            continue
        verdict = manifest["verdicts"].get(key)
        rows.append(
            {
                "variant": escape(variant),
                "size": size(shipped_bytes(manifest, key)),
                metric.name: metric.score(verdict["scores"].get("runtime") if verdict else None),
                "change": metric.drop(verdict.get("drop") if verdict else None),
                "latency": duration(timed.get(key)),
                "verdict": _verdict(verdict) if verdict else DASH,
                " ": "[green]ship[/]" if variant == chosen else "",
            }
        )
    return rows


def _verdict(verdict: Mapping[str, Any]) -> str:
    """Say the verdict, and who executed what was judged where it was not the runtime."""
    return f"[{COLOURS[verdict['status']]}]{status(verdict)}[/]"


def _line(manifest: Mapping[str, Any], target: str, metric: Metric) -> dict[str, str]:
    """Return a target's row: the variant to ship, or the first where there is none, and what became of the others."""
    mine = {short(key): v for key, v in manifest["verdicts"].items() if key.startswith(f"{target}/")}
    chosen = (manifest["chosen"].get(target) or {}).get("variant")
    shown = chosen or next(iter(mine), None)
    verdict = mine.get(shown) if shown else None
    counts = Counter(v["status"].replace("_", " ") for name, v in mine.items() if name != shown)
    counts["refused"] = sum(r["target"] == target for r in manifest["refused"])
    scores, samples = (verdict["scores"], verdict["samples"]) if verdict else ({}, 0)
    most = max((v["samples"] for v in manifest["verdicts"].values()), default=0)
    return {
        "target": escape(target),
        "ship": f"[green]{escape(chosen)}[/]" if chosen else DASH,
        "size": size(shipped_bytes(manifest, f"{target}/{chosen}")) if chosen else DASH,
        metric.name: metric.score(scores.get("runtime")) + (f" of {samples}" if verdict and samples < most else ""),
        "verdict": _verdict(verdict) if verdict else DASH,
        "others": ", ".join(f"{count} {what}" for what, count in counts.items() if count),
    }


def _exceptions(manifest: Mapping[str, Any]) -> list[Text]:
    """Say what failed and what was not verified, each reason once."""
    said: dict[tuple[str, str], list[str]] = {}
    for key, verdict in manifest["verdicts"].items():
        if verdict["status"] != "passed":
            name = key if verdict["status"] == "failed" else key.partition("/")[0]
            said.setdefault((verdict["status"], verdict["reason"]), []).append(name)
    return [
        Text.from_markup(f"[{COLOURS[kind]}]{STATUS[kind]}[/] {escape(', '.join(dict.fromkeys(names)))}: {escape(reason)}")
        for (kind, reason), names in said.items()
    ]


def _words(manifest: Mapping[str, Any], target: str) -> list[Text]:
    choice = manifest["chosen"].get(target)
    verdicts = [v for key, v in manifest["verdicts"].items() if key.startswith(f"{target}/")]
    lines = []
    if choice and choice["variant"]:
        lines.append(f"[bold green]ship {escape(choice['variant'])}[/]: {escape(choice['why'])}")
    elif verdicts and all(v["status"] == "not_verified" for v in verdicts):
        lines.append(f"[yellow]not verified[/]: {escape(verdicts[0]['reason'])}")
    elif any(v["status"] == "failed" for v in verdicts) and choice:
        lines.append(f"[red]nothing to ship[/]: {escape(choice['why'])}")
    timed, said = one_way(target, manifest["measurements"], manifest["comparisons"])
    if way := next((way for m in timed if (way := unusual(m))), ""):
        lines.append(f"latency: {way}")
    slow = [c for c in said if "SLOWER" in c["verdict"]]
    lines += [_slower(c) for c in slow if not weights_alone(manifest, short(c["candidate"]))]
    lines += _stored(manifest, [c for c in said if weights_alone(manifest, short(c["candidate"]))])
    return [Text.from_markup(line) for line in [*lines, ""]]


def _slower(comparison: Mapping[str, Any]) -> str:
    why = f": {escape(comparison['why'])}" if comparison["why"] else ""
    return f"[yellow]{escape(comparison['verdict'])}[/]{why}"


def _stored(manifest: Mapping[str, Any], comparisons: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say once, for all variants with quantized weights alone that are no faster, why; by how much the slower ones are."""
    slow = [c for c in comparisons if kind_of(c) in ("same", "bad")]
    if not slow:
        return []
    names = list(dict.fromkeys(short(c["candidate"]) for c in slow))
    lines = [f"{escape(', '.join(names))}: stored in {stored(manifest, names)}, computed in float32: {gain(manifest, slow)}"]
    return [*lines, *(f"[yellow]{escape(c['verdict'])}[/]" for c in slow if "SLOWER" in c["verdict"])]
