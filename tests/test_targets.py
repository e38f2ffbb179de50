import platform
import subprocess
import sys

import pytest

from edgekd import host, verbs
from edgekd.backends import BACKENDS, backend_of, installed
from edgekd.errors import BadInput
from edgekd.recipe import VariantRecipe, load
from edgekd.targets import Target, all_targets, covers, load_target


def test_every_shipped_target_loads_and_names_a_backend():
    targets = all_targets()
    assert "onnxruntime-cpu" in [t.name for t in targets]
    for target in targets:
        assert target.backend in BACKENDS
        assert set(target.prefer) <= set(target.stores)
        assert set(target.accelerates) <= set(target.stores)
        assert target.source.startswith("https://")


def test_an_unknown_target_names_the_nearest():
    with pytest.raises(BadInput, match="did you mean `onnxruntime-cpu`"):
        load_target("onnxruntime-gpu")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('title = "T"\nbackend = "onnxruntime"\nstore = ["fp32"]', "unknown key `store` .did you mean `stores`"),
        ('title = "T"', "needs `backend`"),
        ('title = "T"\nbackend = "onnxruntime"\nstores = "fp32"', "`stores` must be a list"),
        ('title = "T"\nbackend = "tvm"', "no backend `tvm`; there are onnxruntime"),
        ('title = "T"\nbackend = "onnxruntim"', "did you mean `onnxruntime`"),
        ('title = 5\nbackend = "onnxruntime"', "`title` must be a text, not 5"),
        ('title = "T"\nbackend = "onnxruntime"\ndevice = 5', "`device` must be a text, not 5"),
        ('title = "T"\nbackend = "onnxruntime"\narchitecture = []', "`architecture` must be a text"),
        ('title = "T"\nbackend = "onnxruntime"\nvnni = "yes"', "`vnni` must be true or false, not 'yes'"),
        ('title = "T"\nbackend = "onnxruntime"\nlimits = 3', "`limits` must be a table"),
        ('title = "T"\nbackend = "onnxruntime"\nfile = "x"', "unknown key `file`"),
        ("title = ", "not valid TOML"),
    ],
)
def test_a_bad_target_file_says_what_is_wrong(tmp_path, text, says):
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(BadInput, match=says):
        load_target(str(file))


@pytest.mark.parametrize(
    ("backend", "more", "says"),
    [
        ("openvino", '[options]\ndevcie = "NPU"', "unknown key `options.devcie` .did you mean `device`.*known here: device"),
        ("openvino", '[options]\ndevice = "AUTO"', "`options.device` must be one of 'CPU', 'NPU', not 'AUTO'"),
        ("web", '[options]\nprovder = "webgpu"', "`options.provder` .did you mean `provider`"),
        ("web", '[options]\nprovider = "webgl"', "`options.provider` must be one of 'wasm', 'webgpu', not 'webgl'"),
        ("web", '[options]\nprovider = "WebGPU"', "must be one of 'wasm', 'webgpu', not 'WebGPU'"),
        ("coreml", '[options]\nminimum_deploymet_target = "iOS18"', "did you mean `minimum_deployment_target`"),
        ("coreml", '[options]\nminimum_deployment_target = "iOS1"', "must be one of 'iOS17'.*'macOS15', not 'iOS1'"),
        ("coreml", '[options]\nimage_input = "no"', "`options.image_input` must be true or false, not 'no'"),
        ("qnn", "[options]\nsoc_model = [57]", r"`options.soc_model` must be a whole number from 1 on, not \[57\]"),
        ("qnn", "[options]\nsoc = 57", "unknown key `options.soc`"),
        ("tensorrt", "[options]\nbatches = 5", "`options.batches` must be three rising numbers.*not 5"),
        ("tensorrt", '[options]\nbatches = ["a", "b", "c"]', "`options.batches` must be three rising numbers"),
        ("tensorrt", "[options]\nbatches = [8, 1, 64]", "`options.batches` must be three rising numbers"),
        ("tensorrt", '[options]\nworkspace_mib = "1GB"', "`options.workspace_mib` must be a whole number from 1 on, not '1GB'"),
        ("tensorrt", "[options]\nworkspace_mib = true", "`options.workspace_mib` must be a whole number"),
        ("onnxruntime", "[options]\nthreads = 2", "unknown key `options.threads`; known here: attention, weights, activations"),
        ("onnxruntime_mobile", "[options]\nthreads = 2", "unknown key `options.threads`; known here: none"),
        ("onnxruntime", "[limits]\nstatc = true", "unknown key `limits.statc` .did you mean `static`"),
        ("onnxruntime", '[limits]\nstatic = "false"', "`limits.static` must be true or false, not 'false'"),
        ("onnxruntime", '[limits]\noperators_refused = "Conv"', "`limits.operators_refused` must be a list of texts"),
        ("onnxruntime", '[limits]\nopset = "twenty"', "`limits.opset` must be a whole number from 1 on, not 'twenty'"),
        ("onnxruntime", "[limits]\nopset = 20.5", "`limits.opset` must be a whole number"),
    ],
)
def test_limits_and_options_are_checked(tmp_path, backend, more, says):
    file = tmp_path / "mine.toml"
    file.write_text(f'title = "T"\nbackend = "{backend}"\n{more}\n')
    with pytest.raises(BadInput, match=f"mine.toml: .*{says}"):
        load_target(str(file))


