"""The command line: light help, one message for bad input, the right exit code."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from edgekd import recipe_file
from edgekd.errors import BadInput
from edgekd.resources import resource

VERBS = [
    "compress",
    "train",
    "distill",
    "quantize",
    "export",
    "verify",
    "bench",
    "report",
    "targets",
    "devices",
    "models",
    "doctor",
    "init",
]


def edgekd(*words: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edgekd", *words],
        cwd=cwd,
        env={**os.environ, "COLUMNS": "80", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_help_imports_no_heavy_package():
    code = (
        "import sys\n"
        "sys.argv = ['edgekd', '--help']\n"
        "from edgekd.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'onnxruntime', 'onnx', 'transformers', 'timm', 'nncf', 'datasets', 'accelerate', 'pandas'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "HEAVY []" in done.stdout, done.stdout + done.stderr


def test_the_help_of_bench_has_every_number():
    from edgekd.bench.definitions import DEFINITIONS

    told = edgekd("bench", "--help").stdout
    assert [name for name in DEFINITIONS if name.partition(" (")[0] not in told and name != "encoder time"] == []


def test_importing_the_package_is_light_too():
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, edgekd, edgekd.verbs; print(sorted({'torch', 'onnxruntime', 'nncf', 'onnx'} & set(sys.modules)))",
        ],
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb):
    done = edgekd(verb, "--help")
    assert done.returncode == 0
    assert "Example:" in done.stdout
    assert f"edgekd {verb}" in done.stdout.split("Example:")[1]
    assert "--json" in done.stdout


def test_options_are_kebab_case():
    for verb in VERBS:
        for option in re.findall(r"(?<![\w-])--[\w-]+", edgekd(verb, "--help").stdout):
            assert re.fullmatch(r"--[a-z]+(-[a-z]+)*", option), (verb, option)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["compress", "no/such.yaml"], "no such recipe"),
        (["compress", "models/digits", "--set", "distill.epoch=3"], "did you mean `epochs`"),
        (["compress", "models/digits", "--target", "onnxruntime-cpo"], "did you mean `onnxruntime-cpu`"),
        (["compress", "models/digits", "--set", "teacher.weights=nowhere.safetensors"], "no file"),
        (["train", "models/digits", "--model", "techer"], "did you mean `teacher`"),
        (["quantize", "no/such/run"], "no such folder"),
        (["bench", "no/such.onnx"], "no/such.onnx"),
        (["report", "."], "not a run folder"),
        (["nonsense"], "No such command"),
        (["compress"], "Missing argument"),
    ],
)
def test_bad_input_is_one_message_and_exit_2(words, says, tmp_path):
    done = edgekd(*words, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert says in " ".join(done.stderr.split()), done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def to_time(tmp_path):
    """What looks like a model, a suite and a run folder, as far as it takes to see which options go with it."""
    for name in ("m.onnx", "s.yaml", "run/manifest.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["s.yaml", "--import", "r.json"], "s.yaml: a suite is timed alone: leave out --import"),
        (["s.yaml", "--no-compare"], "leave out --no-compare"),
        (
            ["run", "--no-compare", "--fresh"],
            "timed as a stage of its run (give -o to time it beside): leave out --no-compare, --fresh",
        ),
        (["run", "--threads", "1", "--threads", "2"], "give -o to time it beside): leave out --threads more than once"),
        (["m.onnx", "--threads", "2", "--threads", "2"], "--threads 2: given twice"),
        (["m.onnx", "--fresh"], "leave out --fresh"),
        (["--import", "r.json", "--device", "local"], "leave out --device"),
        (["--import", "r.json", "--batch", "4"], "leave out settings of the clock"),
        (["m.onnx", "--target", "onnxruntime-cpu"], "--target onnxruntime-cpu: chooses among the artifacts of a run folder"),
        (
            ["m.onnx", "--kit", "k.pyz", "--device", "local", "-o", "out", "--import", "r.json", "--no-compare", "--fresh"],
            "--kit times nothing here: leave out --device, --out, --import, --no-compare, --fresh",
        ),
    ],
)
def test_options_of_bench_that_would_do_nothing_are_refused(words, says, to_time, monkeypatch):
    from edgekd import cli

    monkeypatch.chdir(to_time)
    before = sorted(to_time.rglob("*"))
    with pytest.raises(BadInput) as raised:
        cli.app(["bench", *words], standalone_mode=False)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)
    assert sorted(to_time.rglob("*")) == before


def test_no_write_permission(tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0o500)
    if os.access(locked, os.W_OK):  # root writes anywhere: a path below a file is refused to root as well
        (tmp_path / "file").write_text("")
        done = edgekd("compress", "models/digits", "-o", str(tmp_path / "file" / "run"))
    else:
        done = edgekd("compress", "models/digits", "-o", str(locked / "run"))
    assert done.returncode == 2
    assert "cannot write there" in done.stderr or "is a file" in done.stderr
    assert "Traceback" not in done.stderr


def test_version_and_listings_for_machines():
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", edgekd("--version").stdout)
    names = [pair["name"] for pair in json.loads(edgekd("models", "--json").stdout)]
    assert "models/digits" in names
    assert "onnxruntime-cpu" in [t["name"] for t in json.loads(edgekd("targets", "--json").stdout)]


def test_init_writes_a_recipe_that_works_and_overwrites_nothing(tmp_path):
    assert edgekd("init", "mine", cwd=tmp_path).returncode == 0
    assert recipe_file.load(tmp_path / "mine").student.model == f"py:{tmp_path / 'mine' / 'model.py'}:student"
    (tmp_path / "mine" / "recipe.yaml").write_text("precious")
    again = edgekd("init", "mine", cwd=tmp_path)
    assert again.returncode == 2
    assert "is there already" in again.stderr
    assert (tmp_path / "mine" / "recipe.yaml").read_text() == "precious"


def test_init_for_text(tmp_path):
    done = edgekd("init", "mine", "--task", "text-embedding", "--json", cwd=tmp_path)
    assert json.loads(done.stdout) == {"written": ["mine/recipe.yaml"]}
    made = recipe_file.load(tmp_path / "mine")
    assert made.task == "text-embedding"
    assert made.student.model == made.teacher.model == "hf:sentence-transformers/all-MiniLM-L6-v2"
    wrong = edgekd("init", "other", "--task", "text-embeding", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "did you mean `text-embedding`" in wrong.stderr


@pytest.mark.parametrize("task", ["causal-lm", "seq2seq-lm"])
def test_init_for_language_models(tmp_path, task):
    from edgekd import starter

    written = starter.write(tmp_path / "mine", task)
    assert all(path.is_file() for path in written)
    made = recipe_file.load(tmp_path / "mine")
    assert made.task == task
    assert made.distill is not None
    assert made.distill.teacher == "live"
    with pytest.raises(BadInput, match="is there already"):
        starter.write(tmp_path / "mine", task)
    if task == "seq2seq-lm":  # all that it names lies beside it, but for the data
        assert made.student.model == f"hf:{tmp_path / 'mine' / 'student'}"
        assert made.teacher is not None
        assert (made.teacher.model, made.teacher.tokenizer) == (
            f"hf:{tmp_path / 'mine' / 'teacher'}",
            str(tmp_path / "mine" / "tokenizer"),
        )


def test_the_shipped_recipes_are_valid():
    for path in resource("models").glob("*/recipe.yaml"):
        recipe_file.load(path)
