"""Tables in the terminal: at the end of a run for many devices one line each, every reason once; of a bench one a way of timing."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
from report.benches import comparison, measurement
from report.benches import summary as numbers
from rich.console import Console

from edgekd import summary, tables

VERDICT = {"status": "passed", "by": "runtime", "reason": "well", "scores": {"runtime": 0.9}, "drop": 0.01, "samples": 300}


def manifest(**verdicts: dict) -> dict:
    """A manifest whose artifacts are TARGET__VARIANT."""
    keys = {key.replace("__", "/"): {**VERDICT, **changed} for key, changed in verdicts.items()}
    targets = dict.fromkeys(key.partition("/")[0] for key in keys)
    passed = {t: next((k.partition("/")[2] for k, v in keys.items() if k.startswith(f"{t}/") and v["status"] == "passed"), None) for t in targets}  # fmt: skip
    return {
        "metric": {"name": "accuracy", "higher_is_better": True},
        "artifacts": {key: {"files": [{"path": "m.onnx", "bytes": 5000}, {"path": "check.py", "bytes": 9000}]} for key in keys},
        "verdicts": keys,
        "chosen": {t: {"variant": variant, "why": "it is", "by": "rule"} for t, variant in passed.items()},
        "measurements": [],
        "comparisons": [],
        "refused": [{"target": "phone", "variant": "w4", "reason": "no"}],
    }


MANY = manifest(
    cpu__fp32={}, cpu__int8={"status": "failed", "reason": "int8 is wrong"}, phone__fp32={"by": "simulator", "samples": 40},
    mac__fp32={"by": "reference"}, gpu__fp32={"status": "not_verified", "by": None, "reason": "no GPU here"},
    jetson__fp32={"status": "not_verified", "by": None, "reason": "no GPU here"},
)  # fmt: skip


def printed(told: dict, width: int, table: Any = summary.table) -> list[str]:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table(told))
    return [line.rstrip() for line in console.export_text().splitlines()]


def test_many_targets_are_a_line_each():
    lines = printed(MANY, 100)
    assert [line.split()[:2] for line in lines[1:6]] == [
        ["cpu", "fp32"], ["phone", "fp32"], ["mac", "fp32"], ["gpu", "–"], ["jetson", "–"],
    ]  # fmt: skip
    assert "5\u202fKB" in lines[1], "without check.py"
    assert lines[1].endswith("1 failed")
    assert "passed by simulator" in lines[2]
    assert "of 40" in lines[2], "a score of fewer samples is another score"
    assert "of 300" not in lines[1]
    assert lines[2].endswith("1 refused")
    assert "passed by reference" in lines[3]
    assert lines[6:8] == ["failed cpu/int8: int8 is wrong", "not verified gpu, jetson: no GPU here"]


def test_in_a_narrow_terminal_the_verdicts_stay():
    assert all(len(line) <= 56 for line in printed(MANY, 56))
    assert any("passed by simulator" in line for line in printed(MANY, 56))


def test_few_targets_have_a_table_each():
    few = deepcopy(MANY)
    for part in ("verdicts", "artifacts"):
        few[part] = {key: value for key, value in few[part].items() if key.startswith(("cpu", "phone"))}
    few["chosen"] = {key: few["chosen"][key] for key in ("cpu", "phone")}
    lines = printed(few, 100)
    assert lines[0] == "cpu"
    assert "ship fp32: it is" in lines


def test_the_latency_is_of_one_call_after_another():
    one = manifest(cpu__fp32={}, cpu__int8={})

    def timed(name: str, median: float, **how: object) -> dict:
        return {"artifact": f"cpu/{name}", "device": "local", "scenario": "single-stream", "batch": 1, "warm": {"median_s": median}, **how}  # fmt: skip

    streams = [timed("fp32", 0.5, streams=2), timed("int8", 0.7, streams=2)]
    one["variants"] = {}
    one["measurements"] = [*streams, timed("fp32", 0.003), timed("int8", 0.004), timed("fp32", 0.9, scenario="sustained")]
    slow = {"target": "cpu", "control": "cpu/fp32", "candidate": "cpu/int8", "batch": 1, "why": None}
    one["comparisons"] = [
        {**slow, "streams": 2, "verdict": "int8 is 1.40x SLOWER than fp32"},
        {**slow, "verdict": "int8 is 1.33x SLOWER than fp32"},
    ]
    text = "\n".join(printed(one, 100))
    assert "3.00\u202fms" in text
    assert "4.00\u202fms" in text
    assert "1.33x SLOWER" in text
    for other in ("500", "700", "900", "1.40x", "at once"):
        assert other not in text
    one["measurements"] = streams
    text = "\n".join(printed(one, 100))
    assert "500\u202fms" in text
    assert "latency: 2 at once" in text
    assert "1.40x SLOWER" in text


PI = "ssh://pi@raspberrypi.local"
ANSWER = {
    "prompt_tokens": 64, "new_tokens": 32, "ttft": numbers(0.0231), "per_token": numbers(0.0042), "tokens_per_s": 238.1,
    "prefill_per_s": 2700.0, "encode": None,
}  # fmt: skip
FELL = {"said": "throughput fell by 20 % at 3.1 min"}


def a_bench() -> dict[str, Any]:
    """Two devices, each with calls one by one, four at once, minutes, and a language model."""
    measured, compared = [], []
    for device in ("local", PI):
        for name in ("onnxruntime-cpu/fp32", "onnxruntime-cpu/int8"):
            measured += [measurement(name, device), measurement(name, device, streams=4)]
            measured.append(measurement(name, device, scenario="sustained", sustained=FELL))
        measured.append(measurement("onnxruntime-cpu/language-model-int4", device, scenario="generation", generation=ANSWER))
        compared += [comparison("int8", r, r - 0.1, r + 0.1, device=device, streams=k) for r, k in ((1.5, None), (1.2, 4))]
    return {"measurements": measured, "comparisons": compared, "skipped": [], "folder": "out"}


@pytest.mark.parametrize("width", [60, 80])
def test_a_bench_has_a_table_for_each_device_and_way(width: int):
    lines = printed(a_bench(), width, tables.bench)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for device in ("local", PI):
        for how in ("single-stream, batch 1", "single-stream, batch 1, 4 at once", "sustained, batch 1", "generation, batch 1"):
            assert f"{device}, {how} " in " ".join(lines) + " ", how
    # no name and no number is cut: each row begins with its artifact and has its median, or first token, and unit on the line
    rows = [line.split() for line in lines if line.startswith("onnxruntime-cpu/") and "throughput" not in line]
    assert {row[0] for row in rows} == {f"onnxruntime-cpu/{name}" for name in ("fp32", "int8", "language-model-int4")}
    assert len(rows) == 14
    for row in rows:
        assert (
            ("23.1" if "language" in row[0] else "412" if row[0].endswith("fp32") else "247") in row
            or "1.24" in row
            or "741" in row
        )
    # what is said stands below its own table
    first, second = (text.index("int8 is 1.50x faster"), text.index("int8 is 1.20x faster"))
    assert first < text.index("local, single-stream, batch 1, 4 at once") < second < text.index("local, sustained")
    assert text.count("onnxruntime-cpu/fp32: throughput fell") == 2


def test_a_bench_of_one_way_has_no_title_and_says_units():
    told = {
        "measurements": [measurement("a"), measurement("b", warm={**numbers(1e-3), "median_low_s": 0.99e-3})],
        "comparisons": [],
    }
    told["measurements"][0]["warm"] = {**numbers(4e-3), "median_low_s": 2.09e-3, "median_high_s": 6.08e-3}
    told["measurements"][0]["throughput_per_s"] = 12345.6
    lines = printed(told, 80, tables.bench)
    assert lines[0].split() == ["artifact", "load", "first", "median", "95", "%", "samples/s", "memory"]
    assert " 2.09-6.08\u202fms " in lines[1]
    assert " 12,346 " in lines[1]
    assert " 990\u202fµs-1.01\u202fms " in lines[2], "two units"
    assert "single-stream" not in "".join(lines)


def test_the_median_stays_however_long_the_name():
    lines = printed({"measurements": [measurement(62 * "a" + "/fp32")], "comparisons": []}, 60, tables.bench)
    assert lines[0].split() == ["artifact", "median"]
    assert "412\u202fµs" in "".join(lines)
