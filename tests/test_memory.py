"""Memory that runs out: one message that says what was asked for, what is there and what to do, and nothing that was finished is lost."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import yaml
from safetensors.torch import save_file

from edgekd import memory, verbs
from edgekd.errors import BadInput
from edgekd.recipe import Recipe

TOO_MUCH = 2**50
"""Bytes, beyond the addresses of any machine: to ask for them takes no memory."""


def group(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        file = root / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


def test_a_containers_limit_counts(tmp_path: Path) -> None:
    two = {"memory.max": "1000000\n", "memory.current": "700000\n", "memory.stat": "anon 600000\ninactive_file 90000\n"}
    assert memory.available(group(tmp_path / "two", two)) == 390_000
    one = {
        "memory/memory.limit_in_bytes": "2000000", "memory/memory.usage_in_bytes": "1500000",
        "memory/memory.stat": "inactive_file 1\ntotal_inactive_file 100000\n",
    }  # fmt: skip
    assert memory.available(group(tmp_path / "one", one)) == 600_000
    full = {"memory.max": "100", "memory.current": "500", "memory.stat": ""}
    assert memory.available(group(tmp_path / "full", full)) == 0


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"memory.max": "max", "memory.current": "700000", "memory.stat": ""},
        {"memory/memory.limit_in_bytes": str(2**63 - 4096), "memory/memory.usage_in_bytes": "1", "memory/memory.stat": ""},
        {"memory.max": "what", "memory.current": "ever", "memory.stat": ""},
    ],
)
def test_without_a_limit_the_machine_counts(tmp_path: Path, files: dict[str, str]) -> None:
    there = psutil.virtual_memory()
    assert there.available * 0.5 < memory.available(group(tmp_path, files)) <= there.total + psutil.swap_memory().total


def test_a_process_under_a_limit_of_its_own() -> None:
    code = """
import psutil, resource
import numpy
from edgekd import memory
from edgekd.errors import BadInput
limit = psutil.Process().memory_info().vms + 60_000_000
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
print(memory.available())
try:
    with memory.guarded("numbers", "use fewer"):
        numpy.ones(10**8)
except BadInput as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    room, said = done.stdout.splitlines()
    assert 0 < int(room) <= 60_000_000
    assert said.startswith("numbers: memory ran out (another 800 MB were asked for); ")
    assert said.endswith(" are free: use fewer")


