import platform

import pytest

from edgekd import host
from edgekd.backends import BACKENDS, backend_of
from edgekd.errors import BadInput
from edgekd.recipe import VariantRecipe
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
