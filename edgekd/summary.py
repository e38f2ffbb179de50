"""The table at the end of a run: for every target, each variant's size, score, latency and verdict, and which one to ship."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from .report.formats import DASH, Metric, duration, size

VERDICTS = {"passed": "[green]passed[/]", "failed": "[red]failed[/]", "not_verified": "[yellow]not verified[/]"}


def table(manifest: Mapping[str, Any]) -> Group:
    """Return what to print: one table a target, then one line that says what to ship and why. Fits 80 columns; narrower, cells fold."""
    metric = Metric(manifest["metric"])
    parts: list[Any] = []
    targets = list(
        dict.fromkeys(
            [*(key.partition("/")[0] for key in [*manifest["artifacts"], *manifest["verdicts"]]), *manifest["chosen"]]
        )
    )
    for target in targets:
        parts.append(_target(manifest, target, metric))
        parts += [Text.from_markup(line) for line in _words(manifest, target)]
    if not parts:
        parts.append(Text("no files for a target yet"))
    return Group(*parts)


def _target(manifest: Mapping[str, Any], target: str, metric: Metric) -> Table:
    chosen = (manifest["chosen"].get(target) or {}).get("variant")
    timed = {m["artifact"]: m["warm"]["median_s"] for m in reversed(manifest["measurements"])}
    made = Table(title=escape(target), title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="dim")
    for name, justify in (("variant", "left"), ("size", "right"), (metric.name, "right"), ("change", "right")):
        made.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    if timed:
        made.add_column("latency", justify="right", overflow="fold")
    made.add_column("verdict", overflow="fold")
    made.add_column("", overflow="fold")
    for key in dict.fromkeys([*manifest["artifacts"], *manifest["verdicts"]]):
        home, _, variant = key.partition("/")
        if home != target:
            continue
        verdict = manifest["verdicts"].get(key)
        score = verdict["scores"].get("runtime") if verdict else None
        files = manifest["artifacts"].get(key, {}).get("files", [])
        count = sum(f["bytes"] for f in files if f["path"] not in {"golden.npz", "check.py"})
        cells = [
            escape(variant),
            size(count or None),
            metric.score(score),
            metric.drop(verdict.get("drop")) if verdict else DASH,
            *([duration(timed.get(key))] if timed else []),
            VERDICTS[verdict["status"]] if verdict else DASH,
            "[bold green]ship[/]" if variant == chosen else "",
        ]
        made.add_row(*cells, style="bold" if variant == chosen else "")
    return made


def _words(manifest: Mapping[str, Any], target: str) -> list[str]:
    choice = manifest["chosen"].get(target)
    verdicts = [v for key, v in manifest["verdicts"].items() if key.startswith(f"{target}/")]
    lines = []
    if choice and choice["variant"]:
        lines.append(f"[bold green]ship {escape(choice['variant'])}[/]: {escape(choice['why'])}")
    elif verdicts and all(v["status"] == "not_verified" for v in verdicts):
        lines.append(f"[yellow]not verified[/]: {escape(verdicts[0]['reason'])}")
    elif any(v["status"] == "failed" for v in verdicts) and choice:
        lines.append(f"[red]nothing to ship[/]: {escape(choice['why'])}")
    lines += [
        f"[yellow]{escape(c['verdict'])}[/]" + (f": {escape(c['why'])}" if c["why"] else "")
        for c in manifest["comparisons"]
        if c["target"] == target and "SLOWER" in c["verdict"]
    ]
    return [*lines, ""]
