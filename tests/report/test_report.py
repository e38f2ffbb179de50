"""The report and the summary: whole, in parts, hostile, and within their limits."""

import io
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from html_page import Page
from rich.console import Console

from edgekd import report, schema, summary
from edgekd.errors import BadInput
from edgekd.report import formats, svg

CPU = "onnxruntime-cpu"


def page_of(run: Path) -> Page:
    return Page(report.write(run).read_text(encoding="utf-8"))


def test_a_whole_run_says_what_to_ship_and_why(manifest: dict[str, Any], run_of: Any):
    page = page_of(run_of(manifest))
    for words in (
        "Ship int8",
        "Chosen by measurement on this machine.",
        "91.99\u202f%",
        "−0.63\u202fpoints from the teacher",
        "61.2\u202fKB",
        "81× smaller than the teacher",
        "Not verified: nothing to ship yet",
        "Raspberry Pi 5 is aarch64 and this machine x86_64.",
        "net.blocks.1.depthwise",
        "w8 was not made for raspberry-pi-5",
        "w8 is 1.39x SLOWER than fp32",
        "9 of 9 convolutions and matrix products are left in float",
        "the weights of epoch 21 kept",
        "21.4\u202fs cached",
        "AMD Ryzen 7 5800U",
        "source: fashion-mnist",
        "From the path of the file to a session that is ready.",
        "10,000 samples",
        "signal to noise",
        "CPU 23 nodes",
    ):
        assert words.replace("\u202f", " ") in page.text, words
    assert page.text.index("Ship int8") < 200, "the answer comes first"
    for section in ("gate", "tradeoff", "speed", "training", "pipeline", "environment", "recipe", "clock"):
        assert any(attributes.get("id") == section for _, attributes in page.tags)


