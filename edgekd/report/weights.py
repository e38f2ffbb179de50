"""The weights of quantized variants: three sizes that are not to be mistaken for each other, and the bits tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .formats import DASH, number, size, small, times
from .svg import COLOURS
from .words import Manifest, method, numbers, shipped_bytes, targets

DEFINITIONS = {
    "bits a weight": "What a quantized weight takes: its index, and its share of the scales, offsets and points. Numbers that "
    "stay in float32 are not in it.",
    "by arithmetic": "Indices of whole bits, scales, offsets and points, and 4 bytes for each number that stays in float32. "
    "A size on paper: a file has a graph and names beside them.",
    "Huffman coded": "As Polino et al. (2018) print it: the indices in one Huffman code over all tensors, 8 bytes a bucket, and "
    "4 bytes for each number that stays in float32; neither the code's own table nor the points are counted. A size on paper: "
    "no runtime reads such a file, and nobody ships one.",
    "file": "The variant's ONNX files as they lie on disk, graph and names included: what a device stores.",
    "in float32": "Weights that were kept or are of no kind that is quantized, and beside them always biases, normalisation and its "
    "statistics: so many numbers in all.",
    "student, teacher": "How many times as large they are in float32. The student: by arithmetic beside the sizes on paper, its own "
    "file beside the files, where the run has one. The teacher: 4 bytes a parameter.",
}

NAMED = 6
"""Weights in float32 named in the table; the rest are counted."""

OPEN = 24
"""Tensors of a budget that are shown at once; a longer table is folded."""


def weights(manifest: Manifest, colours: Mapping[str, int]) -> dict[str, Any] | None:
    """Return a row for each variant, the definitions, and the tables of tensors; None where no variant tells its sizes."""
    told = {name: v["facts"]["sizes"] for name, v in manifest["variants"].items() if v.get("facts", {}).get("sizes")}
    if not told:
        return None
    teacher = (manifest["models"].get("teacher") or {}).get("bytes")
    whole = next(iter(told.values()))["fp32_bytes"]
    plain = next((v["size_bytes"] for v in manifest["variants"].values() if v["method"] == "none" and v["size_bytes"]), whole)

    def cell(count: int | None, student: int) -> dict[str, Any]:
        ratios = [("student", student), ("teacher", teacher)]
        return {
            "size": size(count),
            "ratios": [f"{who} {times(theirs / count)}" for who, theirs in ratios if theirs and count],
        }

    rows = []
    for name, v in manifest["variants"].items():
        sizes = told.get(name, {})
        full = v["method"] == "none"
        file = sizes.get("file_bytes") or v["size_bytes"]
        arithmetic = sizes.get("packed_bytes") or (whole if full else None)
        rows.append(
            {
                "name": name,
                "colour": colours[name] % COLOURS,
                "method": method(v),
                "numbers": numbers(manifest, name),
                "kept": _kept(v["facts"]) if sizes else None,
                "bits": f"{sizes['bits_per_weight']:.2f}" if sizes else "32" if full else DASH,
                "index": f"{sizes['index_bits_per_weight']:.3g} without scales" if sizes else None,
                "arithmetic": cell(arithmetic, whole),
                "huffman": cell(sizes.get("huffman_bytes"), whole),
                "file": cell(file, plain)
                | {
                    "above": size(file - arithmetic) if arithmetic and file > arithmetic else None,
                    "elsewhere": [
                        f"{target}: {size(shipped)}"
                        for target in targets(manifest)
                        if (shipped := shipped_bytes(manifest, f"{target}/{name}")) not in (None, file)
                    ],
                },
            }
        )
    return {
        "rows": rows,
        "definitions": DEFINITIONS,
        "uncounted": any(row["bits"] == DASH for row in rows),
        "budgets": [_budget(name, v["facts"]) for name, v in manifest["variants"].items() if name in told and v["facts"]["budget"]],
        "tensors": [
            {"name": name, "rows": _tensors(v["facts"])}
            for name, v in manifest["variants"].items()
            if name in told and not v["facts"]["budget"]
        ],
    }  # fmt: skip


def _kept(facts: Mapping[str, Any]) -> str:
    """Say what stays in full precision: all weights of two axes or more by name, and how many numbers in all."""
    names, count = facts["kept"], number(facts["sizes"]["unquantized"])
    if not names:
        return f"in float32: no layer's weights; {count} numbers"
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"in float32: {', '.join(names[:NAMED])}{more}; {count} numbers"


def _tensors(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "name": t["name"],
            "shape": " × ".join(map(str, t["shape"])) or "1",
            "bits": t["bits"],
            "levels": t["levels"],
            "buckets": f"{number(t['buckets'])} of {number(t['bucket_size'])}",
            "bytes": size(t["bytes"]),
        }
        for t in facts["tensors"]
    ]


def _budget(name: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was asked and reached, and a row a tensor. Bytes are those stored, scales included, whatever the budget counts."""
    budget, sizes = facts["budget"], facts["sizes"]
    by_gradient = budget["by"] == "gradient-norm"
    stored = {t["name"]: t["bytes"] for t in facts["tensors"]}
    if budget["size_mb"] is not None:
        asked = f"at most {size(budget['size_mb'] * 1e6)} for all weights as stored, by arithmetic"
        reached = f"{size(sizes['packed_bytes'])}, {budget['mean_bits_reached']:.2f} bits a weight on average without scales"
    else:
        asked = f"at most {budget['mean_bits']:g} bits a weight on average, scales not counted"
        reached = f"{budget['mean_bits_reached']:.2f} bits; with scales and what stays in float32 {size(sizes['packed_bytes'])}"
    choices = [str(b) for b in budget["choices"]]
    key = "gradient_norm" if by_gradient else "sensitivity"
    return {
        "name": name,
        "asked": asked,
        "reached": reached,
        "choices": f"{', '.join(choices[:-1])} or {choices[-1]}",
        "by": "the gradient's norm, as in Polino et al. (2018)" if by_gradient else "measured damage",
        "column": "gradient's norm" if by_gradient else "damage, nats",
        "mark": "gradient" if by_gradient else "damage",
        "meaning": "Gradient's norm: the 2-norm of the loss's gradient, mean over a few batches, before anything is quantized."
        if by_gradient
        else "Damage: how far the outputs move when this tensor alone is quantized so, as the mean Kullback-Leibler divergence "
        "over training samples, before any training of the variant.",
        "rows": [
            {
                "name": row["name"],
                "count": number(row["count"]),
                "bits": row["bits"],
                "bytes": size(stored.get(row["name"], row["bytes"])),
                "value": small(row[key]) if key in row else DASH,
            }
            for row in budget["table"]
        ],
        "total": {
            "count": number(sizes["weights"]),
            "bits": f"{budget['mean_bits_reached']:.2f}",
            "bytes": size(sum(stored.values())),
        },
        "open": len(budget["table"]) <= OPEN,
    }
