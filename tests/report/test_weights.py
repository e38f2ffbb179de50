"""Quantized variants on the page and in the terminal, against a manifest written by hand: three sizes, bits, trainings, speed."""

import html
import io
import re
from typing import Any

import numpy as np
import pytest
from rich.console import Console, RenderableType

from edgekd import report, schema, summary, tables
from edgekd.report import labels
from edgekd.report.words import method, numbers

CPU = "onnxruntime-cpu"
STUDENT_FILE, TEACHER = 182_344, 4_984_360  # of the fp32 variant and the teacher in conftest
WEIGHTS, REST = 40_000, 2_300  # quantized in two tensors of 32,000 and 8,000; numbers beside them

SETTINGS = {"epochs": 3, "batch_size": 64, "optimizer": "adamw", "learning_rate": 4e-4}


def _tensor(name: str, shape: list[int], bits: int, bucket: int, points: bool = False) -> dict[str, Any]:
    count = int(np.prod(shape))
    buckets = -(-count // bucket)
    return {
        "name": name, "shape": shape, "bits": bits, "levels": 2**bits, "buckets": buckets, "bucket_size": bucket,
        "bytes": count * bits // 8 + 8 * buckets + (4 * 2**bits if points else 0),
    }  # fmt: skip


def _sizes(tensors: list[dict[str, Any]], huffman: float, file: int) -> dict[str, Any]:
    buckets = sum(t["buckets"] for t in tensors)
    stored = sum(t["bytes"] for t in tensors)
    index_bits = sum(t["bits"] * int(np.prod(t["shape"])) for t in tensors)
    return {
        "weights": WEIGHTS, "unquantized": REST, "buckets": buckets, "fp32_bytes": 4 * (WEIGHTS + REST),
        "index_bits_per_weight": index_bits / WEIGHTS, "bits_per_weight": 8 * stored / WEIGHTS, "packed_bytes": stored + 4 * REST,
        "huffman_bits_per_weight": huffman, "huffman_bytes": int(4 * REST + WEIGHTS * huffman / 8 + 8 * buckets), "file_bytes": file,
    }  # fmt: skip


def _lesson(name: str, initial: float, scores: list[float], best: int, warnings: list[str]) -> dict[str, Any]:
    return {
        "method": name, "settings": SETTINGS, "initial_validation": initial, "initial_validation_loss": 1.0,
        "epochs": [
            {"epoch": i + 1, "loss": 1 / (i + 1), "terms": {"logits": 1.1 / (i + 1), "task": 0.8 / (i + 1)}, "validation": v,
             "validation_loss": 0.3, "learning_rate": 1e-3}
            for i, v in enumerate(scores)
        ],
        "best_epoch": best, "best_validation": max([initial, *scores]), "steps": 1266, "processes": 1, "warnings": warnings,
    }  # fmt: skip


def _row(name: str, count: int, bits: int, **more: float) -> dict[str, Any]:
    return {"name": name, "count": count, "bits": bits, "bytes": count * bits / 8, **more}


def _add(manifest: dict[str, Any], name: str, config: dict[str, Any], scheme: dict[str, Any], facts: dict[str, Any]) -> None:
    """Put in a variant as if it had been made, verified and timed like w8, and its entry in the recipe."""
    size = facts["sizes"]["file_bytes"]
    manifest["recipe"]["quantize"].append({"name": name, **config})
    manifest["variants"][name] = {
        "name": name, "method": " + ".join(facts["methods"]), "scheme": {"activations": None, "mixed": None, "label": "w", **scheme},
        "graphs": {"model": "model.onnx"}, "size_bytes": size, "score": 0.9150, "reference": "torch", "weights": "model.safetensors",
        "facts": facts,
    }  # fmt: skip
    like = manifest["artifacts"][f"{CPU}/w8"]
    manifest["artifacts"][f"{CPU}/{name}"] = {
        **like,
        "files": [{**f, "bytes": size} if f["path"] == "model.onnx" else f for f in like["files"]],
    }
    manifest["verdicts"][f"{CPU}/{name}"] = manifest["verdicts"][f"{CPU}/w8"]
    manifest["measurements"].append({**manifest["measurements"][0], "artifact": f"{CPU}/{name}"})


def _weights(bits: int, kind: str = "uniform", group: int | None = None) -> dict[str, Any]:
    granularity = "group" if group else "channel"
    return {"weights": {"bits": bits, "kind": kind, "symmetric": None, "granularity": granularity, "group": group}}


@pytest.fixture
def quantized(manifest: dict[str, Any]) -> dict[str, Any]:
    """The run of conftest with four more variants: qd4, its chain, one by budget, one rounded."""
    head, body = "head.weight", "body.0.weight"
    four = [_tensor(body, [128, 250], 4, 256), _tensor(head, [10, 800], 4, 256)]
    _add(
        manifest, "qd4", {"scale": "learned"}, _weights(4, group=256),
        {
            "methods": ["quantized-distillation"], "tensors": four, "kept": ["stem.weight"], "sizes": _sizes(four, 3.5, 36_000),
            "training": [_lesson("quantized-distillation", 0.8512, [0.90, 0.9175, 0.91], 2, [])], "budget": None,
        },
    )  # fmt: skip
    two = [_tensor(body, [128, 250], 2, 64, points=True), _tensor(head, [10, 800], 2, 64, points=True)]
    _add(
        manifest, "chain2", {}, _weights(2, "codebook", 64),
        {
            "methods": ["quantized-distillation", "differentiable"], "tensors": two, "kept": [], "sizes": _sizes(two, 1.75, 25_000),
            "training": [
                _lesson("quantized-distillation", 0.30, [0.80, 0.88, 0.89], 3, []),
                _lesson("differentiable", 0.89, [0.85, 0.86], 0, ["no epoch was better than the start"]),
            ],
            "budget": None,
        },
    )  # fmt: skip
    mixed = [_tensor(body, [128, 250], 2, 250), _tensor(head, [10, 800], 8, 800)]
    _add(
        manifest, "mixed", {}, _weights(8) | {"mixed": [2, 4, 8]},
        {
            "methods": ["round-to-nearest"], "tensors": mixed, "kept": [], "sizes": _sizes(mixed, 3.0, 31_000), "training": [],
            "budget": {
                "by": "sensitivity", "size_mb": 0.03, "mean_bits": None, "choices": [2, 4, 8], "mean_bits_reached": 3.2,
                "table": [_row(body, 32_000, 2, sensitivity=0.0123), _row(head, 8_000, 8, sensitivity=4.5e-6)],
            },
        },
    )  # fmt: skip
    manifest["comparisons"] += [
        _compared("qd4", 0.5, "qd4 is 2.00x SLOWER than fp32 (1.9-2.1)", "7 of the file's 57 nodes only convert"),
        _compared(
            "chain2", 1.0, "no difference seen between chain2 and fp32 (0.99-1.01)", "7 of the file's 57 nodes only convert"
        ),
        _compared("mixed", 1.2, "mixed is 1.20x faster than fp32 (1.1-1.3)", None),
    ]
    return manifest


def _compared(name: str, ratio: float, verdict: str, why: str | None) -> dict[str, Any]:
    return {
        "target": CPU, "device": "local", "control": f"{CPU}/fp32", "candidate": f"{CPU}/{name}", "batch": 1, "pairs": 20,
        "ratio": ratio, "low": ratio * 0.95, "high": ratio * 1.05, "verdict": verdict, "why": why,
    }  # fmt: skip


def _text(markup: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", markup)).replace("\u202f", " ").split())


def _page(run: Any) -> str:
    return report.write(run).read_text(encoding="utf-8")


def _section(content: str, name: str) -> str:
    return re.search(rf'<section id="{name}">.*?</section>', content, re.DOTALL)[0]  # type: ignore[index]


def _rows(table: str) -> dict[str, list[str]]:
    """Return first cell -> the other cells of a table, as text."""
    rows = [
        [_text(cell) for cell in re.findall(r"<td.*?</td>", row, re.DOTALL)]
        for row in re.findall(r"<tr>.*?</tr>", table, re.DOTALL)
    ]
    return {row[0]: row[1:] for row in rows if row}


def test_the_manifest_by_hand_is_what_a_run_writes(quantized: dict[str, Any]):
    assert schema.problems(quantized) == []


def test_three_sizes_stand_side_by_side_each_with_its_own_ratios(quantized: dict[str, Any], run_of: Any):
    rows = _rows(re.search(r'<table class="stack sizes">.*?</table>', _page(run_of(quantized)), re.DOTALL)[0])  # type: ignore[index]
    # 157 buckets of 256. Indices 20,000 B, scales and offsets 1,256 B, 2,300 numbers 9,200 B: 30,456 B. 8 x 21,256 / 40,000 bits.
    # Huffman: 9,200 + 40,000 x 3.5 / 8 + 1,256 = 27,956 B. In float32: 4 x 42,300 = 169,200 B. The student's file: 182,344 B.
    assert rows["qd4"] == [
        "quantized distillation 4-bit weights in buckets of 256, learned ends in float32: stem.weight; 2,300 numbers",
        "4.25 4 without scales",
        "30.5 KB student 5.56× teacher 164×",
        "28 KB student 6.05× teacher 178×",
        "36 KB student 5.07× teacher 138× 5.54 KB above arithmetic",
    ]
    assert rows["fp32"][1:] == [
        "32",
        "169 KB student 1.00× teacher 29×",
        "–",
        "182 KB student 1.00× teacher 27× 13.1 KB above arithmetic",
    ]
    assert rows["int8"][1:] == ["–", "–", "–", "61.2 KB student 2.98× teacher 81×"], "nothing is made up where it is not known"
    # 32,000 / 64 + 8,000 / 64 = 625 buckets; 10,000 + 5,000 + 2 x 16 B for the points
    assert rows["chain2"][1] == "3.01 2 without scales"
    # 8,000 + 8,000 and 138 buckets: 17,104 B
    assert rows["mixed"][1] == "3.42 3.2 without scales"


def test_a_size_on_paper_is_never_told_as_a_file(quantized: dict[str, Any], run_of: Any):
    content = _page(run_of(quantized))
    section = _section(content, "weights")
    told = _text(section)
    assert "Three sizes, of which only the last is a file." in told
    assert "by arithmetic on paper" in told
    assert "Huffman coded on paper, never shipped" in told
    assert "no runtime reads such a file, and nobody ships one" in told
    others = _text(content.replace(section, "").replace("\u202f", " "))
    assert "28 KB" not in others, "the Huffman coded size has no place outside its column"
    assert "30.5 KB" not in others
    assert "36 KB" in others


def test_a_target_whose_file_is_another_says_so(quantized: dict[str, Any], run_of: Any):
    quantized["artifacts"][f"{CPU}/qd4"]["files"][-1]["bytes"] = 41_000
    assert f"above arithmetic {CPU}: 41 KB" in _text(_section(_page(run_of(quantized)), "weights"))


@pytest.mark.parametrize("by", ["sensitivity", "gradient-norm"])
def test_a_budget_shows_what_was_asked_and_reached_and_each_tensor(quantized: dict[str, Any], run_of: Any, by: str):
    budget = quantized["variants"]["mixed"]["facts"]["budget"]
    if by == "gradient-norm":
        budget |= {"by": by, "size_mb": None, "mean_bits": 3.5}
        for row in budget["table"]:
            row["gradient_norm"] = row.pop("sensitivity")
    section = _section(_page(run_of(quantized)), "weights")
    told = _text(section)
    # 128 + 10 buckets: 8,000 + 1,024 and 8,000 + 80 B; with 9,200 B of other numbers 26,304 B
    if by == "sensitivity":
        assert "Asked: at most 30 KB for all weights as stored, by arithmetic. Reached: 26.3 KB, 3.20 bits a weight" in told
        assert "from 2, 4 or 8 bits by measured damage" in told
        assert "Kullback-Leibler" in told
    else:
        assert "Asked: at most 3.5 bits a weight on average, scales not counted. Reached: 3.20 bits;" in told
        assert "by the gradient's norm" in told
        assert "Kullback-Leibler" not in told
    table = next(t for t in re.findall(r'<table class="stack tensors">.*?</table>', section, re.DOTALL) if "together" in t)
    assert _rows(table) == {
        "body.0.weight": ["32,000", "2", "9.02 KB", "0.012"],
        "head.weight": ["8,000", "8", "8.08 KB", "4.5e-06"],
        "together": ["40,000", "3.20", "17.1 KB", ""],
    }


def test_without_a_budget_the_tensors_are_there_to_open(quantized: dict[str, Any], run_of: Any):
    section = _section(_page(run_of(quantized)), "weights")
    folded = re.findall(r"<details><summary>(.*?)</summary>(.*?)</details>", section, re.DOTALL)
    assert [name for name, _ in folded] == ["qd4, tensor by tensor", "chain2, tensor by tensor"]
    assert _rows(folded[0][1]) == {
        "body.0.weight": ["128 × 250", "4", "16", "125 of 256", "17 KB"],
        "head.weight": ["10 × 800", "4", "16", "32 of 256", "4.26 KB"],
    }


def test_methods_and_numbers_are_words(quantized: dict[str, Any]):
    told = {name: (method(v), numbers(quantized, name)) for name, v in quantized["variants"].items()}
    assert told == {
        "fp32": ("full precision", "float32"),
        "int8": ("post-training", "8-bit weights per channel, 8-bit activations"),
        "w8": ("post-training", "8-bit weights per channel"),
        "int8-broken": ("post-training", "8-bit weights per channel, 8-bit activations"),
        "qd4": ("quantized distillation", "4-bit weights in buckets of 256, learned ends"),
        "chain2": (
            "quantized distillation, then differentiable quantization",
            "2-bit weights, a codebook of 4 learned points a tensor, scaled in buckets of 64",
        ),
        "mixed": ("round to nearest", "2 and 8-bit weights per channel"),
    }
    quantized["variants"]["int8"]["scheme"] = {"label": "w8a8"}
    assert numbers(quantized, "int8") == "w8a8", "a manifest that tells no more"


def test_each_training_shows_the_score_before_and_after(quantized: dict[str, Any], run_of: Any):
    section = _section(_page(run_of(quantized)), "training")
    cards = [_text(card) for card in re.findall(r'<article class="card">.*?</article>', section, re.DOTALL)]
    assert len(cards) == 3
    assert "85.12 % as it began, 91.75 % kept epoch 2 of 3 kept; 1,266 steps of 64; adamw, highest rate 0.0004" in cards[0]
    assert "By epoch: validation from 85.12 % to 91 %" in cards[0], "the curve begins before the first step"
    assert cards[1].startswith("chain2 quantized distillation")
    assert cards[2].startswith("chain2 differentiable quantization")
    assert "kept: start" in cards[2]
    assert "2 epochs, none better: kept as it began" in cards[2]
    assert cards[2].endswith("no epoch was better than the start")
    best = quantized["training"]["best_validation"]
    assert f"The student in full precision scores {100 * best:.2f} % on the same validation samples" in _text(section)
    quantized["training"] = None
    section = _text(_section(_page(run_of(quantized)), "training"))
    assert "Nothing was trained: the student was taken as it came. The variants" in section
    assert "The student in full precision" not in section


def test_weights_alone_make_a_file_smaller_and_not_faster(quantized: dict[str, Any], run_of: Any):
    broken = next(c for c in quantized["comparisons"] if c["candidate"].endswith("int8-broken"))
    broken["verdict"] = "int8-broken is 1.10x SLOWER than fp32 (1.0-1.2)"
    section = _section(_page(run_of(quantized)), "speed")
    cards = {
        _text(said): _text(rest)
        for said, rest in re.findall(r'<article class="card compare \w+"><p class="say">(.*?)</p>(.*?)</article>', section, re.DOTALL)
    }  # fmt: skip
    (slower,) = [why for said, why in cards.items() if said.startswith("qd4")]
    assert "Stored in 4 bits, computed in float32: smaller, not faster. 7 of the file's 57 nodes only convert." in slower
    (same,) = [why for said, why in cards.items() if "chain2" in said]
    assert same.endswith("Stored in 2 bits, computed in float32: smaller, not faster.")
    (faster,) = [why for said, why in cards.items() if said.startswith("mixed")]
    assert "computed in float32" not in faster
    (integers,) = [why for said, why in cards.items() if said.startswith("int8-broken")]
    assert "computed in float32" not in integers, "its activations are integers too"
    quantized["artifacts"][f"{CPU}/qd4"]["files"][-1]["bytes"] = STUDENT_FILE
    assert "Stored in 4 bits, computed in float32: not faster." in _text(_section(_page(run_of(quantized)), "speed"))


def test_a_manifest_without_these_facts_has_no_such_section(manifest: dict[str, Any], run_of: Any):
    content = _page(run_of(manifest))
    assert 'id="weights"' not in content
    assert "The variants" not in content
    for variant in manifest["variants"].values():
        del variant["facts"]
        variant["scheme"] = {"weights": {"bits": 4, "group": 32}, "label": "w4g32"}
    assert "4-bit weights in buckets of 32" in _text(_page(run_of(manifest)))
    _printed(tables.variants(manifest), 50)


def test_a_run_without_teacher_or_plain_student_counts_by_arithmetic(quantized: dict[str, Any], run_of: Any):
    quantized["models"]["teacher"] = quantized["scores"]["teacher"] = None
    del quantized["variants"]["fp32"]
    rows = _rows(re.search(r'<table class="stack sizes">.*?</table>', _page(run_of(quantized)), re.DOTALL)[0])  # type: ignore[index]
    assert rows["qd4"][2:] == ["30.5 KB student 5.56×", "28 KB student 6.05×", "36 KB student 4.70× 5.54 KB above arithmetic"]


EVIL = "<script>alert(1)</script>\"'&{{7*7}}[red]"


def test_names_of_tensors_and_warnings_are_escaped(quantized: dict[str, Any], run_of: Any):
    for variant in quantized["variants"].values():
        facts = variant["facts"]
        for row in [*facts.get("tensors", []), *((facts.get("budget") or {}).get("table", []))]:
            row["name"] += EVIL
        facts["kept"] = [name + EVIL for name in facts.get("kept", [])]
        for lesson in facts.get("training", []):
            lesson["warnings"] = [warning + EVIL for warning in lesson["warnings"]]
    content = _page(run_of(quantized))
    assert "<script" not in content
    assert _text(content).count(EVIL) == 2 * 2 + 2 + 1 + 1  # tensors of qd4 and chain2, of the budget, kept, a warning
    assert EVIL in " ".join(_printed(tables.variants(quantized), 400).split("\n")), "no markup in the terminal either"


def test_the_same_run_gives_the_same_bytes(quantized: dict[str, Any], run_of: Any):
    run = run_of(quantized)
    first = report.write(run).read_bytes()
    assert report.write(run).read_bytes() == first
    assert len(first) < 250_000


def test_every_chart_lies_within_its_frame(quantized: dict[str, Any], run_of: Any):
    content = _page(run_of(quantized))
    charts = re.findall(r'(<svg class="chart" viewBox="0 0 ([\d.]+) ([\d.]+)".*?</svg>)', content, re.DOTALL)
    assert len(charts) == 9 + 2 + 6 + 1 + 2 + 6  # gate, trade-off, ratios, distribution, the student's training, the variants'
    for chart, width, height in charts:
        assert all(0 <= float(x) <= float(width) for x in re.findall(r'(?:\bx|cx|x1|x2)="(-?[\d.]+)"', chart))
        assert all(0 <= float(y) <= float(height) for y in re.findall(r'(?:\by|cy|y1|y2)="(-?[\d.]+)"', chart))


def _printed(what: RenderableType, width: int) -> str:
    out = io.StringIO()
    Console(file=out, width=width, highlight=False).print(what)
    assert max(len(line) for line in out.getvalue().splitlines()) <= width
    return out.getvalue().replace("\u202f", " ")


def test_the_terminal_says_once_why_weights_alone_are_not_faster(quantized: dict[str, Any]):
    wide = " ".join(_printed(summary.table(quantized), 80).split())
    assert wide.count("computed in float32") == 1
    assert "w8, qd4, chain2: stored in 2 to 8 bits, computed in float32: smaller, not faster" in wide
    assert "9 of 9 convolutions" not in wide
    assert "qd4 is 2.00x SLOWER than fp32 (1.9-2.1)" in wide
    assert "mixed is" not in wide
    assert "smaller, not faster" in " ".join(_printed(summary.table(quantized), 50).split())


def test_the_variants_in_the_terminal(quantized: dict[str, Any]):
    wide = _printed(tables.variants(quantized), 80)
    line = next(line for line in wide.splitlines() if line.startswith("qd4 "))
    assert line.split("  ")[0] == "qd4"
    assert line.split()[-3:] == ["4.25", "36", "KB"]
    assert "quantized distillation" in line
    assert "4-bit weights" in line
    assert "qd4: validation accuracy 85.12 % as it began, 91.75 % kept (epoch 2 of 3)" in wide
    assert "warning chain2: no epoch was better than the start" in wide
    narrow = _printed(tables.variants(quantized), 50)
    assert "4-bit weights" not in narrow
    assert next(line for line in narrow.splitlines() if line.startswith("qd4 ")).rstrip().endswith("36 KB")


FRAME = (52.0, 14.0, 336.0, 172.0)


def _disjoint(a: labels.Box, b: labels.Box) -> bool:
    return a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


@pytest.mark.parametrize("seed", range(20))
def test_names_of_nine_points_never_collide(seed: int):
    random = np.random.default_rng(seed)
    crowded = random.choice([1, 0.2, 0.0])  # from all over the plot to one place
    points = [
        (60 + 250 * (0.5 + crowded * (x - 0.5)), 20 + 140 * (0.3 + crowded * (y - 0.5))) for x, y in random.random((9, 2))
    ]
    names = [str(name) for name in random.choice(["fp32", "int8", "qd4", "chain2", "teacher", "mixed-3.5"], 9)]
    gate = (230.0, 150.0, 324.0, 162.0)
    placed = labels.place(points, names, FRAME, [gate])
    boxes = [*(label.box for label in placed), gate]
    assert all(_disjoint(a, b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert all(label.box[0] >= FRAME[0] and label.box[2] <= FRAME[2] for label in placed)
    assert placed == labels.place(points, names, FRAME, [gate])


def test_a_name_with_room_stands_right_beside_its_point():
    (alone,) = labels.place([(100.0, 80.0)], ["qd4"], FRAME)
    assert (alone.x, alone.y, alone.anchor) == (109.0, 80.0, "start")
    (at_the_edge,) = labels.place([(320.0, 80.0)], ["teacher"], FRAME)
    assert (at_the_edge.x, at_the_edge.y, at_the_edge.anchor) == (311.0, 80.0, "end")
    left, right = labels.place([(100.0, 80.0), (115.0, 80.0)], ["a", "b"], FRAME)
    assert (left.anchor, left.y, right.anchor) == ("end", 80.0, "start"), "away from the neighbour"
