"""Short tables for the terminal, one a verb. `summary.py` has the one at the end of a whole run."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, Group, JustifyMethod
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from .report.formats import DASH, THIN, Metric, duration, size, throughput
from .report.words import METHODS, how, method, numbers


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
        made.add_row("samples/s", f"{history['images_per_second']:.0f}")
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
    """Medians of what was timed side by side, and below them in words what they say; what was not timed and why; where the report is.

    Each device and each way of timing has a table, with its name above it where there are several.
    """
    measured = found["measurements"]
    parts: list[Any] = []
    ways = list(dict.fromkeys((m["device"], how(m)) for m in measured))
    ways += [way for c in found["comparisons"] if (way := (c.get("device") or "local", how(c))) not in ways]
    devices, hows = ({way[place] for way in ways} for place in (0, 1))
    for way in sorted(ways, key=lambda way: list(dict.fromkeys(device for device, _ in ways)).index(way[0])):
        names = [name for name, several in zip(way, (len(devices) > 1, len(hows) > 1), strict=True) if several]
        parts += [Text(", ".join(names), "bold")] if names else []
        mine = [m for m in measured if (m["device"], how(m)) == way]
        last = ("median",) if all(m.get("generation") for m in mine) else ()
        dropped = ("memory", "first", "load", "95 %", "samples/s", *last)
        parts += [Fitting([_timed(m) for m in mine], dropped, ("artifact",))] if mine else []
        said = [c for c in found["comparisons"] if (c.get("device") or "local", how(c)) == way]
        parts += [Text(c["verdict"] + (f": {c['why']}" if c.get("why") else "")) for c in said]
        parts += [
            Text(f"{m['artifact']}: {told['said']}") for m in mine for told in (m.get("sustained"), m.get("drift")) if told
        ]
        parts += [Text(_generated(m)) for m in mine if m.get("generation")]
        cut = [m["artifact"] for m in mine if m["stopped_by"] == "max_seconds"]
        parts += (
            [Text(f"ended by bench.max_seconds, before its interval was narrow: {', '.join(cut)}", "yellow")] if cut else []
        )
        parts += [Text("")] if names else []
    for target, choice in found.get("chosen", {}).items():
        parts.append(
            Text(f"{target}: {'ship ' + choice['variant'] if choice['variant'] else 'nothing to ship'}: {choice['why']}")
        )
    notes = {
        (m["device"], re.sub(r"[0-9.]+", "", note)): note for m in measured for note in m["environment"].get("notes", [])
    }  # of those that differ in a number alone, the last
    parts += [Text(f"{device}: {note}", "yellow") for (device, _), note in notes.items()]
    for one in found.get("skipped", ()):
        what = one["artifact"] or "nothing"
        reason = " ".join(line.strip() for line in one["reason"].splitlines()[:2])
        parts.append(Text(f"not timed: {what} on {one['device']}: {reason}", "yellow"))
    if folder := found.get("folder"):
        parts.append(Text(f"report: {folder}/report.html"))
    return Group(*parts)


def _generated(m: Mapping[str, Any]) -> str:
    """Say what a call of a model that generates was, and the numbers that its columns have no room for."""
    told = m["generation"]
    first, each = told["ttft"], told["per_token"]
    return (
        f"a call of {m['artifact']} reads {told['prompt_tokens']} tokens and makes {told['new_tokens']} "
        f"(bench.prompt_tokens, bench.new_tokens): first token after {duration(first['median_s'])} "
        f"({_between(first['median_low_s'], first['median_high_s'])}), then one every {duration(each['median_s'])}; "
        f"reads {told['prefill_per_s']:,.0f} tokens a second"
    )


def _timed(m: Mapping[str, Any]) -> dict[str, str]:
    """Return a measurement's row; of what generates also its first token and the rate of the others."""
    warm, generated = m["warm"], m.get("generation")
    row = {
        "artifact": escape(m["artifact"]),
        "load": duration(m["load_s"]),
        "first": duration(m["first_call_s"]),
        "median": duration(warm["median_s"]),
        "95 %": _between(warm["median_low_s"], warm["median_high_s"]),
        "samples/s": throughput(m["throughput_per_s"]),
        "memory": size(m.get("peak_memory_bytes")),
    }
    if generated:
        row |= {"TTFT": duration(generated["ttft"]["median_s"]), "tokens/s": throughput(generated["tokens_per_s"])}
    return row


def _between(low: float, high: float) -> str:
    """Write two durations, their unit once where it is the same: 2.09-6.08 ms."""
    (first, unit), (last, other) = (duration(value).split(THIN) for value in (low, high))
    return f"{first}-{last}{THIN}{unit}" if unit == other else f"{duration(low)}-{duration(high)}"


def devices(found: list[dict[str, Any]]) -> Group:
    """The devices, whether each could be reached, and what it is."""
    rows = []
    for one in found:
        host, runtimes = one.get("host") or {}, one.get("runtimes") or {}
        rows.append(
            {
                "device": escape(one["address"]),
                "reached": "[green]yes[/]" if one["reached"] else "[yellow]no[/]",
                "what": escape(one.get("title") or DASH),
                "cores": str(host.get("cores") or DASH),
                "runtimes": escape(", ".join(f"{name} {version}" for name, version in runtimes.items() if version) or DASH),
            }
        )
    said = [f"{one['address']}: {one['why']}" for one in found if not one["reached"]]
    bare = [one for one in found if one["reached"] and not {name for name, v in one["runtimes"].items() if v} - {"numpy"}]
    said += [f"{one['address']}: no runtime is installed there; for .onnx files: pip install onnxruntime" for one in bare]
    return Group(
        Fitting(rows, ("cores", "runtimes"), ("device", "reached", "what", "runtimes")),
        *(Text(line, "yellow") for line in said),
    )


def kit(made: dict[str, Any]) -> Text:
    """What was written, and what to do with it."""
    return Text(
        f"{made['kit']}: times {', '.join(made['things'])}. On the device, with {', '.join(made['needs'])} installed:\n"
        f"  python3 {Path(made['kit']).name} -o result.json\nthen here:\n  edgekd bench --import result.json"
    )


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
