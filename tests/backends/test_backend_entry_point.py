"""A backend of another package: found through its entry point, without a line in edgekd."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import other_package
import pytest

from edgekd import backends, plugins
from edgekd.backends import onnxruntime
from edgekd.errors import Missing
from edgekd.export import artifact as artifacts
from edgekd.quantize import make
from edgekd.recipe import Gate, VariantRecipe
from edgekd.targets import load_target
from edgekd.verify import Question, verify

TOY = """
import shutil
from pathlib import Path

import numpy as np

from edgekd.backends import Means, onnxruntime
from edgekd.backends.onnxruntime import CHECK, interface

PACKAGES = ("numpy",)
ERROR = 0.0  # what this runtime adds to every output


def missing():
    return None


def executes(target):
    return Means("runtime", f"on a board of {target.options['cores']} cores")


def refuses(scheme, target):
    return None if scheme.label == "fp32" else f"the toy runtime takes no {scheme.label}; leave out `weights`"


def refuses_graph(file, target):
    return None


def convert(variant, target, folder, graphs):
    made = {}
    for name, source in variant.graphs.items():
        made[name] = folder / f"{name}.toy"
        shutil.copyfile(source, made[name])
    return made


class Session:
    providers = {"toy": 1}

    def __init__(self, file):
        self.inner = onnxruntime.load(file, exact=True)

    def run(self, inputs):
        return {name: values + np.float32(ERROR) for name, values in self.inner.run(inputs).items()}


def load(file, target=None, threads=None, exact=False):
    return None if exact else Session(file)
"""

TARGET = 'title = "A toy"\nbackend = "toy"\ndevice = "toy"\nstores = ["fp32"]\n[options]\ncores = 2\n'


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Install a package `toy_runtime` that announces a backend, as pip does; return a target file that names it."""
    site = other_package.put(tmp_path / "site", "toy_runtime", TOY, plugins.BACKENDS, "toy")
    monkeypatch.syspath_prepend(str(site))
    plugins.found.cache_clear()
    file = tmp_path / "toy-board.toml"
    file.write_text(TARGET)
    yield file
    plugins.found.cache_clear()
    sys.modules.pop("toy_runtime", None)


def judged(trained, target, folder: Path):
    variant = make(VariantRecipe(name="fp32", method="none"), trained.job, folder / "variant")
    golden = {"model": trained.task.inputs(trained.splits.test.take(np.arange(4)))}
    reference = onnxruntime.load(variant.graphs["model"], exact=True)
    made = artifacts.make(
        variant,
        target,
        folder / "made",
        golden=golden,
        reference=lambda name, inputs: reference.run(inputs),
        gate=Gate(),
        classes=trained.splits.classes,
    )
    question = Question(
        artifact=made,
        variant=variant,
        target=target,
        gate=Gate(),
        task=trained.task,
        split=trained.splits.test.at(np.arange(50)),
    )
    return made, verify(question)


def test_a_toy_backend_of_another_package(toy, trained, tmp_path):
    assert "toy" in backends.names()
    target = load_target(str(toy))
    made, verdict = judged(trained, target, tmp_path)
    assert [file["path"] for file in made.record["files"]] == ["check.py", "golden.npz", "model.toy"]
    assert (verdict.status, verdict.by, verdict.providers) == ("passed", "runtime", {"toy": 1})
    assert verdict.reason.endswith("; on a board of 2 cores")
    assert "file" not in verdict.scores, "it has no exact arithmetic"
    assert backends.packages_of("toy") == {"numpy": np.__version__}


def test_what_a_toy_backend_computes_is_judged(toy, trained, tmp_path):
    target = load_target(str(toy))
    backends.backend_of("toy").ERROR = 1.0
    _, verdict = judged(trained, target, tmp_path)
    assert (verdict.status, verdict.lost_at) == ("failed", "runtime")


def test_one_that_cannot_be_imported_is_named(toy):
    (toy.parent / "site" / "toy_runtime.py").write_text("import no_such_thing")
    with pytest.raises(Missing, match=r"toy-runtime 1\.0 announces `toy` .* cannot be imported .*no_such_thing"):
        load_target(str(toy))


def test_without_the_package_its_targets_are_refused(toy, monkeypatch):
    monkeypatch.setattr(sys, "path", [part for part in sys.path if part != str(toy.parent / "site")])
    plugins.found.cache_clear()
    with pytest.raises(Exception, match="no backend `toy`"):
        load_target(str(toy))