@pytest.mark.parametrize("name", ["...toml", ".toml", "my board.toml", "board@home.toml"])
def test_a_name_that_is_no_name_of_a_folder_is_refused(tmp_path, name):
    (tmp_path / name).write_text('title = "T"\nbackend = "onnxruntime"')
    with pytest.raises(BadInput, match="its name names a folder"):
        load_target(str(tmp_path / name))


@pytest.mark.parametrize("name", ["../targets/browser", "ALL", "all", ""])
def test_what_is_no_target_names_all_that_are(name):
    with pytest.raises(BadInput, match=f"no target `{name}`.* onnxruntime-cpu, .*`--target all` takes them all"):
        load_target(name)


@pytest.mark.parametrize(("shipped", "asked"), [("onnxruntime-cpu", ["own"]), ("browser", ["all", "own"])])
def test_a_file_with_the_name_of_another_target_is_refused(tmp_path, shipped, asked):
    """Its stages would be in the other's folders."""
    file = tmp_path / f"{shipped}.toml"
    file.write_text('title = "T"\nbackend = "onnxruntime"')
    with pytest.raises(BadInput, match=f"two targets are named `{shipped}`, {shipped} and {file}: .*rename its file"):
        verbs.dry_run("models/digits", tmp_path / "run", targets=[str(file) if name == "own" else name for name in asked])


def test_a_target_that_is_asked_for_twice_is_there_once(tmp_path):
    file = tmp_path / "board.toml"
    file.write_text('title = "T"\nbackend = "onnxruntime"')
    asked = verbs._with(load("models/digits"), ["onnxruntime-cpu", str(file), f"{tmp_path}/../{tmp_path.name}/board.toml"])
    assert asked.targets == ("onnxruntime-cpu", str(file))


BROKEN = """
from edgekd import verbs
from edgekd.backends import openvino
from edgekd.errors import Missing
from edgekd.targets import load_target
assert openvino.missing() is None, "it is looked for alone"
print(openvino.executes(load_target("intel-cpu")).why)
try:
    verbs.dry_run("models/digits", "run", targets=["intel-cpu"])
except Missing as error:
    print(error)
"""


def test_a_broken_installation_is_told_and_no_traceback(tmp_path):
    (tmp_path / "openvino").mkdir()
    (tmp_path / "openvino" / "__init__.py").write_text("raise ImportError('libtbb.so.12: cannot open shared object file')")
    ran = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{BROKEN}"], capture_output=True, text=True
    )
    reason = "openvino is installed here and cannot be imported (ImportError: libtbb.so.12: cannot open shared object file): "
    assert ran.returncode == 0, ran.stderr
    told = ran.stdout.splitlines()
    assert told[0].startswith(reason)
    assert told[1].startswith(f"target `intel-cpu`: {reason}")


def test_what_works_is_imported_once_and_what_is_absent_is_not(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "half_a_runtime.py").write_text("print('banner')\nimport no_such_library_of_it")
    assert installed.missing("half_a_runtime", "pip install it") is None
    reason = installed.broken("half_a_runtime")
    assert reason.startswith("half_a_runtime is installed here and cannot be imported (ModuleNotFoundError: No module named")
    assert installed.missing("half_a_runtime", "pip install it") == reason
    assert installed.broken("json") is None
    assert installed.broken("no_such_runtime") is None
    assert installed.missing("no_such_runtime", "pip install it") == "no_such_runtime is not installed here: pip install it"