def test_it_is_one_file_without_network_or_scripts_and_small(manifest: dict[str, Any], run_of: Any):
    run = run_of(manifest)
    start = time.monotonic()
    path = report.write(run)
    assert time.monotonic() - start < 3
    assert path == run / "report.html"
    content = path.read_text(encoding="utf-8")
    assert len(content.encode()) < 500_000
    page = Page(content)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object"}
    assert not re.search(r"https?://|url\(|@import|src=", content)
    assert all(not name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert all((attributes.get("href") or "#").startswith("#") for _, attributes in page.tags)
    assert "prefers-color-scheme: dark" in content
    assert sorted(p.name for p in run.iterdir()) == ["manifest.json", "measurements", "report.html"], "nothing is left behind"


def test_the_same_run_gives_the_same_bytes(manifest: dict[str, Any], run_of: Any):
    run = run_of(manifest)
    first = report.write(run).read_bytes()
    assert report.write(run).read_bytes() == first


def test_every_chart_lies_within_its_frame(manifest: dict[str, Any], run_of: Any):
    content = report.write(run_of(manifest)).read_text(encoding="utf-8")
    charts = re.findall(r'<svg class="chart" viewBox="0 0 ([\d.]+) ([\d.]+)".*?</svg>', content, re.DOTALL)
    assert len(charts) == 6 + 2 + 3 + 1 + 2  # gate, trade-off, ratios, distribution, training
    for match in re.finditer(r'<svg class="chart" viewBox="0 0 ([\d.]+) ([\d.]+)".*?</svg>', content, re.DOTALL):
        width, height = float(match[1]), float(match[2])
        places = re.findall(r'(?:\bx|cx|x1|x2)="(-?[\d.]+)"', match[0]), re.findall(r'(?:\by|cy|y1|y2)="(-?[\d.]+)"', match[0])
        assert all(0 <= float(x) <= width for x in places[0])
        assert all(0 <= float(y) <= height for y in places[1])
        assert "nan" not in match[0].lower()


EVIL = "<script>alert(1)</script>\"'&{{7*7}}"


def _poison(value: Any, skip: tuple[str, ...] = ()) -> Any:
    """Append markup to every text that a user, a model or a runtime may choose."""
    if isinstance(value, dict):
        return {
            (k + EVIL if k in ("logits", "CPUExecutionProvider") else k): v if k in skip else _poison(v, skip)
            for k, v in value.items()
        }
    if isinstance(value, list):
        return [_poison(v, skip) for v in value]
    return value + EVIL if isinstance(value, str) else value


def test_everything_from_the_manifest_is_escaped(manifest: dict[str, Any], run_of: Any):
    skip = (
        "schema",
        "kind",
        "status",
        "lost_at",
        "by",
        "stopped_by",
        "artifact",
        "samples",
        "candidate",
        "control",
        "artifact_sha256",
    )
    poisoned = _poison(manifest, skip)
    page = page_of(run_of(poisoned))
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.text.count("<script>alert(1)</script>") > 50
    assert "{{7*7}}" in page.text


def test_a_variant_name_is_escaped_in_charts_too(manifest: dict[str, Any], run_of: Any):
    name = "<b>&int8"
    manifest["variants"] = {name if k == "int8" else k: v for k, v in manifest["variants"].items()}
    manifest["verdicts"] = {
        k.replace(f"{CPU}/int8", f"{CPU}/{name}") if k == f"{CPU}/int8" else k: v for k, v in manifest["verdicts"].items()
    }
    manifest["artifacts"] = {f"{CPU}/{name}" if k == f"{CPU}/int8" else k: v for k, v in manifest["artifacts"].items()}
    for m in manifest["measurements"]:
        if m["artifact"] == f"{CPU}/int8":
            m["artifact"] = f"{CPU}/{name}"
    page = page_of(run_of(manifest))
    assert ("b", {}) not in [(tag, attributes) for tag, attributes in page.tags if "&int8" in str(attributes)]
    assert page.text.count(name) >= 5


def _only(manifest: dict[str, Any], target: str) -> None:
    for key in ("artifacts", "verdicts"):
        manifest[key] = {k: v for k, v in manifest[key].items() if k.startswith(f"{target}/")}
    manifest["chosen"] = {target: manifest["chosen"][target]}


def no_training(m: dict[str, Any]) -> None:
    m["training"] = None


def no_teacher(m: dict[str, Any]) -> None:
    m["scores"]["teacher"] = m["models"]["teacher"] = None
    for v in m["verdicts"].values():
        v["scores"].pop("teacher", None)


def no_measurements(m: dict[str, Any]) -> None:
    m["measurements"], m["comparisons"] = [], []
    m["chosen"][CPU] |= {"by": "rule", "why": "not measured here; `onnxruntime-cpu` prefers w8a8"}


def all_failed(m: dict[str, Any]) -> None:
    _only(m, CPU)
    m["verdicts"] = {f"{CPU}/int8-broken": m["verdicts"][f"{CPU}/int8-broken"]}
    m["chosen"][CPU] = {"variant": None, "why": "no variant passed the gate", "by": "rule"}


def not_verified(m: dict[str, Any]) -> None:
    _only(m, "raspberry-pi-5")
    no_measurements({**m, "chosen": {CPU: {}}})
    m["measurements"], m["comparisons"] = [], []


def only_distilled(m: dict[str, Any]) -> None:
    for key in ("variants", "artifacts", "verdicts", "chosen"):
        m[key] = {}
    m["measurements"], m["comparisons"], m["refused"] = [], [], []


def exported(m: dict[str, Any]) -> None:
    m["verdicts"], m["chosen"], m["measurements"], m["comparisons"] = {}, {}, [], []


def verified(m: dict[str, Any]) -> None:
    m["chosen"], m["measurements"], m["comparisons"] = {}, [], []


def trained(m: dict[str, Any]) -> None:
    only_distilled(m)
    m["kind"] = "train"
    m["scores"]["student"] = m["models"]["student"] = None


def stopped_in_distillation(m: dict[str, Any]) -> None:
    only_distilled(m)
    m["training"] = None
    m["stages"] = [stage for stage in m["stages"] if stage["name"] == "teacher-cache"]
    m["scores"] = m["models"] = {"teacher": None, "student": None}


def stopped_in_training(m: dict[str, Any]) -> None:
    stopped_in_distillation(m)
    m["kind"], m["stages"] = "train", []


def no_samples(m: dict[str, Any]) -> None:
    m["measurements"][0]["samples"] = "measurements/gone.npy"
    m["measurements"][1]["samples"] = "../../etc/passwd.npy"


def loss_metric(m: dict[str, Any]) -> None:
    m["metric"] = {"name": "perplexity", "higher_is_better": False}


def one_epoch(m: dict[str, Any]) -> None:
    m["training"]["epochs"] = m["training"]["epochs"][:1]
    m["training"] |= {"best_epoch": 0, "warnings": ["no epoch was better than the start"]}


def without_numbers(m: dict[str, Any]) -> None:
    v = m["verdicts"][f"{CPU}/int8-broken"]
    v["parity"]["file"] = {"max_abs": None, "relative": None, "sqnr_db": None, "reason": "`logits` has NaN"}
    v["first_divergence"] = {
        "node": "n",
        "module": None,
        "operation": "Conv",
        "tensor": "t",
        "relative": None,
        "sqnr_db": None,
        "reason": "NaN",
    }
    m["comparisons"][0] |= {
        "low": None,
        "high": None,
        "verdict": "too few blocks to compare int8 with fp32: give the clock more time",
    }
    m["measurements"][0] |= {"peak_memory_bytes": None, "peak_memory_above_runtime_bytes": None, "stopped_by": "max_seconds"}


PARTS = [
    (no_training, "Nothing was trained: the student was taken as it came."),
    (no_teacher, "from the student"),
    (no_measurements, "Not measured: chosen by the target's rule."),
    (all_failed, "Nothing to ship: the gate failed int8-broken lost it at the file stage"),
    (not_verified, "Not verified: nothing to ship yet"),
    (only_distilled, "Nothing to ship yet"),
    (exported, "Not verified yet"),
    (verified, "Verified, not chosen yet"),
    (trained, "The teacher scores 92.62\u202f% accuracy on the test samples."),
    (stopped_in_distillation, "Not trained yet: the run stopped before the student was finished."),
    (stopped_in_training, "Not trained yet: the run stopped before its training was finished."),
    (stopped_in_training, "The model is not trained yet."),
    (no_samples, "are not beside the manifest"),
    (loss_metric, "perplexity"),
    (one_epoch, "no epoch was better than the start"),
    (without_numbers, "too few blocks to compare"),
]


@pytest.mark.parametrize(("change", "words"), PARTS, ids=[change.__name__ for change, _ in PARTS])
def test_a_run_that_lacks_a_part_still_makes_a_good_report(manifest: dict[str, Any], run_of: Any, change: Any, words: str):
    change(manifest)
    assert schema.problems(manifest) == []
    run = run_of({**manifest, "measurements": [m for m in manifest["measurements"] if ".." not in m["samples"]]})
    if change is no_samples:
        (run / "manifest.json").write_text(__import__("json").dumps(manifest))
        (run / "measurements/gone.npy").unlink()
    page = page_of(run)
    assert words.replace("\u202f", " ") in page.text
    assert not re.search(r"\b(None|nan|NaN points|inf)\b", page.text.replace("has NaN", ""))
    for width in (80, 40):
        _printed(manifest, width)


def test_damaged_samples_leave_out_the_plot_and_nothing_more(manifest: dict[str, Any], run_of: Any):
    run = run_of(manifest)
    (run / manifest["measurements"][0]["samples"]).write_bytes(b"\x93NUMPY broken")
    np.save(run / manifest["measurements"][1]["samples"], np.array([[0.0, np.nan]]))
    assert "are not beside the manifest" in page_of(run).text


def test_a_folder_that_is_no_run_is_bad_input(tmp_path: Path):
    with pytest.raises(BadInput, match="not a run folder"):
        report.write(tmp_path)


def test_many_epochs_stay_small(manifest: dict[str, Any], run_of: Any):
    epoch = manifest["training"]["epochs"][0]
    manifest["training"]["epochs"] = [{**epoch, "epoch": i + 1, "loss": 1 / (i + 1)} for i in range(5000)]
    assert report.write(run_of(manifest)).stat().st_size < 150_000


def _printed(manifest: dict[str, Any], width: int) -> str:
    out = io.StringIO()
    Console(file=out, width=width, highlight=False).print(summary.table(manifest))
    assert max(len(line) for line in out.getvalue().splitlines()) <= width
    return out.getvalue()


def test_the_summary_fits_the_terminal(manifest: dict[str, Any]):
    wide = _printed(manifest, 80)
    (ship,) = [line for line in wide.splitlines() if line.rstrip().endswith(" ship")]
    assert ship.replace("\u202f", " ").split() == [
        "int8",
        "61.2",
        "KB",
        "91.99",
        "%",
        "−0.63",
        "points",
        "254",
        "µs",
        "passed",
        "ship",
    ]
    assert "ship int8: the fastest of 3 that passed" in wide
    assert "not verified: Raspberry Pi 5" in wide
    assert "SLOWER" in wide
    narrow = _printed(manifest, 50)
    assert "change" not in narrow
    assert "int8-broken" in narrow
    assert next(line for line in narrow.splitlines() if line.startswith("int8 ")).rstrip().endswith("passed   ship")


def test_names_with_brackets_are_not_markup(manifest: dict[str, Any]):
    manifest["chosen"][CPU]["why"] = "because [red]of[/] this"
    assert "because [red]of[/] this" in _printed(manifest, 100)


def test_neither_torch_nor_a_backend_is_imported():
    code = "import sys, edgekd.report.view, edgekd.report.page, edgekd.summary, edgekd.bench, edgekd.host; print([m for m in ('torch', 'onnx', 'onnxruntime', 'matplotlib', 'pandas') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (formats.size(999), "999 B"),
        (formats.size(999.6), "1 KB"),
        (formats.size(61_207), "61.2 KB"),
        (formats.size(4_984_360), "4.98 MB"),
        (formats.size(None), "–"),
        (formats.duration(34.7e-6), "34.7 µs"),
        (formats.duration(0.99999e-3), "1.00 ms"),
        (formats.duration(2e-3, plain=True), "2 ms"),
        (formats.duration(12.3), "12.3 s"),
        (formats.clock(103.9), "1 min 44 s"),
        (formats.clock(7500), "2 h 5 min"),
        (formats.digits(0.000123), "0.000123"),
        (formats.digits(13_180), "13,200"),
        (formats.number(1_246_090), "1.25 M"),
        (formats.times(81.4), "81×"),
        (formats.Metric({"name": "accuracy", "higher_is_better": True}).drop(-0.00001), "0.00 points"),
        (formats.Metric({"name": "accuracy", "higher_is_better": True}).drop(-0.012), "+1.20 points"),
        (formats.Metric({"name": "perplexity", "higher_is_better": False}).drop(0.5), "+0.500"),
    ],
)
def test_numbers_as_a_person_reads_them(made: str, expected: str):
    assert made.replace("\u202f", " ") == expected


def test_labels_are_moved_apart_and_stay_near():
    placed = svg.spread([50, 50, 50, 120], 10, 0, 130)
    assert sorted(placed) == [40, 50, 60, 120]
    assert svg.spread([5, 5], 10, 4, 100) == [4, 14]
    assert svg.spread([99, 99, 99], 10, 0, 100) == [80, 90, 100]
    assert svg.ticks(0.874, 0.926) == [0.88, 0.89, 0.9, 0.91, 0.92]
    assert svg.log_ticks(250e-6, 700e-6) == pytest.approx([3e-4, 4e-4, 5e-4, 7e-4])
    assert svg.scale((3, 3), (0, 10))(3) == 5
