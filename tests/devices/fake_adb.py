"""Stands in for the program adb and an Android device: its files lie in $FAKE_ADB_DEVICE, its shell is sh. Not a test itself.

Called through two small programs that the tests write: `adb`, and the perf tool, which is pushed there and runs as ONNX Runtime's does.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

DEVICE = Path(os.environ["FAKE_ADB_DEVICE"])


def adb(words: list[str]) -> int:
    if words[:2] == ["devices", "-l"]:
        print(
            os.environ.get(
                "FAKE_ADB_LIST",
                "List of devices attached\nR58M123ABC             device usb:1-1 model:Pixel_9 transport_id:1\n",
            )
        )
        return 0
    assert words[0] == "-s", words
    if (DEVICE / "unplugged").exists():
        print(f"adb: device '{words[1]}' not found", file=sys.stderr)
        return 1
    if words[2] == "push":
        to = DEVICE / words[4].lstrip("/")
        if not to.parent.is_dir():
            print(
                f"adb: error: failed to copy '{words[3]}' to '{words[4]}': remote couldn't create file: No such file or directory"
            )
            return 1
        shutil.copyfile(words[3], to)
        with (DEVICE / "pushed").open("a") as log:
            log.write(words[4] + "\n")
        print(f"{words[3]}: 1 file pushed, 0 skipped. 90.0 MB/s (1000 bytes in 0.001s)")
        return 0
    assert (words[2], len(words)) == ("shell", 4), words
    for place in ("/data/local/tmp", "/proc/", "/sys/"):
        words[3] = words[3].replace(place, f"{DEVICE}{place}")
    path = f"{DEVICE}/bin:{os.environ['PATH']}"
    return subprocess.run(["sh", "-c", words[3]], env={**os.environ, "PATH": path}, stdin=subprocess.DEVNULL).returncode


def perf(words: list[str]) -> int:
    """Print what onnxruntime/test/perftest/performance_runner.cc of ONNX Runtime 1.22 prints, and append what it appends."""
    options = dict(zip(words[:-2:2], words[1:-2:2], strict=True))
    model, result = Path(words[-2]), Path(words[-1])
    assert set(options) == {"-e", "-o", "-x", "-r"}, words
    assert os.environ["LD_LIBRARY_PATH"] == str(Path(sys.argv[1]).parent)
    print(f"Setting intra_op_num_threads to {options['-x']}")
    if trouble := os.environ.get("FAKE_PERF"):
        if trouble == "hang":
            (DEVICE / "hangs").write_text(str(os.getpid()))
            time.sleep(600)
        print(trouble, file=sys.stderr)
        return 255
    if b"BROKEN" in model.read_bytes():
        print("Load model from model.onnx failed:Protobuf parsing failed.", file=sys.stderr)
        return 255
    data = sorted(one.name for one in (model.parent / "test_data_set_0").iterdir())
    if not data:
        print(f"there is no test data for model {model.parent.name}\nRun failed:failed to initialize.")
        return 255
    each = 0.010 if b"w39" in model.read_bytes() else 0.001  # the model with 40 products
    draw = random.Random(f"{os.getpid()} {time.time()}")
    costs = [each * draw.uniform(0.9, 1.2) for _ in range(int(options["-r"]))]
    with (DEVICE / "log").open("a") as log:
        shapes = (model.parent / "test_data_set_0" / data[0]).read_bytes().hex()
        log.write(
            json.dumps({"model": model.name, "costs": costs, "threads": options["-x"], "inputs": data, "first": shapes}) + "\n"
        )
    total = sum(costs)
    name, peak = model.parent.name, 50_000_000 + 1000 * len(costs)
    with result.open("a") as file:
        for place, cost in enumerate(costs):
            file.write(f"{name},{cost:.6g},{peak},51,{place}\n")
    print(
        f"Session creation time cost: 0.0123 s\nFirst inference time cost: {round(1.5 * each * 1000)} ms\n"
        f"Total inference time cost: {total:.6g} s\nTotal inference requests: {len(costs)}\n"
        f"Average inference time cost: {total / len(costs) * 1000:.6g} ms\nTotal inference run time: {total:.6g} s\n"
        f"Number of inferences per second: {len(costs) / total:.6g} \nAvg CPU usage: 51 %\nPeak working set size: {peak} bytes"
    )
    return 0


if __name__ == "__main__":
    sys.exit(perf(sys.argv[2:]) if sys.argv[1].endswith("perf_test") else adb(sys.argv[2:]))
