"""The page of a bench: what it says, where its points lie, and what it does without."""

import html.parser
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from html_page import Page
from report import benches
from report.benches import RATES, comparison, device, measurement, record, roofline, samples, summary, write

from edgekd.errors import BadInput
from edgekd.report import bench_charts, formats, write_bench


def page_of(folder: Path, told: dict[str, Any], raw: dict[str, np.ndarray] | None = None) -> Page:
    return Page(write_bench(write(folder, told, raw)).read_text(encoding="utf-8"), unread=("style", "pre", "title"))


def charts(folder: Path, begin: str) -> list[str]:
    """Return the charts whose spoken label begins so."""
    content = (folder / "report.html").read_text(encoding="utf-8")
    return [m[0] for m in re.finditer(r"<svg .*?</svg>", content, re.DOTALL) if f'aria-label="{begin}' in m[0]]


def dots(chart: str) -> list[tuple[float, float]]:
    """Return the centres of a chart's circles."""
    return [(float(m[1]), float(m[2])) for m in re.finditer(r'<circle cx="([\d.]+)" cy="([\d.]+)"', chart)]


def line_of(chart: str, class_: str) -> list[list[tuple[float, float]]]:
    """Return the points of a chart's paths of a class."""
    found = []
    for m in re.finditer(rf'<path d="([^"]+)" class="{class_}"', chart):
        found.append([tuple(map(float, place.split())) for place in re.split(r"[ML]", m[1]) if place.strip()])
    return found


def logs(value: float, domain: tuple[float, float], pixels: tuple[float, float]) -> float:
    """Return where a value lies on a logarithmic axis."""
    share = math.log(value / domain[0]) / math.log(domain[1] / domain[0])
    return pixels[0] + share * (pixels[1] - pixels[0])


def near(x: float, y: float) -> Any:
    return pytest.approx((x, y), abs=0.06)


# the answer


def test_the_faster_of_two_is_said_first_with_its_interval(tmp_path: Path):
    told = record([measurement("fp32"), measurement("int8")], [comparison("int8", 1.668, 1.61, 1.72)])
    page = page_of(tmp_path, told)
    head = "AMD Ryzen 7 5800U · single-stream, batch 1 int8 is the fastest 1.67× faster than fp32 (95 %: 1.61× to 1.72×)."
    assert head in page.text
    assert page.text.index("int8 is the fastest") < 200, "the answer comes first"
    assert "a warm call of int8 247 µs 95 %: 245 µs to 249 µs" in page.text
    assert "p99 741 µs of 3,000 calls" in page.text
    assert "throughput 3,856/s" in page.text  # 1 / (1.05 x 247 us)


def test_a_slower_candidate_makes_the_control_fastest_and_says_why(tmp_path: Path):
    one = comparison("w8", 0.8, 0.75, 0.85, why="this CPU has no VNNI")
    page = page_of(tmp_path, record([measurement("fp32"), measurement("w8")], [one]))
    # 1/0.8, 1/0.85 and 1/0.75
    assert "fp32 is the fastest 1.25× faster than w8 (95 %: 1.18× to 1.33×)." in page.text
    assert "w8 is 1.25x SLOWER than fp32 (1.18-1.33). This CPU has no VNNI." in page.text


def test_no_difference_names_no_winner(tmp_path: Path):
    told = record([measurement("a"), measurement("b"), measurement("c")], [])
    told["comparisons"] = [comparison("b", 1.01, 0.97, 1.04, "a"), comparison("c", 0.7, 0.68, 0.72, "a")]
    page = page_of(tmp_path, told)
    assert "No difference seen Between a and b; c slower." in page.text
    assert "the fastest" not in page.text


def test_too_few_blocks_name_no_winner(tmp_path: Path):
    told = record([measurement("fp32"), measurement("int8")], [comparison("int8", 1.9, None, None)])
    page = page_of(tmp_path, told)
    assert "Too few blocks to tell" in page.text
    assert "Too few blocks to compare int8 with fp32: give the clock more time." in page.text
    assert "the fastest" not in page.text


def test_slower_and_unknown_name_no_winner_either(tmp_path: Path):
    compared = [comparison("w8", 0.8, 0.75, 0.85), comparison("int8", 1.9, None, None)]
    page = page_of(tmp_path, record([measurement(n) for n in ("fp32", "w8", "int8")], compared))
    assert "Too few blocks to tell" in page.text
    assert "the fastest" not in page.text


def test_comparisons_stay_with_their_number_of_streams(tmp_path: Path):
    things = [measurement(n, streams=k) for k in (2, 4, None) for n in ("fp32", "int8")]
    compared = [comparison("int8", r, 0.9 * r, 1.1 * r, streams=k) for r, k in ((1.2, 4), (1.5, None), (2.0, 2))]
    text = page_of(tmp_path, record(things, compared)).text
    assert "single-stream, batch 1, 2 at once int8 is the fastest 2.00× faster" in text
    assert "single-stream, batch 1, 4 at once int8 is the fastest 1.20× faster" in text
    assert "single-stream, batch 1 int8 is the fastest 1.50× faster" in text


