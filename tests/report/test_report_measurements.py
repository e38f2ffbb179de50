"""What a measurement may have told beside its times: energy, outliers, drift, roofline, device. Without them the page is as before."""

import copy
import math
import re
from pathlib import Path
from typing import Any

import pytest
from report.benches import roofline

from edgekd import report


def text_of(run: Path) -> str:
    content = re.sub(r"<style>.*?</style>", "", report.write(run).read_text(encoding="utf-8"), flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", content).replace("\u202f", " ").split())


def test_new_keys_are_shown(manifest: dict[str, Any], run_of: Any):
    first, second = manifest["measurements"][:2]
    median = first["warm"]["median_s"]
    # 2 MFLOP over 1 MB at 10 GB/s and 50 GFLOP/s: memory binds at 100 us
    first["roofline"] = {**roofline(2e6, 1e6, median), "said": "reaches some of it"}
    first["energy"] = {"joules_per_call": 0.00465, "watts": 11.2, "idle_watts": 4.0, "source": "RAPL package-0", "why": None}
    first["outliers"] = {"count": 7, "share": 0.002, "slowest_s": 0.01}
    second["drift"] = {"from_s": 1e-3, "to_s": 2e-3, "change": 1.0, "low": 0.9, "high": 1.1, "said": "slower by 100 %"}
    run = run_of(manifest)
    text = text_of(run)
    assert "energy a call of attainable, and what binds" in text
    assert "4.65 mJ 11.2 W" in text
    assert f"{100 * 1e-4 / median:.0f} % memory" in text
    assert "7 outliers" in text
    assert "int8: Slower by 100 %." in text
    assert "fp32: Reaches some of it." in text
    content = (run / "report.html").read_text(encoding="utf-8")
    (chart,) = re.findall(r'<svg [^>]*aria-label="Roofline.*?</svg>', content, re.DOTALL)
    (dot,) = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', chart)
    # the ridge is at 5 FLOP a byte, the thing at 2: x from 2/3 to 15 over 54 to 330; y from half its rate to 100 G over 190 to 14
    assert float(dot[0]) == pytest.approx(54 + 276 * math.log(2 * 3 / 2) / math.log(15 * 3 / 2), abs=0.06)
    rate = 2e6 / median
    assert float(dot[1]) == pytest.approx(190 - 176 * math.log(2) / math.log(100e9 / (rate / 2)), abs=0.06)


def test_several_devices_are_told_apart(manifest: dict[str, Any], run_of: Any):
    manifest["measurements"][1]["device"] = manifest["comparisons"][0]["device"] = "ssh://pi@10.0.0.7"
    text = text_of(run_of(manifest))
    assert "int8 ssh://pi@10.0.0.7" in text
    assert "fp32 local" in text
    assert "on ssh://pi@10.0.0.7" in text


def test_without_them_nothing_is_said_of_them(manifest: dict[str, Any], run_of: Any):
    text = text_of(run_of(manifest))
    speed = text[text.index("Speed Timed on this machine") : text.index("Training", text.index("Speed Timed on this machine"))]
    assert "artifact batch load first call warm median slow calls samples a second peak memory fp32" in speed
    for word in ("energy", "attainable", "outlier", "Roofline", "local"):
        assert word not in speed, word
    for measurement in manifest["measurements"]:
        measurement |= dict.fromkeys(("energy", "outliers", "drift", "roofline", "sustained", "parts", "generation", "streams"))
    assert text_of(run_of(manifest)) == text


def test_blocks_with_fewer_calls_are_drawn(manifest: dict[str, Any], run_of: Any):
    import numpy as np

    run = run_of(manifest)
    path = run / manifest["measurements"][0]["samples"]
    samples = np.load(path)
    samples[0, 100:] = np.nan
    np.save(path, samples)
    text = text_of(run)
    assert "are not beside the manifest" not in text
    assert not re.search(r"\bnan\b", text)


def test_ways_of_timing_are_told_apart(manifest: dict[str, Any], run_of: Any):
    fp32, int8 = manifest["measurements"][:2]
    for m in (fp32, int8):
        more = copy.deepcopy(m)
        more["warm"]["median_s"] = 0.5
        for how in ({"streams": 2, "scenario": "single-stream"}, {"streams": None, "scenario": "sustained"}):
            manifest["measurements"].insert(0, {**copy.deepcopy(more), **how})
    ratio = {"ratio": 3.0, "low": 2.9, "high": 3.1, "verdict": "int8 is 3.00x faster than fp32 (2.90-3.10)"}
    manifest["comparisons"].insert(0, {**manifest["comparisons"][0], "streams": 2, **ratio})
    manifest["measurements"][0]["drift"] = {"said": "slower by 100 %"}
    text = text_of(run_of(manifest))
    speed = text[text.index("Speed Timed on this machine in alternating blocks, sustained runs one after the other") :]
    for how in ("single-stream", "single-stream, 2 at once", "sustained"):
        assert f"fp32 {how} 1 " in speed, how
    assert "int8 is 3.00x faster than fp32 (2.90-3.10) single-stream, 2 at once" in speed
    assert "int8, sustained: Slower by 100 %." in speed
    assert "int8 single-stream, batch 1, 2 at once 4 CPU" in speed, "around each measurement"
    # the answer and the trade-off rest on one call after another
    answer = text[: text.index("Speed Timed")]
    assert "3.00×" not in answer
    assert "500 ms" not in answer
    assert "median of a warm call" in answer
    assert "at once" not in answer


def test_latency_of_streams_alone_is_said_to_be_that(manifest: dict[str, Any], run_of: Any):
    for one in (*manifest["measurements"], *manifest["comparisons"]):
        one["streams"] = 2
    answer = text_of(run_of(manifest))
    assert "a warm call, batch 1, 2 at once" in answer
    assert "median of a warm call, 2 at once" in answer
    for one in manifest["measurements"]:
        one["device"] = "ssh://pi@10.0.0.7"
    answer = text_of(run_of(manifest))
    assert "Chosen by measurement on ssh://pi@10.0.0.7." in answer
    assert "Timed on ssh://pi@10.0.0.7 in alternating blocks" in answer


def test_what_generates_has_its_first_token_and_its_rates(manifest: dict[str, Any], run_of: Any):
    assert "first token (TTFT)" not in text_of(run_of(manifest))
    manifest["measurements"][0]["generation"] = {
        "prompt_tokens": 48, "new_tokens": 16, "ttft": {"median_s": 0.0215, "median_low_s": 0.021, "median_high_s": 0.022},
        "per_token": {"median_s": 0.004}, "tokens_per_s": 250.0, "prefill_per_s": 2232.6, "encode": None,
    }  # fmt: skip
    text = text_of(run_of(manifest))
    assert "artifact tokens first token (TTFT) each token after it tokens a second prompt tokens a second" in text
    assert "48 in, 16 out 21.5 ms 21.0 ms to 22.0 ms 4.00 ms 250 2,233" in text
