"""Short tables for the terminal, one a verb. `summary.py` has the one at the end of a whole run."""

from __future__ import annotations

from typing import Any

from rich.console import Group
from rich.table import Table

from .report.formats import duration, size


def _table(*columns: str) -> Table:
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column, overflow="fold")
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


def variants(manifest: dict[str, Any]) -> Table:
    """The variants and what they weigh."""
    made = _table("variant", "method", "size")
    for name, variant in manifest["variants"].items():
        made.add_row(name, variant["method"], size(variant["size_bytes"]))
    return made


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


def targets(found: list[dict[str, Any]]) -> Table:
    """The device classes and what is missing for each."""
    made = _table("target", "runs on", "backend", "here")
    for target in found:
        made.add_row(
            target["name"],
            target["title"],
            target["backend"],
            f"[yellow]{target['missing']}[/]" if target["missing"] else "[green]ready[/]",
        )
    return made


def models(found: list[dict[str, Any]]) -> Table:
    """The pairs that ship."""
    made = _table("pair", "data", "variants", "targets")
    for pair in found:
        made.add_row(pair["name"], pair["data"], ", ".join(pair["variants"]), ", ".join(pair["targets"]))
    return made