def test_two_that_are_faster_and_alike_share_the_first_place(tmp_path: Path):
    things = [measurement(n, samples=f"{n}.npy") for n in ("fp32", "x", "y")]
    compared = [comparison("x", 1.70, 1.60, 1.80), comparison("y", 1.67, 1.57, 1.77)]
    same = {"x.npy": samples("x", 1e-3, slow=False), "y.npy": samples("y", 1.001e-3, slow=False)}
    assert "x and y are the fastest No difference seen between them" in page_of(tmp_path, record(things, compared), same).text
    # their own blocks, timed side by side, tell them apart though the two intervals against fp32 meet
    apart = {**same, "y.npy": samples("y", 1.08e-3, slow=False)}
    assert "x is the fastest 1.70× faster than fp32" in page_of(tmp_path, record(things, compared), apart).text
    # without samples the intervals decide
    (tmp_path / "x.npy").unlink()
    assert "x and y are the fastest" in page_of(tmp_path, record(things, compared)).text
    compared[1] = comparison("y", 1.5, 1.45, 1.55)
    assert "x is the fastest" in page_of(tmp_path, record(things, compared)).text


def test_one_thing_alone_claims_nothing(tmp_path: Path):
    page = page_of(tmp_path, record([measurement("fp32")]))
    assert "fp32: 412 µs a call Timed alone: there is nothing to compare it with." in page.text
    assert "Size against latency: it takes two things" in page.text
    assert "faster" not in page.text.split("What the numbers mean")[0]


def test_things_that_nobody_compared_get_no_ratio(tmp_path: Path):
    page = page_of(tmp_path, record([measurement("fp32"), measurement("int8")]))
    assert "Not compared int8 has the lowest median, 247 µs, but no two were compared: no ratio is claimed." in page.text


# devices

PI = "ssh://pi@10.0.0.7"


def three_devices() -> dict[str, Any]:
    things = [measurement("t/fp32"), measurement("t/fp32", PI), measurement("t/int8"), measurement("t/int8", PI)]
    compared = [comparison("t/int8", 1.67, 1.6, 1.7, "t/fp32"), comparison("t/int8", 0.9, 0.85, 0.95, "t/fp32", device=PI)]
    return record(
        things,
        compared,
        devices={
            "local": device(),
            PI: device(PI, "Raspberry Pi 5", host={**benches.HOST, "cpu": "Cortex-A76", "vnni": True}),
            "browser": device("browser", "Chromium 140", host=None),
        },
        skipped=[
            {"artifact": "t/int8", "device": "browser", "scenario": "single-stream", "reason": "the operator is not there"},
            {"artifact": "t/w8", "device": PI, "scenario": "chain", "reason": "the connection broke"},
        ],
    )


def test_each_device_has_its_own_answer_and_what_was_left_out_its_reason(tmp_path: Path):
    page = page_of(tmp_path, three_devices())
    assert "AMD Ryzen 7 5800U · single-stream, batch 1 int8 is the fastest" in page.text
    assert f"Raspberry Pi 5 ({PI}) · single-stream, batch 1 fp32 is the fastest" in page.text
    assert "Chromium 140 (browser) Nothing was timed The operator is not there." in page.text
    assert "chain Not timed. The connection broke." in page.text
    assert "Cortex-A76" in page.text
    assert "The device did not describe itself." in page.text


def test_across_devices_stand_medians_and_an_unpaired_quotient(tmp_path: Path):
    text = page_of(tmp_path, three_devices()).text
    begin = text.index("Across devices")
    across = text[begin : text.index("Compared:", begin)]
    assert "unpaired and without an interval. It is no comparison." in across
    assert "fp32 single-stream, batch 1 412 µs 1.24 ms 3.00× unpaired" in across
    assert "int8 single-stream, batch 1 247 µs 741 µs 3.00× unpaired" in across
    assert "faster" not in across
    assert "slower" not in across.lower()
    told = three_devices()
    told["measurements"].append(measurement("t/only-here"))
    text = page_of(tmp_path, told).text
    assert "only-here" not in text[text.index("Across devices") : text.index("Compared:")]
    assert "Across devices" not in page_of(tmp_path, record([measurement("fp32"), measurement("int8", PI)])).text


# the table


def test_the_table_has_energy_and_roofline_where_they_were_measured(tmp_path: Path):
    energy = {"joules_per_call": 0.00465, "watts": 11.2, "idle_watts": 4.0, "source": "RAPL package-0", "why": None}
    told = record([measurement("fp32", energy=energy, roofline=roofline(3.1e6, 520e3, 412e-6)), measurement("int8")])
    text = page_of(tmp_path, told).text
    assert "energy a call of attainable" in text
    assert "4.65 mJ 11.2 W" in text
    # max(3.1e6 / 50e9, 520e3 / 10e9) = 62 us of 412 us
    assert "15 % arithmetic" in text
    assert "Energy: not available here: no RAPL counter may be read." in text
    without = page_of(tmp_path, record([measurement("int8")])).text
    assert "energy a call" not in without
    assert "of attainable" not in without.split("What the numbers mean")[0]


