"""The cells' results in one JSON file, and a table with the paper's figures beside ours.

python benchmarks/polino/results.py results/cifar10.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from edgekd import host
from edgekd.errors import BadInput

HERE = Path(__file__).parent
ORDER = ("1M", "0.3M", "0.1M")
PM_TENSOR, PM_BUCKET, QD, DQ = "pm-tensor", "pm-bucket", "qd", "dq"
LABELS = {PM_TENSOR: "PM no bucket", PM_BUCKET: "PM bucket", QD: "QD", DQ: "DQ", "qd+": "qd+"}

PARTS = {
    "pm-bucket": ("PM bucket", "distilled"),
    "dq": ("DQ", "distilled"),
    "qd": ("QD", "control-qd"),
    "chain": ("QD, then DQ of its points", "control-qd"),
    "channel": ("QD with learned ends, a channel a bucket", "control-qd"),
    "learned": ("QD with learned ends of each 256", "control-qd"),
    "longer": ("learned ends, twice as long", "control-qd+"),
    "qd+": ("qd+: learned ends, twice as long, weights averaged", "control-qd+"),
}
"""Cell -> (in words, the student in full precision that was trained for as long)."""

PAPER = {
    "teacher": 89.71,
    "1M": {"normal": 84.5, "distilled": 88.8, "pm-tensor-2": 9.30, "pm-tensor-4": 67.99, "pm-tensor-8": 88.91, "pm-bucket-2": 10.53,
           "pm-bucket-4": 87.18, "pm-bucket-8": 88.80, "qd-2": 82.4, "qd-4": 88.00, "qd-8": 88.82, "dq-2": 80.43, "dq-4": 88.31},
    "0.3M": {"normal": 80.3, "distilled": 84.3, "pm-tensor-2": 10.15, "pm-tensor-4": 68.05, "pm-tensor-8": 84.38, "pm-bucket-2": 11.89,
             "pm-bucket-4": 81.96, "pm-bucket-8": 84.38, "qd-2": 74.22, "qd-4": 83.92, "qd-8": 84.22, "dq-2": 72.79, "dq-4": 83.49},
    "0.1M": {"normal": 71.6, "distilled": 78.2, "pm-tensor-2": 10.15, "pm-tensor-4": 61.30, "pm-tensor-8": 78.04, "pm-bucket-2": 10.38,
             "pm-bucket-4": 72.44, "pm-bucket-8": 78.10, "qd-2": 67.02, "qd-4": 77.75, "qd-8": 77.92, "dq-2": 57.84, "dq-4": 77.36},
}  # fmt: skip
"""CIFAR-10, test accuracy in percent, as printed (arXiv:1802.05668, table 1)."""


def collect(work: Path, name: str, data: str, facts: Mapping[str, Any], add: bool = False) -> Path:
    """Read every finished cell under `work`, write results/NAME.json, print the table, return the file.

    add: keep the cells that stand in the file already and are not under `work`, such as other seeds. Raises BadInput where those
    come of other settings.
    """
    found = []
    for file in sorted(work.glob("*/seed*/*/result.json")):
        cell, seed, student = (
            file.parent.name,
            int(file.parent.parent.name.removeprefix("seed")),
            file.parent.parent.parent.name,
        )
        told = json.loads(file.read_text())
        trainings = told.pop("training", [])
        told["epochs"] = [len(t["epochs"]) for t in trainings]
        told["best_epochs"] = [t["best_epoch"] for t in trainings]
        told["validation"] = [round(t["best_validation"], 4) for t in trainings]
        found.append({"student": student, "seed": seed, "cell": cell, **{k: v for k, v in told.items() if k != "key"}})
    out = HERE / "results" / f"{name}.json"
    out.parent.mkdir(exist_ok=True)
    command = f"python benchmarks/polino/run.py {' '.join(_told(sys.argv[1:]))}"
    made = {"schema": 1, "data": data, "command": command, **facts, "environment": host.describe(), "cells": found}
    if add and out.is_file():
        made = joined(json.loads(out.read_text()), json.loads(json.dumps(made)), out)
    out.write_text(json.dumps(made, indent=1) + "\n")
    print(table(made))
    return out


def _told(arguments: Sequence[str]) -> list[str]:
    """Return the command line as it means the same elsewhere: where data and trainings lie is this machine's business."""
    told = [
        part for word in arguments for part in (word.split("=", 1) if word.startswith(("--source=", "--work=")) else [word])
    ]
    for option, instead in (("--source", ["--source", "FOLDER"]), ("--work", [])):
        if option in told:
            told[told.index(option) : told.index(option) + 2] = instead
    return told


