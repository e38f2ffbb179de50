"""The whole corridor on small runs: what it leaves, what it takes up again, what it refuses."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

QUICK = [
    "distill.epochs=2",
    "distill.views=1",
    "distill.batch_size=256",
    "bench.min_seconds=0.05",
    "bench.min_count=5",
    "bench.interval=null",
    "bench.launches=1",
    "gate.max_drop=1",
    "quantize.qd4.training.epochs=1",
    "quantize.dq4.training.epochs=1",
    "quantize.qd2.training.epochs=1",
]
VARIANTS = ("fp32", "int8", "qd4", "dq4", "qd2")


def edgekd(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "edgekd", *words], capture_output=True, text=True, timeout=600, **options)


def settings(*more: str) -> list[str]:
    return [word for setting in (*QUICK, *more) for word in ("--set", setting)]


def compress(out: Path, *more: str, recipe: str = "models/digits") -> subprocess.CompletedProcess[str]:
    return edgekd("compress", recipe, "-o", str(out), *settings(*more))


def shipped(run: Path) -> dict[str, str]:
    files = (
        f
        for name in ("targets", "variants", "graphs")
        for f in (run / name).rglob("*")
        if f.is_file() and f.name != ".stage.json"
    )
    found = {str(f.relative_to(run)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}
    return {**found, "student": hashlib.sha256((run / "student" / "model.safetensors").read_bytes()).hexdigest()}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "digits"
    done = compress(out)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    shutil.copytree(run, tmp_path / "copy")
    return tmp_path / "copy"


def manifest(run: Path) -> dict[str, Any]:
    return json.loads((run / "manifest.json").read_text())


def test_the_manifest_obeys_its_schema(run):
    import jsonschema

    from edgekd import report

    schema = json.loads((Path(report.__file__).parent.parent / "manifest.schema.json").read_text())
    jsonschema.validate(manifest(run), schema)


def test_the_manifest_says_what_is_on_disk(run):
    told = manifest(run)
    for name, artifact in told["artifacts"].items():
        for file in artifact["files"]:
            content = (run / "targets" / name / file["path"]).read_bytes()
            assert (file["bytes"], file["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    assert {v["status"] for v in told["verdicts"].values()} == {"passed"}
    assert told["chosen"]["onnxruntime-cpu"]["by"] == "measurement"
    for measurement in told["measurements"]:
        samples = np.load(run / measurement["samples"])
        assert measurement["warm"]["median_s"] == pytest.approx(np.median(samples), rel=1e-6)
    assert (run / "report.html").stat().st_size > 5000


def test_scores_are_what_the_runtime_gives_on_the_test_samples(run):
    import onnxruntime

    from edgekd import data, recipe

    test = data.load(recipe.Data(source="digits"), None, seed=0).test
    batch = test.take(np.arange(len(test)))
    for variant in VARIANTS:
        session = onnxruntime.InferenceSession(
            run / "targets" / "onnxruntime-cpu" / variant / "model.onnx", providers=["CPUExecutionProvider"]
        )
        (logits,) = session.run(None, {"image": batch["image"]})
        accuracy = float((logits.argmax(1) == batch["label"]).mean())
        assert manifest(run)["verdicts"][f"onnxruntime-cpu/{variant}"]["scores"]["runtime"] == pytest.approx(accuracy)


def test_again_everything_is_cached_and_quick(run):
    before = shipped(run)
    start = time.monotonic()
    done = compress(run)
    seconds = time.monotonic() - start
    assert done.returncode == 0
    assert all(stage["cached"] for stage in manifest(run)["stages"])
    assert shipped(run) == before
    assert seconds < 15  # a loaded machine; README says what a quiet one takes


def test_a_cached_run_imports_neither_torch_nor_a_runtime(copy):
    code = (
        "import sys\n"
        f"sys.argv = ['edgekd', 'compress', 'models/digits', '-o', {str(copy)!r}, *{settings()!r}]\n"
        "from edgekd.cli import main\n"
        "try:\n    main()\nexcept SystemExit as done:\n    assert not done.code\n"
        "print('HEAVY', sorted({'torch', 'onnxruntime', 'nncf', 'transformers', 'timm'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "HEAVY []" in done.stdout, done.stdout + done.stderr


def test_only_what_a_setting_touches_is_made_again(copy):
    assert compress(copy, "quantize.int8.calibration.samples=64").returncode == 0
    made = [stage["name"] for stage in manifest(copy)["stages"] if not stage["cached"]]
    assert made == ["quantize/int8", "export/onnxruntime-cpu/int8", "verify/onnxruntime-cpu/int8", "bench/onnxruntime-cpu"]


def test_a_variant_is_trained_again_though_the_teachers_outputs_are_gone(copy):
    before = shipped(copy)
    shutil.rmtree(copy / "teacher_cache")
    shutil.rmtree(copy / "variants" / "qd4")
    assert edgekd("quantize", str(copy)).returncode == 0
    made = [stage["name"] for stage in manifest(copy)["stages"] if not stage["cached"]]
    assert made == ["teacher-cache", "quantize/qd4"]
    assert shipped(copy) == before


def test_what_is_told_of_a_trained_variant_is_true(run):
    from safetensors.numpy import load_file

    told = manifest(run)["variants"]["qd2"]
    facts, weights = told["facts"], load_file(run / "variants" / "qd2" / told["weights"])
    student = load_file(run / "student" / "model.safetensors")
    assert [t["name"] for t in facts["tensors"]] == [
        "0.3.body.0.weight",
        "0.3.body.3.weight",
        "1.0.weight",
        "1.3.body.0.weight",
        "1.3.body.3.weight",
    ]
    for tensor in facts["tensors"]:
        values = weights[tensor["name"]]
        assert list(values.shape) == tensor["shape"]
        assert max(len(np.unique(channel)) for channel in values) == 4
    for name in facts["kept"]:
        assert len(np.unique(weights[name])) == len(np.unique(student[name]))
    assert facts["sizes"]["file_bytes"] == told["size_bytes"] == (run / "variants" / "qd2" / "model.onnx").stat().st_size
    assert len(facts["training"][0]["epochs"]) == 1


def test_a_dry_run_knows_what_variants_will_weigh(run, tmp_path):
    done = edgekd("compress", "models/digits", "-o", str(tmp_path / "new"), "--dry-run", "--json", *settings())
    estimates = json.loads(done.stdout)["estimates"]["variants"]
    for name in ("qd4", "dq4", "qd2"):
        assert estimates[name] == manifest(run)["variants"][name]["facts"]["sizes"]["packed_bytes"]


def test_no_variant_is_trained_before_all_are_checked(copy):
    shutil.rmtree(copy / "variants" / "qd4")
    done = compress(copy, "quantize.qd2={name: qd2, method: differentiable, budget: {size_mb: 0.0001}}")
    assert done.returncode == 2
    assert "below the smallest possible size" in done.stderr
    assert not (copy / "variants" / "qd4").exists()


def test_a_student_whose_code_makes_another_network_is_refused(copy, tmp_path):
    """The recipe's files are as they were, but what the code reads is not: its name is put together while it runs."""
    shutil.copytree("models/digits", tmp_path / "digits")
    code = (tmp_path / "digits" / "model.py").read_text()
    read = "getattr(nn, (__import__('pathlib').Path(__file__).parent / ('activation' + '.txt')).read_text())()"
    (tmp_path / "digits" / "model.py").write_text(code.replace("self.activation = nn.ReLU()", f"self.activation = {read}"))
    (tmp_path / "digits" / "activation.txt").write_text("ReLU")
    here = str(tmp_path / "digits")
    done = edgekd("distill", here, "-o", str(tmp_path / "run"), *settings())
    assert done.returncode == 0, done.stderr
    one, two = (
        "quantize=[{name: fp32, method: none}]",
        "quantize=[{name: qd4, method: quantized-distillation, weights: {bits: 4}}]",
    )
    assert edgekd("quantize", str(tmp_path / "run"), "--set", one).returncode == 0
    (tmp_path / "digits" / "activation.txt").write_text("Tanh")
    done = edgekd("quantize", str(tmp_path / "run"), "--set", two)
    assert done.returncode == 2
    assert "is no longer the one that" in done.stderr
    assert not (tmp_path / "run" / "variants" / "qd4").exists()
    (tmp_path / "digits" / "activation.txt").write_text("ReLU")
    done = edgekd("quantize", str(tmp_path / "run"), "--set", two)
    assert done.returncode == 0, done.stderr