def test_drift_and_notes_are_said(tmp_path: Path):
    one = measurement(
        "fp32", drift={"from_s": 1e-3, "to_s": 1.1e-3, "change": 0.1, "low": 0.05, "high": 0.15, "said": "slower by 10 %"}
    )
    one["environment"]["notes"] = ["the machine was busy"]
    text = page_of(tmp_path, record([one])).text
    assert "fp32: Slower by 10 %." in text
    assert "fp32: Slower by 10 %. The machine was busy." in text
    text = page_of(tmp_path, record([one, {**one, "batch": 8}])).text
    assert "single-stream, batch 8. fp32: Slower by 10 %." in text


# every call


def test_every_call_is_drawn_and_outliers_are_counted(tmp_path: Path):
    raw = np.full((4, 25), 1e-3)
    raw[3, 24] = 0.1
    raw[2, 20:] = np.nan  # a block with fewer calls
    one = measurement("fp32", warm=summary(1e-3, 95), samples="a.npy", outliers={"count": 1, "share": 1 / 95, "slowest_s": 0.1})
    page = page_of(tmp_path, record([one]), {"a.npy": raw})
    (chart,) = charts(tmp_path, "Times of single calls")
    assert "fp32: 1 outlier (1.1 %), the slowest 100 ms" in page.text
    # the axis goes from 1 ms / 1.04 to 100 ms x 1.04 in 108 steps over 8 to 332; one call of 95 stands sqrt(1/94) x 30 high
    (outline,) = line_of(chart.replace(" Z", ""), "ridge s0")
    last = [point for point in outline if point[0] > 320]
    assert min(y for _, y in last) == pytest.approx(50 - 30 / math.sqrt(94), abs=0.06)
    assert any(math.isclose(x, 332, abs_tol=0.06) for x, _ in last)


# over time


def falling(**other: Any) -> dict[str, Any]:
    series = [[float(t), 100.0 if t < 300 else 80.0] for t in range(0, 601, 10)]
    lasting = {
        "minutes": 10, "first_per_s": 100.0, "last_per_s": 80.0, "fell_at_s": 300.0, "change": -0.2, "cause": "warm",
        "said": "falls by 20 % at 5 min", "series": series,
    }  # fmt: skip
    return measurement("fp32", scenario="sustained", sustained={**lasting, **other})


def test_the_point_where_throughput_falls_is_marked(tmp_path: Path):
    page = page_of(tmp_path, record([falling()]))
    (chart,) = charts(tmp_path, "Throughput over time")
    (curve,) = line_of(chart, "curve s0")
    # seconds 0 to 600 over 50 to 330; a second 0 to 108 over 158 to 26
    assert curve[0] == near(50, 158 - 132 * 100 / 108)
    assert curve[29] == near(50 + 280 * 290 / 600, 158 - 132 * 100 / 108)
    assert curve[30] == near(190, 158 - 132 * 80 / 108)
    assert curve[-1] == near(330, 158 - 132 * 80 / 108)
    assert re.search(r'<line x1="190" y1="[\d.]+" x2="190" y2="158" class="fall"', chart)
    assert "fp32 falls at 5 min 0 s" in page.text
    assert "fp32: Falls by 20 % at 5 min." in page.text
    assert "at the end" in page.text
    assert "80/s 100 a second at the beginning" in page.text
    assert "sustained, batch 1 Throughput falls: fp32 at 5 min 0 s Without a pause." in page.text
    hot = falling(temperature_c=[[0.0, 40.0], [300.0, 60.0], [600.0, 80.0]])
    assert "Temperature, fp32" in page_of(tmp_path, record([hot])).text
    (beside,) = charts(tmp_path, "From 40")
    # 36 to 84 degrees over 60 to 8
    assert line_of(beside, "beside") == [[near(50, 60 - 52 * 4 / 48), near(190, 34), near(330, 60 - 52 * 44 / 48)]]
    assert "minutes" in chart
    page_of(tmp_path, record([falling(), {**falling(), "artifact": "int8"}]))
    assert charts(tmp_path, "Median latency against size") == [], "the same things stand in the front of their latency"


def test_sustained_runs_are_not_compared(tmp_path: Path):
    held = {**falling(fell_at_s=None, said="throughput held for 10 min: 100 a second"), "artifact": "int8"}
    text = page_of(tmp_path, record([held, {**held, "artifact": "w8"}])).text
    assert "Throughput held One after the other, each without a pause: their speeds are not compared." in text
    assert "w8 at the end 80/s 100/s at the beginning" in text
    assert "Throughput falls: fp32 at 5 min 0 s One after" in page_of(tmp_path, record([held, falling()])).text
    short = falling(fell_at_s=None, said="5 blocks are too few to say whether throughput held; 60 are needed")
    assert "No fall found" in page_of(tmp_path, record([short])).text


