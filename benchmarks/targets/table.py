"""The table of results/targets.json: python benchmarks/targets/table.py results/targets.json"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MARKS = {"passed": "", "failed": "FAILED ", "not_verified": "not verified ", "refused": "refused"}


def write(told: Mapping[str, Any]) -> str:
    """Return Markdown: for each variant, targets down and networks across; below it every reason, once."""
    cells: Mapping[str, Mapping[str, Any]] = told["cells"]
    keys = [key.split("/") for key in cells]
    networks, targets, variants = (list(dict.fromkeys(key[at] for key in keys)) for at in range(3))
    lines: list[str] = []
    reasons: dict[str, list[str]] = {}
    for variant in variants:
        lines += [f"**{variant}**: who ran it, dB over its error, MB", "", f"| | {' | '.join(networks)} |"]
        lines.append("|" + "---|" * (len(networks) + 1))
        for target in targets:
            row = [
                _said(cells.get(f"{network}/{target}/{variant}"), reasons, f"{target}, {network}, {variant}")
                for network in networks
            ]
            if any(row):
                lines.append(f"| {target} | {' | '.join(row)} |")
        lines.append("")
    for number, (reason, where) in enumerate(reasons.items(), 1):
        lines.append(f"[{number}] {reason} ({len(where)} cells)  ")
    return "\n".join(lines) + "\n"


def _said(cell: Mapping[str, Any] | None, reasons: dict[str, list[str]], where: str) -> str:
    if cell is None:
        return ""
    note = ""
    if cell["status"] != "passed":
        reasons.setdefault(cell["reason"].splitlines()[0], []).append(where)
        note = f" [{list(reasons).index(cell['reason'].splitlines()[0]) + 1}]"
    if cell["status"] == "refused":
        return f"refused{note}"
    stages = [cell["sqnr_db"][stage] for stage in ("runtime", "file") if cell["sqnr_db"].get(stage) is not None]
    ratio = f"{stages[0]:.0f} dB, " if stages else ""
    by = f"{cell['by']} " if cell["by"] else ""
    return f"{MARKS[cell['status']]}{by}{ratio}{cell['bytes'] / 1e6:.1f}{note}"


if __name__ == "__main__":
    print(write(json.loads(Path(sys.argv[1]).read_text())))