NOT_THERE = "[{kind: features, student: nowhere, teacher: nowhere}]"


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("quantize.int8.keep=[nonsense]", "quantize `int8`: keep: no module of the student is called `nonsense`"),
        ("quantize.qd2.keep=[nonsense]", "quantize `qd2`: keep: no module of the student is called `nonsense`"),
        (f"quantize.qd2.training.objectives={NOT_THERE}", "nowhere"),
    ],
)
def test_no_variant_is_made_before_all_that_are_missing_are_checked(copy, setting, says):
    from edgekd import verbs
    from edgekd.errors import BadInput

    first = "fp32" if "int8" in setting else "qd4"
    shutil.rmtree(copy / "variants" / first)
    with pytest.raises(BadInput, match=says):
        verbs.quantize(copy, [setting])
    assert not (copy / "variants" / first).exists()
    with pytest.raises(BadInput, match="run `edgekd quantize` first"):  # and no other verb checks them
        verbs.export(copy, [setting])


def test_a_budget_goes_through_and_one_too_small_is_told_before_training(copy, tmp_path):
    quantize = "quantize=[{name: mixed, method: round-to-nearest, keep: [last], budget: {size_mb: 0.008}}]"
    assert compress(copy, quantize).returncode == 0
    facts = manifest(copy)["variants"]["mixed"]["facts"]
    assert facts["kept"] == ["4.weight"]
    assert facts["sizes"]["packed_bytes"] <= 8000
    assert len({row["bits"] for row in facts["budget"]["table"]}) > 1
    for setting in (
        quantize.replace("0.008", "0.001"),
        quantize.replace("round-to-nearest", "differentiable").replace("0.008", "0.001"),
    ):
        done = compress(tmp_path / "new", setting)
        assert done.returncode == 2
        assert "budget.size_mb 0.001 is below the smallest possible size" in done.stderr
        assert not (tmp_path / "new" / "student").exists()
        assert edgekd("compress", "models/digits", "-o", str(tmp_path / "new"), "--dry-run", "--set", setting).returncode == 2