def test_a_run_that_does_not_fall_has_no_mark_and_one_without_series_says_so(tmp_path: Path):
    page_of(tmp_path, record([falling(fell_at_s=None)]))
    (chart,) = charts(tmp_path, "Throughput over time")
    assert 'class="fall"' not in chart
    page = page_of(tmp_path, record([falling(series=None, said=None)]))
    assert charts(tmp_path, "Throughput over time") == []
    assert "The series was not kept." in page.text
    assert "fp32: From 100 to 80 a second; it falls at 5 min 0 s." in page.text


# roofline


def test_the_roofline_has_its_points_where_arithmetic_puts_them(tmp_path: Path):
    # 8 MFLOP over 1 MB in 400 us: 20 GFLOP/s at 8 FLOP a byte, of min(50, 10 x 8) = 50: 40 %
    # 2 MFLOP over 1 MB in 250 us: 8 GFLOP/s at 2 FLOP a byte, of min(50, 10 x 2) = 20: 40 %
    things = [
        measurement("one", warm=summary(400e-6), roofline=roofline(8e6, 1e6, 400e-6)),
        measurement("two", warm=summary(250e-6), roofline=roofline(2e6, 1e6, 250e-6)),
    ]
    page = page_of(tmp_path, record(things, devices={"local": device(rates=RATES)}))
    (chart,) = charts(tmp_path, "Roofline")

    # ridges at 50/10 = 5 and 100/10 = 10, so x from 2/3 to 30 over 54 to 330; y from 8/2 to 100 x 2 G over 190 to 14
    def x(value: float) -> float:
        return logs(value, (2 / 3, 30), (54, 330))

    def y(value: float) -> float:
        return logs(value, (4e9, 200e9), (190, 14))

    assert dots(chart) == [near(x(8), y(20e9)), near(x(2), y(8e9))]
    slope, *ceilings = line_of(chart, "roof")
    assert slope == [near(x(2 / 3), y(10e9 * 2 / 3)), near(x(10), y(100e9))]
    assert ceilings == [[near(x(5), y(50e9)), near(330, y(50e9))], [near(x(10), y(100e9)), near(330, y(100e9))]]
    for words in ("one 40 %", "two 40 %", "float32 50.0 GFLOP/s", "int8 100 GFLOP/s", "10.0 GB/s"):
        assert (
            f">{words.replace(' ', chr(0x202F))}<".replace("one" + chr(0x202F), "one ")
            .replace("two" + chr(0x202F), "two ")
            .replace("float32" + chr(0x202F), "float32 ")
            .replace("int8" + chr(0x202F), "int8 ")
            in chart
        ), words
    assert "one: 40 % of what the arithmetic allows." in page.text
    assert "two: 40 % of what the memory allows." in page.text
    assert "8.00 MFLOP 1 MB 8.00 160 µs 400 µs 40 % arithmetic" in page.text


def test_without_the_devices_rates_the_roof_is_what_was_held_against(tmp_path: Path):
    page_of(tmp_path, record([measurement("one", warm=summary(400e-6), roofline=roofline(8e6, 1e6, 400e-6))]))
    (chart,) = charts(tmp_path, "Roofline")
    assert "matrix rate 50.0\u202fGFLOP/s" in chart
    assert len(line_of(chart, "roof")) == 2


def test_two_bandwidths_are_named_to_the_right_of_both(tmp_path: Path):
    """One thing goes through a cache, the other through memory."""
    things = [
        measurement("one", warm=summary(2e-4), roofline=roofline(1e7, 1e6, 2e-4, bandwidth=80e9)),
        measurement("two", warm=summary(2e-4), roofline=roofline(1e7, 9e6, 2e-4, bandwidth=40e9)),
    ]
    page_of(tmp_path, record(things))
    (chart,) = charts(tmp_path, "Roofline")
    slow, fast = line_of(chart, "roof")[:2]
    ((x, y),) = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" class="axis halo">40.0\u202fGB/s and 80.0\u202fGB/s<', chart)
    for (left, bottom), (right, top) in (slow, fast):
        assert float(x) > left + (bottom - float(y)) / (bottom - top) * (right - left)


def test_a_bandwidth_stands_clear_of_the_axis(tmp_path: Path):
    # a slope that only begins at the chart's left edge: little room beside it
    page_of(tmp_path, record([measurement("one", warm=summary(2e-4), roofline=roofline(1e7, 1e6, 2e-4, bandwidth=40e9))]))
    (chart,) = charts(tmp_path, "Roofline")
    (place,) = re.findall(r'<text x="([\d.]+)" y="[\d.]+" text-anchor="end" class="axis halo">40.0', chart)
    assert float(place) - 6.2 * len("40.0 GB/s") >= 54