def joined(old: Mapping[str, Any], new: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """Return the new results with the old cells that they lack. Each cell says its teacher's accuracy, `earlier` the older commands.

    Raises BadInput where the settings differ.
    """
    other = [key for key in ("source", "samples", "distill", "epochs", "keep", "group") if not _agree(old[key], new[key])]
    if other:
        raise BadInput(
            f"--add: {file} was made with other settings ({', '.join(other)}): its cells cannot stand beside these; "
            "move that file away, or leave --add out to replace it"
        )
    before, now = ([{"teacher": round(made["teacher"]["accuracy"], 4)} | c for c in made["cells"]] for made in (old, new))
    taught = {(c["student"], c["seed"]): c["teacher"] for c in now}
    # Cells of one student and seed are compared with each other: they must have had one teacher.
    kept = [c for c in before if taught.get((c["student"], c["seed"]), c["teacher"]) == c["teacher"]]
    cells = {(c["student"], c["seed"], c["cell"]): c for c in (*kept, *now)}
    return {**new, "earlier": [*old.get("earlier", []), old["command"]], "cells": [cells[at] for at in sorted(cells)]}


def _agree(one: Any, other: Any) -> bool:
    """Say whether settings are the same; one that edgekd did not have yet when the older were written says nothing."""
    if isinstance(one, dict) and isinstance(other, dict):
        return all(_agree(one[key], other[key]) for key in one.keys() & other.keys())
    return bool(one == other)


def scores(made: Mapping[str, Any], student: str, cell: str) -> list[float]:
    """Return the test accuracies in percent, one a seed."""
    return [100 * c["accuracy"] for c in made["cells"] if c["student"] == student and c["cell"] == cell]


def distances(made: Mapping[str, Any], student: str, cell: str) -> dict[int, float]:
    """Return seed -> T^2 KL to the teacher on the test samples, T = 2, in nats; of cells made before it was recorded, nothing."""
    return {c["seed"]: c["kl"] for c in made["cells"] if c["student"] == student and c["cell"] == cell and "kl" in c}


def table(made: Mapping[str, Any]) -> str:
    """Return Markdown: ours as mean over seeds (lowest to highest), the paper's beside where it is the same data."""
    students = [s for s in ORDER if any(c["student"] == s for c in made["cells"])]
    taught = sorted({c.get("teacher", round(made["teacher"]["accuracy"], 4)) for c in made["cells"]})
    lines = [
        f"teacher{'s' * (len(taught) > 1)} {' and '.join(f'{100 * each:.2f}' for each in taught)} %"
        + (f" (paper {PAPER['teacher']})" if made["data"] == "cifar10" else ""),
        "",
    ]
    lines += ["| student | | 2 bit | 4 bit | 8 bit |", "|---|---|---|---|---|"]
    for student in students:
        seeds = len(scores(made, student, "distilled"))
        head = f"{student}, {seeds} seed{'s' * (seeds != 1)}"
        lines.append(f"| {head} | full precision, distilled | {_cell(made, student, 'distilled')} | | |")
        if scores(made, student, "normal"):
            lines.append(f"| | full precision, labels alone | {_cell(made, student, 'normal')} | | |")
        for method, label in LABELS.items():
            lines.append(f"| | {label} | " + " | ".join(_cell(made, student, f"{method}-{bits}") for bits in (2, 4, 8)) + " |")
    parts = (lines, far(made, students), sizes(made, students), ablation(made, students), checks(made, students))
    return "\n\n".join("\n".join(part) for part in parts if part)


def far(made: Mapping[str, Any], students: Iterable[str]) -> list[str]:
    """Return the table of distances from the teacher, which tell more than a count of right answers does; none where there are none."""
    lines = ["| T^2 KL to the teacher, nats | full precision | 2 bit | 4 bit | 8 bit |", "|---|---|---|---|---|"]
    for student in students:
        whole = distances(made, student, "distilled")
        for method, label in LABELS.items():
            found = [distances(made, student, f"{method}-{bits}") for bits in (2, 4, 8)]
            if any(found):
                cells = [f"{mean(each.values()):.3f}" if each else "-" for each in (whole, *found)]
                lines.append(f"| {student}, {label} ({len(whole)} seed{'s' * (len(whole) != 1)}) | " + " | ".join(cells) + " |")
    return lines if len(lines) > 2 else []


def sizes(made: Mapping[str, Any], students: Iterable[str]) -> list[str]:
    """Return the table of sizes: KB by arithmetic, as packed files hold it, and Huffman coded as the paper counts."""
    lines = ["| KB packed (Huffman coded) | 2 bit | 4 bit | 8 bit |", "|---|---|---|---|"]
    for student in students:
        for method, label in LABELS.items():
            cells = []
            for bits in (2, 4, 8):
                told = [
                    c["size"]
                    for c in made["cells"]
                    if (c["student"], c["cell"]) == (student, f"{method}-{bits}") and "size" in c
                ]
                cells.append(f"{told[0]['packed_bytes'] / 1e3:.0f} ({told[0]['huffman_bytes'] / 1e3:.0f})" if told else "-")
            if set(cells) != {"-"}:
                lines.append(f"| {student}, {label} | " + " | ".join(cells) + " |")
    return lines


def _cell(made: Mapping[str, Any], student: str, cell: str) -> str:
    ours = scores(made, student, cell)
    paper = PAPER[student].get(cell) if made["data"] == "cifar10" else None  # type: ignore[attr-defined]
    if not ours:
        return f"- ({paper})" if paper else "-"
    spread = f" [{min(ours):.1f}, {max(ours):.1f}]" if len(ours) > 1 else ""
    return f"{mean(ours):.2f}{spread}" + (f" ({paper})" if paper else "")


def ablation(made: Mapping[str, Any], students: Iterable[str]) -> list[str]:
    """Return the table that says what each part of qd+ brings: points lost to the distilled student (and to its control)."""
    students = list(students)
    columns = [(s, b) for s in students for b in (2, 4)]
    lines = ["| points lost to full precision | " + " | ".join(f"{s}, {b} bit" for s, b in columns) + " |"]
    lines.append("|---" * (1 + len(columns)) + "|")
    for row, (words, control) in PARTS.items():
        cells = []
        for student, bits in columns:
            lost = gaps(made, student, f"{row}-{bits}")
            fair = gaps(made, student, f"{row}-{bits}", control) if control != "distilled" else []
            cells.append((f"{mean(lost):.2f}" if lost else "-") + (f" ({mean(fair):.2f})" if fair else ""))
        if set(cells) != {"-"}:
            lines.append(f"| {words} | " + " | ".join(cells) + " |")
    return [*lines, "", "In brackets: to the student trained on in full precision for as long (control-qd, control-qd+)."]


def gaps(made: Mapping[str, Any], student: str, cell: str, control: str = "distilled") -> list[float]:
    """Return, seed by seed, how many points the cell lies below the student in full precision of that seed."""
    whole = {c["seed"]: c["accuracy"] for c in made["cells"] if c["student"] == student and c["cell"] == control}
    mine = [c for c in made["cells"] if c["student"] == student and c["cell"] == cell]
    return [100 * (whole[c["seed"]] - c["accuracy"]) for c in mine if c["seed"] in whole]


def checks(made: Mapping[str, Any], students: Iterable[str]) -> list[str]:
    """Return, in words, whether the paper's ordering holds in every cell and whether the gaps are no larger than the paper's."""
    lines = []
    for student in students:
        for bits in (2, 4):
            lines += _ordering(made, student, bits)
            of_paper = PAPER[student]["distilled"] - PAPER[student][f"qd-{bits}"]  # type: ignore[index]
            for cell in ("qd", "qd+"):
                for start, words in (("distilled", "the distilled student"), (f"control-{cell}", "its control")):
                    if lost := gaps(made, student, f"{cell}-{bits}", start):
                        said = "no more than" if mean(lost) <= of_paper else "MORE THAN"
                        lines.append(
                            f"- {student}, {bits} bit: {cell} loses {mean(lost):.2f} to {words}, {said} the paper's QD ({of_paper:.1f})"
                        )
    return lines


def _ordering(made: Mapping[str, Any], student: str, bits: int) -> list[str]:
    """Return whether QD and DQ lie above PM bucket, and that above PM no bucket: in the mean, seed by seed, and by distance."""
    cells = [f"{method}-{bits}" for method in (PM_TENSOR, PM_BUCKET, QD, DQ)]
    right = [
        {c["seed"]: c["accuracy"] for c in made["cells"] if (c["student"], c["cell"]) == (student, cell)} for cell in cells
    ]
    near = [{seed: -kl for seed, kl in distances(made, student, cell).items()} for cell in cells]
    if not all(right):
        return []

    def held(by: Sequence[Mapping[int, float]]) -> list[bool]:
        return [_rising(*(each[seed] for each in by)) for seed in sorted(set.intersection(*map(set, by)))]

    whole = _rising(*(mean(each.values()) for each in right))
    said = f"- {student}, {bits} bit: QD, DQ > PM bucket > PM no bucket {'holds' if whole else 'DOES NOT HOLD'} in the mean"
    for by, words in ((right, "seeds"), (near, "seeds by the distance from the teacher")):
        if each := held(by):
            said += f", in {sum(each)} of {len(each)} {words}"
    return [said]


def _rising(tensor: float, bucket: float, qd: float, dq: float) -> bool:
    return min(qd, dq) > bucket > tensor


if __name__ == "__main__":
    print(table(json.loads(Path(sys.argv[1]).read_text())))