def test_a_damaged_artifact_is_made_again(copy):
    before = shipped(copy)
    model = copy / "targets" / "onnxruntime-cpu" / "int8" / "model.onnx"
    model.write_bytes(model.read_bytes()[:-100])
    assert compress(copy).returncode == 0
    assert shipped(copy) == before


def test_over_the_gate_is_exit_3_and_everything_is_kept(copy):
    before = shipped(copy)
    done = compress(copy, "gate.max_drop=0")  # two epochs: the student is worse than its teacher
    assert done.returncode == 3
    assert "failed the gate" in done.stderr
    told = manifest(copy)
    assert {v["status"] for v in told["verdicts"].values()} == {"failed"}
    assert {v["lost_at"] for v in told["verdicts"].values()} == {"student"}
    assert told["chosen"]["onnxruntime-cpu"]["variant"] is None
    assert shipped(copy) == before
    assert "failed" in (copy / "report.html").read_text()


def test_a_run_of_another_recipe_is_refused_and_untouched(copy):
    before = {f: f.read_bytes() for f in copy.rglob("*") if f.is_file()}
    done = compress(copy, "data.source=/somewhere/else.parquet")
    assert done.returncode == 2
    assert "else.parquet" in done.stderr
    assert {f: f.read_bytes() for f in copy.rglob("*") if f.is_file()} == before


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("distill.objectives.0.kind=features", "student"),
        ("data.source=/no/such/folder", "/no/such/folder"),
        ("student.arguments.widht=3", "widht"),
        ("quantize.int8.weights.bits=3", "3 bits"),
        ("quantize.int8.keep=[nonsense]", "nonsense"),
        ("quantize.qd4.keep=[nonsense]", "nonsense"),
        ("quantize.qd4.weights.bits=9", "`quantize[2].weights.bits`"),
        ("quantize.qd4.weights.group=0", "`quantize[2].weights.group`"),
        ("quantize.dq4.activations.bits=8", "a codebook has no arithmetic of its own"),
        ("quantize.qd2.method=qd", "no method `qd`"),
        ("teacher.classes=[a, b]", "classes"),
    ],
)
def test_what_does_not_fit_is_told_before_a_finished_run_is_touched(copy, setting, says):
    before = {f: f.read_bytes() for f in copy.rglob("*") if f.is_file() and ".partial" not in f.parts}
    done = compress(copy, setting)
    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert {f: f.read_bytes() for f in copy.rglob("*") if f.is_file() and ".partial" not in f.parts} == before