def failing(act: Any) -> BaseException:
    with pytest.raises(Exception) as caught:
        act()
    return caught.value


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (failing(lambda: torch.empty(TOO_MUCH, dtype=torch.uint8)), "(another 1125899.9 GB were asked for)"),
        (failing(lambda: np.empty(TOO_MUCH, np.uint8)), "(another 1125899.9 GB were asked for)"),
        (MemoryError(), "memory ran out;"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "memory ran out;"),
        (RuntimeError("std::bad_alloc"), "memory ran out;"),
        (Exception("[ONNXRuntimeError] : 6 : Failed to allocate memory for requested buffer of size 123456789"), "(another 123 MB were"),
        (
            RuntimeError(
                "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.50 GiB is free. "
                "Including non-PyTorch memory, this process has 77 GiB memory in use."
            ),
            "(another 2.7 GB were asked for); 1.50 GiB of the GPU's 79.11 GiB were free: do this",
        ),
    ],
    ids=["torch", "numpy", "python", "errno", "c++", "onnxruntime", "cuda"],
)  # fmt: skip
def test_every_librarys_words(error: Exception, told: str) -> None:
    def wrapped() -> None:
        try:
            raise error
        except Exception as inner:
            raise BadInput(f"the file is damaged ({inner})") from None

    def plain() -> None:
        raise error

    for fails in (plain, wrapped):
        with pytest.raises(memory.OutOfMemory) as caught, memory.guarded("a stage", "do this"):
            fails()
        assert told in str(caught.value)
        assert str(caught.value).startswith("a stage: memory ran out")
        assert str(caught.value).endswith(": do this")
        assert "\n" not in str(caught.value)
        assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "error", [ValueError("size 3"), BadInput("out of memory, says the user"), KeyboardInterrupt(), RuntimeError("x")]
)
def test_other_failures_are_left_alone(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, memory.guarded("a stage", "do this"):
        raise error
    assert caught.value is error


def test_the_first_message_stays() -> None:
    with pytest.raises(memory.OutOfMemory, match=r"^inside"), memory.guarded("outside", "y"), memory.guarded("inside", "x"):
        raise MemoryError


def test_ways_out_are_the_stages() -> None:
    values: dict[str, Any] = {
        "data": {"source": "digits"}, "teacher": {"model": "timm:resnet18"}, "student": {"model": "timm:resnet18"},
        "distill": {"batch_size": 77}, "train": {"batch_size": 66},
    }  # fmt: skip
    pictures = Recipe.model_validate(values)
    assert "distill.teacher: live" in memory.ways_out("teacher-cache", pictures)
    assert "lower distill.batch_size (now 77)" in memory.ways_out("distill", pictures)
    assert "lower distill.batch_size (now 77)" in memory.ways_out("quantize/qd4", pictures)
    assert "lower train.batch_size (now 66)" in memory.ways_out("train", pictures)
    assert "batch_size" not in memory.ways_out("score/teacher", pictures)
    text = {"task": "causal-lm", "data": {"source": "a.txt", "max_tokens": 99}, "student": {"model": "hf:a"}}
    assert "lower data.max_tokens (now 99)" in memory.ways_out("score/student", Recipe.model_validate(text))
    assert memory.ways_out("export/x/y", pictures).endswith("Finished stages are kept")


NET = """
from pathlib import Path
import torch
from torch import nn

HERE = Path(__file__).parent

class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))

    def forward(self, x):
        if self.layers[1].out_features == 32 and len(x) > 2:  # the teacher, computing its outputs
            with (HERE / "calls.txt").open("a") as file:
                file.write(f"{len(x)}\\n")
            if (HERE / f"{'gree'}dy").exists() and len((HERE / "calls.txt").read_text().splitlines()) > 8:
                torch.empty(2**50, dtype=torch.uint8)
        return self.layers(x)

def teacher(): return Net(32)
def student(): return Net(8)
"""


def test_a_teacher_whose_outputs_do_not_fit_loses_nothing(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET)
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    save_file({f"layers.{name}": value for name, value in layers.state_dict().items()}, tmp_path / "teacher.safetensors")
    recipe = {
        "data": {"source": "digits"}, "teacher": {"model": "py:net.py:teacher", "weights": "teacher.safetensors"},
        "student": {"model": "py:net.py:student"}, "distill": {"epochs": 1},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (tmp_path / "greedy").touch()
    run = tmp_path / "run"
    with pytest.raises(
        BadInput,
        match=r"^teacher-cache: memory ran out \(another 1125899.9 GB were asked for\); .* are free: set distill.teacher: live",
    ):
        verbs.distill(tmp_path, run)
    # 1,258 samples in chunks of 1,024: the first chunk's outputs are kept
    assert [mark.name for mark in run.glob(".partial/teacher_cache@*/done/*")] == ["0-0"]
    (tmp_path / "greedy").unlink()
    (tmp_path / "calls.txt").unlink()
    made = verbs.distill(tmp_path, run)
    assert "student" in made["scores"]
    of_the_cache = (tmp_path / "calls.txt").read_text().split()[:2]
    assert of_the_cache == ["128", "106"]


def test_on_the_command_line_it_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET)
    recipe = {
        "data": {"source": "digits"},
        "teacher": {"model": "py:net.py:teacher"},
        "student": {"model": "py:net.py:student"},
        "train": {"epochs": 1},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (tmp_path / "greedy").touch()
    (tmp_path / "calls.txt").write_text("x\n" * 9)
    done = subprocess.run(
        [sys.executable, "-m", "edgekd", "train", "recipe.yaml", "-o", "run"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "error: train: memory ran out (another 1125899.9 GB were asked for)" in done.stderr
    assert "lower train.batch_size (now 128)" in done.stderr
    assert "Traceback" not in done.stderr
