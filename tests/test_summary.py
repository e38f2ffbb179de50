"""The table at the end of a run for many devices: one line each, every reason once."""

from __future__ import annotations

from copy import deepcopy

from rich.console import Console

from edgekd import summary

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


def printed(told: dict, width: int) -> list[str]:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(summary.table(told))
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