def test_after_a_failed_start_the_corrected_recipe_may_use_the_folder(tmp_path):
    out = tmp_path / "run"
    assert compress(out, "student.model=py:models/digits/model.py:studnt").returncode == 2
    assert edgekd("compress", "models/digits", "-o", str(out), "--dry-run").returncode == 0


def test_training_into_a_finished_run_is_refused_and_the_other_way_round(copy):
    before = (copy / "manifest.json").read_bytes()
    done = edgekd("train", "models/digits", "-o", str(copy), "--set", "train.epochs=1")
    assert done.returncode == 2
    assert "verb 'compress' there, 'train' here" in done.stderr
    assert (copy / "manifest.json").read_bytes() == before


def test_another_target_joins_and_those_before_stay(copy, tmp_path):
    source = (Path(__file__).parent.parent / "targets" / "onnxruntime-cpu.toml").read_text()
    (tmp_path / "mine.toml").write_text(source)
    done = compress(copy, "bench.min_count=6", recipe="models/digits")
    assert done.returncode == 0
    done = edgekd(
        "compress", "models/digits", "-o", str(copy), *settings("bench.min_count=6"), "--target", "mine.toml", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    told = manifest(copy)
    assert set(told["verdicts"]) == {f"{t}/{v}" for t in ("onnxruntime-cpu", "mine") for v in VARIANTS}
    assert set(told["chosen"]) == {"onnxruntime-cpu", "mine"}
    made = {f"{stage}/mine/{variant}" for stage in ("export", "verify") for variant in VARIANTS}
    assert {stage["name"] for stage in told["stages"] if not stage["cached"]} == {*made, "bench/mine"}


def test_a_changed_file_is_named_and_never_judged(copy):
    model = copy / "targets" / "onnxruntime-cpu" / "fp32" / "model.onnx"
    content = bytearray(model.read_bytes())
    content[-1] ^= 1
    model.write_bytes(content)
    done = edgekd("verify", str(copy))
    assert done.returncode == 2
    assert "model.onnx: not the file that was made" in done.stderr


def test_a_run_is_timed_and_judged_again_when_its_sources_are_gone(tmp_path):
    home = Path(__file__).parent.parent / "models" / "digits"
    shutil.copytree(home, tmp_path / "pair")
    assert compress(tmp_path / "run", recipe=str(tmp_path / "pair")).returncode == 0
    shutil.rmtree(tmp_path / "pair")
    for verb in ("verify", "report"):
        assert edgekd(verb, str(tmp_path / "run")).returncode == 0
    done = edgekd("bench", str(tmp_path / "run"), "--set", "bench.min_count=7", "--set", "bench.min_seconds=0.05")
    assert done.returncode == 0, done.stderr


def test_a_stricter_tolerance_reaches_the_artifact(copy):
    assert compress(copy, "gate.max_error=0.0001").returncode == 0
    assert "0.0001" in (copy / "targets" / "onnxruntime-cpu" / "fp32" / "artifact.json").read_text()


def test_the_verbs_one_by_one_make_the_same_files(run, tmp_path):
    out = tmp_path / "steps"
    early = edgekd("quantize", str(out))
    assert early.returncode == 2
    assert edgekd("distill", "models/digits", "-o", str(out), *settings()).returncode == 0
    too_early = edgekd("export", str(out))
    assert too_early.returncode == 2
    assert "edgekd quantize" in too_early.stderr
    for verb in ("quantize", "export", "verify", "bench", "report"):
        done = edgekd(verb, str(out))
        assert done.returncode == 0, (verb, done.stderr)
    assert shipped(out) == shipped(run)
    assert (out / "report.html").is_file()


def test_check_py_works_where_the_artifact_is_carried(run, tmp_path):
    shutil.copytree(run / "targets" / "onnxruntime-cpu" / "fp32", tmp_path / "device")
    done = subprocess.run([sys.executable, "-I", "check.py", "--json"], cwd=tmp_path / "device", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout


@pytest.mark.slow
def test_killed_at_random_instants_it_ends_with_the_same_bytes(run, tmp_path):
    """The short form of tools/kill_and_resume.py."""
    out, instants = tmp_path / "killed", random.Random(1)
    command = [
        sys.executable,
        "-m",
        "edgekd",
        "compress",
        "models/digits",
        "-o",
        str(out),
        *settings("distill.checkpoint_minutes=0"),
    ]
    for _ in range(5):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(instants.uniform(1, 9))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert shipped(out) == shipped(run)


@pytest.mark.slow
def test_ctrl_c_is_exit_130_and_resumable(run, tmp_path):
    out = tmp_path / "interrupted"
    command = [sys.executable, "-m", "edgekd", "compress", "models/digits", "-o", str(out), *settings()]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (out / "teacher_cache").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 130, told
    assert "goes on from there" in told
    assert "Traceback" not in told
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert shipped(out) == shipped(run)


def test_a_full_disk_is_one_message(tmp_path):
    home = tmp_path / "small"
    home.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(home)], capture_output=True)
    if mounted.returncode:
        pytest.skip("cannot mount a small file system here (needs root)")
    try:
        done = compress(home / "run")
        assert done.returncode == 2, done.stderr
        assert "free some space" in done.stderr.lower()
        assert "Traceback" not in done.stderr
    finally:
        subprocess.run(["umount", str(home)], check=True)