def test_one_runtime_that_fails_does_not_hide_the_others(monkeypatch):
    def fails(target):
        raise RuntimeError("the driver is too old")

    monkeypatch.setattr(installed, "broken", lambda module: None)  # importing all of them takes long
    monkeypatch.setattr(backend_of("web"), "executes", lambda target: backend_of("onnxruntime").executes(target))
    monkeypatch.setattr(backend_of("openvino"), "executes", fails)
    rows = {row["name"]: row for row in verbs.targets()}
    assert rows["intel-cpu"]["missing"] == "openvino does not work here: the driver is too old"
    assert rows["intel-cpu"]["verified_by"] is None
    assert rows["onnxruntime-cpu"]["verified_by"] == "runtime"
    assert len(rows) == len(all_targets())


def test_a_target_file_of_ones_own(tmp_path):
    file = tmp_path / "board.toml"
    file.write_text(
        'title = "Board"\nbackend = "onnxruntime"\ndevice = "ssh"\narchitecture = "aarch64"\nstores = ["fp32", "w8a8"]'
    )
    target = load_target(str(file))
    assert (target.name, target.stores, target.saturates()) == ("board", ("fp32", "w8a8"), None)
    assert target.elsewhere() == "Board is another device (ssh) and cannot be reached from here"
    assert load_target(target.file) == target
    assert load_target("onnxruntime-cpu").file == "onnxruntime-cpu"
    before = target.fingerprint
    file.write_text(file.read_text() + "\n")
    assert load_target(str(file)).fingerprint != before


@pytest.mark.parametrize(
    ("architecture", "target_vnni", "host_vnni", "expected"),
    [
        ("x86_64", None, True, False),
        ("x86_64", None, False, True),
        ("x86_64", None, None, True),  # not known: the safe side
        ("x86_64", True, False, False),
        ("x86_64", False, True, True),
        ("aarch64", None, False, False),
    ],
)
def test_where_int8_saturates(monkeypatch, architecture, target_vnni, host_vnni, expected):
    monkeypatch.setattr(host, "vnni", lambda: host_vnni)
    target = Target("t", "T", "onnxruntime", architecture=architecture, vnni=target_vnni)
    assert (target.saturates() is not None) == expected


def test_this_machine_stands_for_its_own_architecture():
    assert Target("t", "T", "onnxruntime", architecture=platform.machine()).elsewhere() is None
    assert (
        Target("t", "T", "onnxruntime", architecture="riscv64").elsewhere()
        == f"T is riscv64 and this machine {platform.machine()}"
    )


@pytest.mark.parametrize(
    ("parts", "label", "stored"),
    [
        ({"method": "none"}, "fp32", True),
        ({"weights": {"bits": 8}}, "w8", True),
        ({"weights": {"bits": 8}, "activations": {"bits": 8}}, "w8a8", True),
        ({"weights": {"bits": 8}, "activations": {"bits": 16}}, "w8a16", False),
        ({"weights": {"bits": 4, "group": 32}}, "w4g32", True),
        ({"weights": {"bits": 2, "kind": "codebook"}}, "w2c", True),
        ({"weights": {"bits": 4, "group": 32}, "activations": {"bits": 8}}, "w4g32a8", False),
        ({"method": "differentiable", "weights": {"bits": 3, "group": 256}}, "w3cg256", True),
        ({"method": ["quantized-distillation", "differentiable"], "weights": {"bits": 2}}, "w2c", True),
        ({"method": "quantized-distillation", "budget": {"mean_bits": 3, "choices": [4, 2, 8]}}, "w2-8", True),
        ({"method": "differentiable", "weights": {"group": 64}, "budget": {"size_mb": 3}}, "w2-8cg64", True),
    ],
)
def test_a_scheme_has_a_label_and_a_target_refuses_what_it_cannot_store(parts, label, stored):
    scheme = VariantRecipe(name="v", **parts).scheme
    assert scheme.label == label
    reason = backend_of("onnxruntime").refuses(scheme, load_target("onnxruntime-cpu"))
    assert (reason is None) == stored
    if reason:
        assert f"cannot store {label}" in reason
        assert "fp32, w*, w8a8" in reason


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("w8", ["w8"], ["w8a8", "w8g32", "fp32"]),
        ("w*", ["w8", "w4g256", "w2cg256", "w2-8"], ["w8a8", "w4g32a16", "fp32", "a8"]),
        ("w?g*", ["w4g256", "w8g2"], ["w4", "w4c", "w4cg256", "w4g256a8"]),
        ("w*a8", ["w8a8", "w4g32a8"], ["w8", "w8a16"]),
        ("fp32", ["fp32"], ["w8"]),
    ],
)
def test_patterns_of_schemes(pattern, matching, others):
    assert [label for label in (*matching, *others) if covers([pattern], label)] == matching