def test_work_is_what_the_roof_counts(tmp_path: Path):
    """Of a graph with other operations beside its products the roof counts the products alone."""
    roof = {**roofline(8e6, 1e6, 400e-6), "flops": 9.5e6}
    page_of(tmp_path, record([measurement("one", warm=summary(400e-6), roofline=roof)]))
    (chart,) = charts(tmp_path, "Roofline")
    # x from 5/3 to 24, y from 10 to 100 G
    assert dots(chart) == [near(logs(8, (5 / 3, 24), (54, 330)), logs(20e9, (10e9, 100e9), (190, 14)))]


# size and speed


def test_the_front_runs_through_what_nothing_beats(tmp_path: Path):
    sizes = {"a": (100_000, 4e-3, 0.91), "b": (200_000, 2e-3, 0.92), "c": (400_000, 3e-3, 0.93), "d": (800_000, 1e-3, None)}
    things = []
    for name, (size, median, score) in sizes.items():
        things.append(measurement(name, warm=summary(median), score={"value": score, "metric": "accuracy"} if score else None))
        things[-1]["environment"]["artifact_bytes"] = size
    page = page_of(tmp_path, record(things))
    (chart,) = charts(tmp_path, "Median latency against size")

    def at(size: float, median: float) -> tuple[float, float]:
        return logs(size, (80e3, 1e6), (52, 328)), logs(median, (0.8e-3, 5e-3), (172, 14))

    assert dots(chart) == [near(*at(*sizes[name][:2])) for name in sizes]
    (front,) = line_of(chart, "front")
    corners = [(1e5, 4e-3), (2e5, 4e-3), (2e5, 2e-3), (8e5, 2e-3), (8e5, 1e-3)]
    assert front == [near(*at(*corner)) for corner in corners]
    assert "Nothing is both smaller and faster than a, b, d." in page.text
    assert ">a  91.00\u202f%<" in chart
    assert ">d<" in chart
    assert "Size and speed, with accuracy" in page.text


def test_scores_may_stand_beside_the_measurements(tmp_path: Path):
    told = record([measurement("t/fp32"), measurement("t/int8")], scores={"t/int8": {"value": 12.34, "metric": "perplexity"}})
    page_of(tmp_path, told)
    (chart,) = charts(tmp_path, "Median latency against size")
    assert ">int8  12.34<" in chart


# generation and parts


def test_generation_has_its_numbers_and_their_definitions(tmp_path: Path):
    made = {
        "prompt_tokens": 128, "new_tokens": 64, "ttft": summary(0.2), "per_token": summary(0.025), "tokens_per_s": 40.0,
        "prefill_per_s": 640.0, "encode": None,
    }  # fmt: skip
    page = page_of(tmp_path, record([measurement("llm", scenario="generation", warm=summary(1.8), generation=made)]))
    assert "128 in, 64 out 200 ms 198 ms to 202 ms 25.0 ms 24.8 ms to 25.2 ms 40 640" in page.text
    assert "first token 200 ms prompt of 128 tokens" in page.text
    assert "encoder" not in page.text.split("What the numbers mean")[0].partition("Generation")[2].partition("640")[0]
    page = page_of(tmp_path, record([measurement("s2s", scenario="generation", generation={**made, "encode": summary(0.05)})]))
    assert "encoder first token (TTFT)" in page.text
    assert "128 in, 64 out 50.0 ms 200 ms" in page.text


def test_parts_are_bars_as_long_as_they_take(tmp_path: Path):
    parts = {"image_encoder": summary(0.3), "mask_decoder": summary(0.08)}
    page = page_of(tmp_path, record([measurement("sam", scenario="chain", warm=summary(0.4), parts=parts)]))
    (chart,) = charts(tmp_path, "Parts of a call")
    bars = re.findall(r'<rect x="([\d.]+)" y="[\d.]+" width="([\d.]+)" height="13" class="(\w+)', chart)
    # 0 to 0.4 s over 8 to 332
    assert bars == [("8", "324", "hollow"), ("8", "243", "slice"), ("251", "64.8", "slice")]
    assert ">75\u202f%<" in chart
    assert "image_encoder 300 ms 297 ms to 303 ms" in page.text
    assert "the whole 400 ms" in page.text


# without


def nothing(value: Any) -> Any:
    """Put None for every number, text and list in a measurement, key by key."""
    return dict.fromkeys(value)


def test_nulls_everywhere_are_dashes(tmp_path: Path):
    one, c = measurement("x"), comparison("x", 1.0, 0.9, 1.1)
    told = {
        "schema": 1, "when": None, "devices": {"local": None, "b": {"title": None, "host": nothing(benches.HOST), "rates": None}},
        "measurements": [nothing(one), {"artifact": "y"}, {}], "comparisons": [nothing(c), {}],
        "skipped": [{"artifact": None, "device": None, "scenario": None, "reason": None}], "scores": None, "command": None,
    }  # fmt: skip
    page = page_of(tmp_path, told)
    assert "No warm call was counted" in page.text
    assert "The command line was not recorded." in page.text
    assert not re.search(r"\b(None|nan|inf)\b", page.text)


