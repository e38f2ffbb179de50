"""Short tables for the terminal, one a verb. `summary.py` has the one at the end of a whole run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, Group, JustifyMethod
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from .report.formats import DASH, Metric, duration, size
from .report.words import METHODS, method, numbers


def _table(*columns: str) -> Table:
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column, overflow="fold")
    return made


class Fitting:
    """A table that leaves out columns until it fits.

    rows: column -> cell, in markup; a column without any cell is not shown. dropped: columns that go, in this order, where
    the terminal is too narrow. left: columns that begin at the left. bold: numbers of rows. widest: column -> characters,
    beyond which it is wrapped.
    """

    def __init__(
        self, rows: Sequence[Mapping[str, str]], dropped: Sequence[str], left: Sequence[str], title: str | None = None,
        bold: Sequence[int] = (), widest: Mapping[str, int] | None = None,
    ) -> None:  # fmt: skip
        self.rows, self.dropped, self.left, self.title, self.bold, self.widest = rows, dropped, left, title, bold, widest or {}

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        columns = [
            name for name in (self.rows[0] if self.rows else {}) if any(row[name] not in ("", DASH) for row in self.rows)
        ]
        made = self._table(columns)
        for name in self.dropped:
            if Measurement.get(console, options.update(width=1000), made).maximum <= options.max_width:
                break
            columns = [column for column in columns if column != name]
            made = self._table(columns)
        yield made

    def _table(self, columns: Sequence[str]) -> Table:
        made = Table(
            title=escape(self.title) if self.title else None, title_justify="left", title_style="bold", box=None, pad_edge=False,
            header_style="dim",
        )  # fmt: skip
        for name in columns:
            side: JustifyMethod = "left" if name in self.left else "right"
            made.add_column(escape(name), justify=side, overflow="fold", max_width=self.widest.get(name))
        for number, row in enumerate(self.rows):
            made.add_row(*(row[name] for name in columns), style="bold" if number in self.bold else "")
        return made


def plan(found: dict[str, Any]) -> Table:
    """The stages of a dry run, refusals, and estimated sizes."""
    made = _table("stage", "state")
    for stage in found["stages"]:
        made.add_row(stage["name"], "[green]cached[/]" if stage["cached"] else "to do")
    for refusal in found["refused"]:
        made.add_row(f"export/{refusal['target']}/{refusal['variant']}", f"[yellow]refused[/]: {refusal['reason']}")
    made.add_section()
    for role in ("teacher", "student"):
        if role in found["estimates"]:
            e = found["estimates"][role]
            made.add_row(role, f"{e['parameters']:,} parameters, {size(e['bytes'])}")
    for name, count in found["estimates"]["variants"].items():
        made.add_row(f"variant {name}", f"about {size(count)}")
    made.caption = f"would go to {found['out']}"
    made.caption_justify = "left"
    return made


def training(manifest: dict[str, Any]) -> Table:
    """How a training went."""
    made = _table("", "")
    made.show_header = False
    history = manifest.get("training")
    if history:
        best = history["epochs"][history["best_epoch"] - 1] if history["best_epoch"] else None
        made.add_row(
            "epochs",
            f"{len(history['epochs'])}, best by validation: {history['best_epoch']}"
            + (f" ({best['validation']:.4f})" if best else ""),
        )
        made.add_row("images/s", f"{history['images_per_second']:.0f}")
        for warning in history.get("warnings", []):
            made.add_row("[yellow]warning[/]", warning)
    for role, score in manifest["scores"].items():
        if score is not None:
            parameters = manifest["models"][role]["parameters"]
            made.add_row(role, f"{manifest['metric']['name']} {score:.4f} on the test samples, {parameters:,} parameters")
    return made


def variants(manifest: dict[str, Any]) -> Group:
    """The variants, how they were made and what they weigh, and how the training of each went."""
    metric = Metric(manifest["metric"])
    rows, said = [], []
    for name, variant in manifest["variants"].items():
        facts = variant.get("facts", {})
        sizes, lessons = facts.get("sizes") or {}, facts.get("training") or []
        rows.append(
            {
                "variant": escape(name),
                "method": escape(method(variant)),
                "weights": escape(numbers(manifest, name)),
                "bits": f"{sizes['bits_per_weight']:.2f}" if sizes else DASH,
                "file": size(variant["size_bytes"]),
            }
        )
        for lesson in lessons:
            which = f", {METHODS.get(lesson['method'], lesson['method'])}" if len(lessons) > 1 else ""
            scores = f"{metric.score(lesson['initial_validation'])} as it began, {metric.score(lesson['best_validation'])} kept"
            of = f"(epoch {lesson['best_epoch']} of {len(lesson['epochs'])})"
            said.append(escape(f"{name}{which}: validation {metric.name} {scores} {of}"))
            said += [f"[yellow]warning[/] {escape(name)}: {escape(warning)}" for warning in lesson["warnings"]]
    shown = Fitting(
        rows,
        dropped=("weights", "bits"),
        left=("variant", "method", "weights"),
        widest={"variant": 24, "method": 24, "weights": 26},
    )
    return Group(shown, *(Text.from_markup(line) for line in said))


def artifacts(manifest: dict[str, Any]) -> Table:
    """The artifacts and where their files lie."""
    made = _table("artifact", "files", "size")
    for name, artifact in manifest["artifacts"].items():
        made.add_row(
            f"targets/{name}", ", ".join(f["path"] for f in artifact["files"]), size(sum(f["bytes"] for f in artifact["files"]))
        )
    for refusal in manifest["refused"]:
        made.add_row(f"{refusal['target']}/{refusal['variant']}", f"[yellow]refused[/]: {refusal['reason']}", "")
    return made


def bench(found: dict[str, Any]) -> Group:
    """Medians, and below them the verdicts in words."""
    made = _table("artifact", "batch", "load", "first", "warm median", "per second", "memory")
    for m in found["measurements"]:
        warm = m["warm"]
        made.add_row(
            m["artifact"],
            str(m["batch"]),
            duration(m["load_s"]),
            duration(m["first_call_s"]),
            duration(warm["median_s"]),
            f"{m['throughput_per_s']:.0f}",
            size(m.get("peak_memory_bytes")),
        )
    said = [c["verdict"] + (f": {c['why']}" if c.get("why") else "") for c in found["comparisons"]]
    return Group(made, *said)


def targets(found: list[dict[str, Any]]) -> Group:
    """The device classes: what each is, what it stores, and how far this machine can prove that files run there."""
    rows = [
        {
            "target": escape(target["name"]),
            "runs on": escape(target["title"]),
            "stores": escape(", ".join(target["stores"])),
            "verified here by": f"[green]{target['verified_by']}[/]" if target["verified_by"] else "[yellow]nothing[/]",
        }
        for target in found
    ]
    said: dict[str, list[str]] = {}
    for target in found:
        if reason := target["missing"] or (not target["verified_by"] and target["why"]):
            said.setdefault(reason, []).append(target["name"])
    lines = [f"[yellow]{escape(', '.join(names))}[/]: {escape(reason)}" for reason, names in said.items()]
    shown = Fitting(rows, ("stores", "runs on"), ("target", "runs on", "stores", "verified here by"))
    return Group(shown, *(Text.from_markup(line) for line in lines))


def models(found: list[dict[str, Any]]) -> Table:
    """The pairs that ship."""
    made = _table("pair", "data", "variants", "targets")
    for pair in found:
        made.add_row(pair["name"], pair["data"], ", ".join(pair["variants"]), ", ".join(pair["targets"]))
    return made
