"""The table at the end of a run: for every target, each variant's size, score, latency and verdict, and which one to ship."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from .report.formats import DASH, Metric, duration, size
from .report.words import shipped_bytes, targets

VERDICTS = {"passed": "[green]passed[/]", "failed": "[red]failed[/]", "not_verified": "[yellow]not verified[/]"}

DROPPED = ("change", "size", "latency")
"""Columns that go, in this order, where the terminal is too narrow for all."""


def table(manifest: Mapping[str, Any]) -> Group:
    """Return what to print: for each target a table, then in words what to ship and why. Fits 80 columns, and narrower."""
    metric = Metric(manifest["metric"])
    parts: list[RenderableType] = []
    for target in targets(manifest):
        parts += [_Fitting(target, _rows(manifest, target, metric)), *_words(manifest, target)]
    return Group(*parts or [Text("no files for a target yet")])


class _Fitting:
    """A table that leaves out columns until it fits. rows: column -> cell; a column without any cell is not shown."""

    def __init__(self, title: str, rows: list[dict[str, str]]) -> None:
        self.title, self.rows = title, rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        columns = [
            name for name in (self.rows[0] if self.rows else {}) if any(row[name] not in ("", DASH) for row in self.rows)
        ]
        made = self._table(columns)
        for name in DROPPED:
            if Measurement.get(console, options.update(width=1000), made).maximum <= options.max_width:
                break
            columns = [column for column in columns if column != name]
            made = self._table(columns)
        yield made

    def _table(self, columns: list[str]) -> Table:
        made = Table(
            title=escape(self.title), title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="dim"
        )
        for name in columns:
            left = name in ("variant", "verdict", " ")
            made.add_column(escape(name), justify="left" if left else "right", overflow="fold")
        for row in self.rows:
            made.add_row(*(row[name] for name in columns), style="bold" if row[" "] else "")
        return made


def _rows(manifest: Mapping[str, Any], target: str, metric: Metric) -> list[dict[str, str]]:
    chosen = (manifest["chosen"].get(target) or {}).get("variant")
    timed = {m["artifact"]: m["warm"]["median_s"] for m in reversed(manifest["measurements"])}
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
                "verdict": VERDICTS[verdict["status"]] if verdict else DASH,
                " ": "[green]ship[/]" if variant == chosen else "",
            }
        )
    return rows


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
    for c in manifest["comparisons"]:
        if c["target"] == target and "SLOWER" in c["verdict"]:
            lines.append(f"[yellow]{escape(c['verdict'])}[/]" + (f": {escape(c['why'])}" if c["why"] else ""))
    return [Text.from_markup(line) for line in [*lines, ""]]