@pytest.mark.parametrize("key", sorted(set(measurement("x")) - {"artifact"}))
def test_any_one_key_may_be_null_or_absent(tmp_path: Path, key: str):
    def whole() -> dict[str, Any]:
        made = {"ttft": summary(0.2), "per_token": None, "prompt_tokens": None, "tokens_per_s": None}
        parts = {"a": summary(1e-4), "b": None}
        one = measurement("fp32", generation=made, parts=parts, roofline=roofline(8e6, 1e6, 412e-6), samples="a.npy")
        return {**one, "sustained": falling()["sustained"]}

    for other in ({**whole(), key: None}, {k: v for k, v in whole().items() if k != key}):
        raw = {"a.npy": samples("fp32", 412e-6)}
        page = page_of(tmp_path, record([other, measurement("int8")], [comparison("int8", 1.6, 1.5, 1.7)]), raw)
        assert not re.search(r"\b(None|nan|inf)\b", page.text), key


@pytest.mark.parametrize(
    "key", ["flops", "macs", "bytes", "intensity", "attainable_s", "fraction", "bound", "rate", "bandwidth", "said"]
)
def test_a_roofline_may_lack_a_number(tmp_path: Path, key: str):
    roof = {**roofline(8e6, 1e6, 412e-6), key: None}
    page = page_of(tmp_path, record([measurement("fp32", roofline=roof)]))
    assert not re.search(r"\b(None|nan|inf)\b", page.text)


def test_the_environment_says_what_surrounded_a_measurement(tmp_path: Path):
    one = measurement("fp32")
    one["environment"]["others"] = 0.125
    host = {
        **benches.HOST,
        "frequency_mhz": {"now": 2000.0, "min": 1200.0, "max": 4400.0},
        "virtual_machine": True,
        "quota_cores": 2.5,
    }
    text = page_of(tmp_path, record([one], devices={"local": device(host=host)})).text
    assert "clock rate 1,200 to 4,400 MHz" in text
    assert "virtual machine yes" in text
    assert "container's quota 2.5 cores" in text
    assert "0.31 to 0.92, 12 % by others 48 to 55 °C" in text


def test_numbers_that_are_none_are_taken_as_missing(tmp_path: Path):
    one = measurement("fp32", throughput_per_s=math.nan, warm={**summary(1e-3), "p99_s": math.inf})
    assert not re.search(r"\b(nan|inf)\b", page_of(tmp_path, record([one])).text)
    one = measurement("fp32", warm={**summary(1e-3), "median_s": math.nan})
    assert "No warm call was counted" in page_of(tmp_path, record([one])).text


def test_missing_and_damaged_samples_leave_out_their_plot_alone(tmp_path: Path):
    things = [measurement(n, samples=f"{n}.npy") for n in ("fp32", "int8", "w8", "x")]
    things.append(measurement("out", samples="../outside.npy"))
    np.save(tmp_path / "outside.npy", samples("x", 1e-3))
    folder = tmp_path / "bench"
    write(folder, record(things), {"fp32.npy": samples("fp32", 412e-6), "w8.npy": np.array([[0.0, 1.0]])})
    (folder / "int8.npy").write_bytes(b"\x93NUMPY broken")
    (folder / "x.npy").write_bytes(b"")
    page = Page(write_bench(folder).read_text(encoding="utf-8"), unread=("style", "pre", "title"))
    assert "The raw samples ../outside.npy, int8.npy, w8.npy, x.npy are not beside bench.json, or are damaged" in page.text
    (chart,) = charts(folder, "Times of single calls")
    assert chart.count('class="ridge') == 1


def test_an_empty_bench_and_an_older_record_make_a_page(tmp_path: Path):
    assert "Nothing was timed" in page_of(tmp_path, {"schema": 1}).text
    older = {"measurements": [measurement("fp32")], "comparisons": [], "skipped": "not this machine", "folder": "runs/bench"}
    assert "Not this machine." in page_of(tmp_path, older).text


@pytest.mark.parametrize(
    ("content", "words"), [(None, "no such file"), ("{", "cannot be read"), ("[1]", "not what `edgekd bench` writes")]
)
def test_what_is_no_record_is_bad_input(tmp_path: Path, content: str | None, words: str):
    if content is not None:
        (tmp_path / "bench.json").write_text(content)
    with pytest.raises(BadInput, match=words):
        write_bench(tmp_path)


# the page itself

EVIL = "<script>alert(1)</script>\"'&{{7*7}}"


def evil() -> dict[str, Any]:
    name = f"t/{EVIL}"
    things = [
        measurement(
            name, f"d{EVIL}", roofline={**roofline(8e6, 1e6, 4e-4), "said": EVIL}, parts={EVIL: summary(1e-4)}, scenario=EVIL
        ),
        measurement("other", f"d{EVIL}", scenario=EVIL, samples=f"{EVIL}.npy"),
    ]
    one = comparison(name, 1.5, 1.4, 1.6, "other", device=f"d{EVIL}", scenario=EVIL, why=EVIL)
    skipped = [{"artifact": EVIL, "device": f"d{EVIL}", "scenario": EVIL, "reason": EVIL}]
    return record(things, [one], command=EVIL, skipped=skipped, scores={name: {"value": 1.0, "metric": EVIL}}, when=EVIL)