# --- a pair that is nowhere in the repository --------------------------------------------------

RESNET = """
import torch
from torch import nn


class Basic(nn.Module):
    def __init__(self, inside, width, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inside, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.down = nn.Sequential(nn.Conv2d(inside, width, 1, stride, bias=False), nn.BatchNorm2d(width)) if inside != width else nn.Identity()

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.down(x))


class ResNet(nn.Module):
    def __init__(self, widths, classes):
        super().__init__()
        self.stem = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.layers = nn.Sequential(*(Basic(a, b, 2) for a, b in zip(widths, widths[1:])))
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x):
        return self.head(self.layers(self.stem(x)).mean((2, 3)))


def big(num_classes):
    return ResNet((16, 32, 64), num_classes)


def small(num_classes):
    return ResNet((8, 12), num_classes)
"""


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """Colour pictures with a class one can see (which third is bright), as parquet; a ResNet with weights in a safetensors file."""
    from datasets import Dataset
    from PIL import Image
    from safetensors.torch import save_file

    draw = np.random.default_rng(3)
    rows: dict[str, list[Any]] = {"image": [], "label": []}
    for i in range(360):
        picture = draw.integers(0, 90, (24, 20, 3), dtype=np.uint8)
        picture[8 * (i % 3) : 8 * (i % 3) + 8] += 120
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "PNG")
        rows["image"].append({"bytes": file.getvalue(), "path": None})
        rows["label"].append(i % 3)
    Dataset.from_dict(rows).to_parquet(tmp_path / "stripes.parquet")
    (tmp_path / "nets.py").write_text(RESNET)
    (tmp_path / "recipe.yaml").write_text(
        "data: {source: stripes.parquet}\n"
        'teacher: {model: "py:nets.py:big", weights: big.safetensors}\n'
        'student: {model: "py:nets.py:small"}\n'
        "preprocess: {size: [24, 20], mean: [0.4, 0.4, 0.4], std: [0.2, 0.2, 0.2]}\n"
        "train: {epochs: 4, batch_size: 32}\n"
        "distill: {epochs: 12, batch_size: 32, learning_rate: 0.01}\n"
        "quantize:\n- {name: fp32, method: none}\n- {name: int8, method: ptq, weights: {bits: 8}, activations: {bits: 8}}\n"
        "gate: {max_drop: 0.05}\n"
        "bench: {min_seconds: 0.05, min_count: 5, interval: null, launches: 1}\n"
    )
    done = edgekd("train", "recipe.yaml", "-o", "teacher", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    from safetensors.torch import load_file

    weights = load_file(tmp_path / "teacher" / "model" / "model.safetensors")
    save_file({f"module.{name}": value for name, value in weights.items()}, tmp_path / "big.safetensors")  # as DDP saves it
    return tmp_path


@pytest.mark.slow
def test_a_foreign_pair_runs_unchanged(foreign):
    done = edgekd("compress", "recipe.yaml", "-o", "run", cwd=foreign)
    assert done.returncode == 0, done.stderr
    told = manifest(foreign / "run")
    assert told["scores"]["teacher"] > 0.95
    assert told["scores"]["student"] > 0.9
    assert {v["status"] for v in told["verdicts"].values()} == {"passed"}
    assert told["artifacts"]["onnxruntime-cpu/int8"]["graphs"]["model"]["inputs"][0]["shape"][1:] == [24, 20, 3]


@pytest.mark.slow
def test_two_processes_compress_like_one(tmp_path):
    """`accelerate launch -m edgekd`: the first process does everything but the trainings alone."""
    mixed = "{name: qd2, method: [quantized-distillation, differentiable], budget: {mean_bits: 3}, training: {epochs: 1}}"
    out = tmp_path / "two"
    # accelerate takes several processes for several GPUs; ACCELERATE_USE_CPU makes them CPU processes
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    done = subprocess.run(
        [*launch, "-m", "edgekd", "compress", "models/digits", "-o", str(out), *settings(f"quantize.qd2={mixed}")],
        capture_output=True, text=True, timeout=600, env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = manifest(out)
    assert told["training"]["processes"] == 2
    lessons = [lesson for name in ("qd4", "dq4", "qd2") for lesson in told["variants"][name]["facts"]["training"]]
    assert [lesson["processes"] for lesson in lessons] == [2, 2, 2, 2]
    assert {v["status"] for v in told["verdicts"].values()} == {"passed"}


def test_what_a_device_said_is_brought_back(copy, tmp_path):
    """check.py's JSON changes the verdict; what it is about is found by its hashes."""
    before = manifest(copy)["verdicts"]["onnxruntime-cpu/fp32"]
    home = copy / "targets" / "onnxruntime-cpu" / "fp32"
    checked = subprocess.run([sys.executable, home / "check.py", "--json", "--seconds", "0.1"], capture_output=True, text=True)
    (tmp_path / "check.json").write_text(checked.stdout)
    done = edgekd("verify", str(copy), "--import", str(tmp_path / "check.json"))
    assert done.returncode == 0, done.stderr
    verdict = manifest(copy)["verdicts"]["onnxruntime-cpu/fp32"]
    assert (verdict["status"], verdict["by"]) == ("passed", "device")
    assert verdict["scores"] == before["scores"]
    assert "device" not in manifest(copy)["verdicts"]["onnxruntime-cpu/int8"]
    again = edgekd("verify", str(copy))
    assert again.returncode == 0
    assert manifest(copy)["verdicts"]["onnxruntime-cpu/fp32"]["by"] == "device", "it stays beside the run"
    test_the_manifest_obeys_its_schema(copy)
    (tmp_path / "check.json").write_text(checked.stdout.replace("onnxruntime-cpu/fp32", "onnxruntime-cpu/int8"))
    wrong = edgekd("verify", str(copy), "--import", str(tmp_path / "check.json"))
    assert wrong.returncode == 2
    assert "onnxruntime-cpu/int8" in wrong.stderr
    assert "Traceback" not in wrong.stderr


def test_a_target_added_to_a_finished_run_is_shown_the_network_too(copy, tmp_path):
    file = tmp_path / "no-conv.toml"
    file.write_text('title = "No Conv"\nbackend = "onnxruntime"\nstores = ["fp32"]\n[limits]\noperators_refused = ["Conv"]\n')
    refused = edgekd("export", str(copy), "--target", str(file))
    assert refused.returncode == 2
    assert "target `no-conv`: graph `model`: No Conv has no Conv" in refused.stderr
    assert "--set 'targets=[onnxruntime-cpu]'" in refused.stderr
    assert not (copy / "targets" / "no-conv").exists()
