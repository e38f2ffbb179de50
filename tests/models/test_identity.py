"""What a cache of a model's outputs depends on: what the model is, not where it lies."""

import shutil
from dataclasses import replace

import pytest
import torch

from edgekd.models.identity import identity
from edgekd.models.loaded import LoadedModel

CODE = "import layers\n\ndef teacher(): ...\n\ndef other(): ...\n"


def model(reference, **arguments):
    return LoadedModel(torch.nn.Identity(), reference, None, None, 0, arguments=arguments)


@pytest.fixture
def project(tmp_path):
    here = tmp_path / "here"
    here.mkdir()
    (here / "model.py").write_text(CODE)
    (here / "layers.py").write_text("width = 3\n")
    (here / "unrelated.py").write_text("width = 3\n")
    return here


def test_a_moved_project_has_the_same_models(project, tmp_path):
    before = identity(model(f"py:{project}/model.py:teacher"))
    moved = shutil.move(project, tmp_path / "there")
    assert identity(model(f"py:{moved}/model.py:teacher")) == before
    assert str(tmp_path) not in str(before)


@pytest.mark.parametrize("file", ["model.py", "layers.py"])
def test_changed_code_is_another_model(project, file):
    before = identity(model(f"py:{project}/model.py:teacher"))
    (project / "unrelated.py").write_text("width = 4\n")
    assert identity(model(f"py:{project}/model.py:teacher")) == before
    (project / file).write_text((project / file).read_text() + "# changed\n")
    assert identity(model(f"py:{project}/model.py:teacher")) != before


def test_files_that_change_places_are_another_model(project):
    (project / "model.py").write_text("import a, b\n")
    (project / "a.py").write_text("x = 1\n")
    (project / "b.py").write_text("x = 2\n")
    before = identity(model(f"py:{project}/model.py:teacher"))
    (project / "a.py").write_text("x = 2\n")
    (project / "b.py").write_text("x = 1\n")
    assert identity(model(f"py:{project}/model.py:teacher")) != before


def test_another_function_or_other_arguments_are_another_model(project):
    one = model(f"py:{project}/model.py:teacher")
    assert identity(one) != identity(model(f"py:{project}/model.py:other"))
    assert identity(one) != identity(replace(one, arguments={"width": 2}))


@pytest.mark.parametrize("prefix", ["hf:", ""])
def test_a_folder_is_what_its_configuration_says(tmp_path, prefix):
    for name, text in (("a", "{}"), ("b", "{}"), ("c", '{"activation": "gelu"}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
        (tmp_path / name / "README.md").write_text(name)
    a, b, c = (identity(model(f"{prefix}{tmp_path}/{name}")) for name in "abc")
    assert a == b
    assert a != c


def test_what_has_no_files_is_its_name():
    assert identity(model("timm:resnet18")) != identity(model("timm:resnet34"))
    assert identity(model("hf:some/name"))["reference"] == "hf:some/name"