def test_everything_is_escaped(tmp_path: Path):
    page = page_of(tmp_path, evil())
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.text.count("<script>alert(1)</script>") > 20
    assert "{{7*7}}" in page.text


def whole() -> dict[str, Any]:
    """Return a record with every section, long names among them."""
    long = "a-model-with-a-name-as-long-as-some-people-like-them-w4a16-group128"
    local = [falling(), measurement("t/fp32", samples="fp32.npy", roofline=roofline(3e6, 5e5, 412e-6))]
    local += [measurement(f"t/{long}", samples="int8.npy", roofline=roofline(3e6, 2e5, 247e-6))]
    local += [measurement("t/sam", scenario="chain", parts={"image_encoder": summary(3e-4), "mask_decoder": summary(9e-4)})]
    made = {"ttft": summary(0.2), "per_token": summary(0.02), "tokens_per_s": 50.0, "prefill_per_s": 640.0}
    local += [measurement("t/llm", PI, scenario="generation", generation=made)]
    return record(local, [comparison(f"t/{long}", 1.67, 1.6, 1.7, "t/fp32")], command="edgekd bench runs/x")


RAW = {"fp32.npy": samples("fp32", 412e-6), "int8.npy": samples("int8", 247e-6)}


def test_it_is_one_file_without_network_or_scripts_in_both_schemes(tmp_path: Path):
    folder = write(tmp_path / "bench", whole(), RAW)
    path = write_bench(folder)
    assert path == folder / "report.html"
    content = path.read_text(encoding="utf-8")
    page = Page(content, unread=("style", "pre", "title"))
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object"}
    assert not re.search(r"https?://|url\(|@import|src=", content)
    assert {a["href"] for _, a in page.tags if "href" in a and not str(a["href"]).startswith("#")} == {"bench.json"}
    assert "prefers-color-scheme: dark" in content
    assert len(content) < 300_000
    assert write_bench(folder).read_text(encoding="utf-8") == content
    assert sorted(p.name for p in folder.iterdir()) == ["bench.json", "fp32.npy", "int8.npy", "report.html"]
    ids = {a.get("id") for _, a in page.tags}
    assert {"table", "calls", "time", "roofline", "front", "generation", "parts", "environment", "clock", "raw"} <= ids
    assert all(str(a["href"])[1:] in ids for _, a in page.tags if str(a.get("href", "")).startswith("#")), "no dead link"


def test_every_chart_lies_within_its_frame_and_no_words_lie_on_others(tmp_path: Path):
    page_of(tmp_path, whole(), RAW)
    found = charts(tmp_path, "")
    assert len(found) == 1 + 1 + 1 + 1 + 1 + 1  # ratio, calls, over time, roofline, size and speed, parts
    for chart in found:
        width, height = map(float, re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', chart).groups())  # type: ignore[union-attr]
        assert all(0 <= float(x) <= width for x in re.findall(r'(?:\bx|cx|x1|x2)="(-?[\d.]+)"', chart))
        assert all(0 <= float(y) <= height for y in re.findall(r'(?:\by|cy|y1|y2)="(-?[\d.]+)"', chart))
        assert "nan" not in chart.lower()
        boxes = []
        for m in re.finditer(r'<text x="([\d.]+)" y="([\d.]+)"(?: text-anchor="(\w+)")? class="([^"]*)">([^<]*)<', chart):
            wide = 5.4 * len(m[5])
            begin = float(m[1]) - {"end": wide, "middle": wide / 2}.get(m[3], 0.0)
            assert -12 <= begin <= begin + wide <= width + 12, m[5]
            boxes.append((begin, float(m[2]) - 8, begin + wide, float(m[2]) + 1, m[5]))
        for i, a in enumerate(boxes):
            for b in boxes[:i]:
                assert min(a[2], b[2]) - max(a[0], b[0]) <= 0 or min(a[3], b[3]) - max(a[1], b[1]) <= 0, (a[4], b[4])


def test_narrow_pages_name_every_cell(tmp_path: Path):
    """On a phone a table's head is not shown: each cell says what it is, and skipped ones go over the whole width."""
    page_of(tmp_path, three_devices())
    content = (tmp_path / "report.html").read_text(encoding="utf-8")
    for table in re.findall(r'<table class="stack.*?</table>', content, re.DOTALL):
        for cell in re.findall(r"<td[^>]*>", table):
            assert 'class="head"' in cell or "data-is=" in cell or 'class="wide"' in cell, cell
    assert "@media (max-width: 44rem)" in content


def test_a_long_record_is_linked_not_copied(tmp_path: Path):
    told = record([measurement("fp32")], command="edgekd bench fp32.onnx")
    write_bench(write(tmp_path, told))
    content = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert json.loads(html.unescape(re.search(r"Show bench.json</summary><pre>(.*?)</pre>", content, re.DOTALL)[1])) == told  # type: ignore[index]
    assert '<pre class="command">edgekd bench fp32.onnx</pre>' in content
    told["filler"] = "x" * 200_000
    write_bench(write(tmp_path, told))
    content = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert len(content) < 100_000
    assert "too long to be shown here" in content


def test_names_lose_what_tells_nothing_apart():
    from edgekd.report.bench_cells import names

    assert names(["t/fp32", "t/int8"]) == {"t/fp32": "fp32", "t/int8": "int8"}
    assert names(["t/fp32", "u/fp32"]) == {"t/fp32": "t/fp32", "u/fp32": "u/fp32"}
    assert bench_charts.brief("x" * 40) == "x" * 14 + "…" + "x" * 14


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (formats.prefixed(45.3e9, "FLOP/s"), "45.3 GFLOP/s"),
        (formats.prefixed(0.012, "J"), "12.0 mJ"),
        (formats.prefixed(999.6e6, "B/s"), "1.00 GB/s"),
        (formats.prefixed(2e9, "", plain=True), "2 G"),
        (formats.prefixed(None, "J"), "–"),
        (formats.share(0.384), "38 %"),
        (formats.share(0.00421), "0.42 %"),
        (formats.share(0.0999), "10 %"),
        (formats.share(0.0), "0 %"),
        (formats.throughput(3.214), "3.21"),
        (formats.throughput(4049.6), "4,050"),
    ],
)
def test_quantities_as_a_person_reads_them(made: str, expected: str):
    assert made.replace("\u202f", " ") == expected


def test_launches_decide_whether_two_of_the_fastest_differ(tmp_path: Path):
    # y lies 4 % behind x in every block, but in another process it might not: five launches, of which one turns it round
    shift = np.repeat([1.08, 1.08, 1.08, 1.08, 0.90], 4)[:, None]
    x = np.full((20, 10), 1e-3)
    raw = {"x.npy": x, "y.npy": x * shift}
    compared = [comparison("x", 1.70, 1.60, 1.80), comparison("y", 1.64, 1.54, 1.74)]

    def text(**more: Any) -> str:
        blocks = {"count": 20, "calls": 10, "settle": 0, **more}
        things = [measurement(n, samples=f"{n}.npy", blocks=blocks) for n in ("fp32", "x", "y")]
        return page_of(tmp_path, record(things, compared), raw).text

    assert "x is the fastest" in text(), "20 pairs, an older record: it has no launches"
    assert "x is the fastest" in text(launches=[10, 10]), "two launches are too few for an interval over them"
    assert "x and y are the fastest" in text(launches=[4, 4, 4, 4, 4])
    assert "x is the fastest" in text(launches=[4, 4]), "not of these samples"


def test_samples_of_streams_decide_nothing(tmp_path: Path):
    raw = {"x.npy": np.full((20, 10), 1e-3), "y.npy": np.full((20, 10), 2e-3)}  # calls of y take longer; all together do not
    compared = [comparison(n, 1.70, 1.60, 1.80, streams=2) for n in ("x", "y")]
    things = [measurement(n, samples=f"{n}.npy", streams=2) for n in ("fp32", "x", "y")]
    assert "x and y are the fastest" in page_of(tmp_path, record(things, compared), raw).text


def test_why_a_comparison_says_nothing(tmp_path: Path):
    def text(c: dict[str, Any], **blocks: Any) -> str:
        things = [measurement(n, blocks={"count": 4, "calls": 9, "settle": 0, **blocks}) for n in ("fp32", "int8")]
        return page_of(tmp_path, record(things, [c])).text

    few = comparison("int8", 1.2, None, None, pairs=4)
    needs = "An interval needs 6 pairs of blocks, or 3 launches, at least"
    assert f"{needs}; there were 4 pairs in 2 launches." in text(few, launches=[2, 2])
    assert f"{needs}; there were 4 pairs." in text(few)
    assert f"{needs}; there was 1 pair in 1 launch." in text({**few, "pairs": 1}, launches=[1])
    lost = {**comparison("int8", 1.2, 1.1, 1.3), "verdict": None}
    found = text(lost)
    assert "Cannot tell The ratio is 1.20× (95 %: 1.10× to 1.30×), and no verdict is recorded." in found
    assert "6 pairs" not in found
    wide = "cannot tell faster-net from fp32 (0.80-1.30): too much disturbed the clock"
    found = text({**comparison("int8", 1.02, 0.8, 1.3), "verdict": wide})
    assert "Cannot tell The ratio is 1.02× (95 %: 0.80× to 1.30×), too wide an interval to tell." in found
    assert "Cannot tell faster-net from fp32 (0.80-1.30): too much disturbed the clock." in found
    found = text(
        {**comparison("int8", 1.0, 0.99, 1.01), "verdict": "no difference seen between faster-net and fp32 (0.99-1.01)"}
    )
    assert "No difference seen Between" in found, "the name does not say it"
