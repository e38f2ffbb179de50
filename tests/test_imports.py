"""A model is its file and the neighbours that it imports: a change in any of them is another model."""

from __future__ import annotations

from edgekd import imports
from edgekd.plan import model_fingerprint
from edgekd.recipe import Model


def test_neighbours_count_through_others_and_strangers_do_not(tmp_path):
    (tmp_path / "net.py").write_text("import torch\nfrom layers import Block\n")
    (tmp_path / "layers.py").write_text("def f():\n    import parts.small as p\n")
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "__init__.py").write_text("")
    (tmp_path / "parts" / "small.py").write_text("x = 1\n")
    (tmp_path / "other.py").write_text("import net\n")
    names = [str(f.relative_to(tmp_path)) for f in imports.sources(tmp_path / "net.py")]
    assert names == ["layers.py", "net.py", "parts/__init__.py", "parts/small.py"]


def test_a_circle_ends_and_what_cannot_be_parsed_counts(tmp_path):
    (tmp_path / "a.py").write_text("import b\n")
    (tmp_path / "b.py").write_text("import a\nimport c\n")
    (tmp_path / "c.py").write_text("def (:\n")
    assert [f.name for f in imports.sources(tmp_path / "a.py")] == ["a.py", "b.py", "c.py"]


def test_the_fingerprint_follows_a_neighbour(tmp_path):
    (tmp_path / "net.py").write_text("from layers import Net\n")
    (tmp_path / "layers.py").write_text("activation = 'relu'\n")
    model = Model(model=f"py:{tmp_path / 'net.py'}:Net")
    before = model_fingerprint(model)
    (tmp_path / "layers.py").write_text("activation = 'tanh'\n")
    assert model_fingerprint(model) != before


def names(folder, file="net.py"):
    return [str(f.relative_to(folder)) for f in imports.sources(folder / file)]


def test_files_that_the_text_names_count(tmp_path):
    (tmp_path / "configs").mkdir()
    for name in ("act.json", "configs/width.json", "other.json", "configs/other.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "much.py").write_text("")
    (tmp_path / "net.py").write_text(
        "from pathlib import Path\nhere = Path(__file__).parent\n"
        "a = (here / 'act.json').read_text()\nb = here / 'configs' / 'width.json'\nc = here / 'runs'\nd = 'x' * 3 + '\\0' + '\\ud800'\n"
    )
    assert names(tmp_path) == ["act.json", "configs/width.json", "net.py"]


def test_modules_that_are_imported_by_name_count(tmp_path):
    (tmp_path / "net.py").write_text("import importlib\nacts = importlib.import_module('acts')\n")
    (tmp_path / "acts.py").write_text("import more\n")
    (tmp_path / "more.py").write_text("")
    assert names(tmp_path) == ["acts.py", "more.py", "net.py"]


def test_modules_on_a_path_that_was_added_count(tmp_path):
    for folder in ("project/models", "project/lib", "json"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "project" / "shared.py").write_text("")
    (tmp_path / "project" / "lib" / "blocks.py").write_text("")
    (tmp_path / "json" / "not_a_package.py").write_text("")  # stands for /sys
    file = tmp_path / "project" / "models" / "net.py"
    file.write_text("import json, shared, blocks\n")
    assert imports.sources(file) == [file]
    file.write_text("import json, sys\nsys.path += ['../lib', '..']\nimport shared, blocks\n")
    assert {f.resolve().name for f in imports.sources(file)} == {"net.py", "shared.py", "blocks.py"}
    file.write_text(
        "import sys\nfrom pathlib import Path\nsys.path.append(str(Path(__file__).parents[1]))\nimport json, shared\n"
    )
    assert {f.resolve().name for f in imports.sources(file)} == {"net.py", "shared.py"}


def test_a_package_behind_a_link_counts_and_a_circle_of_links_ends(tmp_path):
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "__init__.py").write_text("")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x.py").write_text("")
    (tmp_path / "pkg" / "inner").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "pkg")
    (tmp_path / "net.py").write_text("import pkg.inner.x\n")
    assert names(tmp_path) == ["net.py", "pkg/__init__.py", "pkg/inner/x.py"]


def test_the_fingerprint_follows_a_file_that_is_named(tmp_path):
    (tmp_path / "net.py").write_text("import json\nact = json.load(open('act.json'))\n")
    (tmp_path / "act.json").write_text('"ReLU"')
    model = Model(model=f"py:{tmp_path / 'net.py'}:Net")
    before = model_fingerprint(model)
    (tmp_path / "act.json").write_text('"Tanh"')
    assert model_fingerprint(model) != before


def test_files_that_it_writes_do_not_count(tmp_path):
    names_ = ("a.log", "b.log", "c.pt", "d.txt", "e.txt", "f.bin", "mean.gz")
    for name in names_:
        (tmp_path / name).write_text("")
    (tmp_path / "net.py").write_text(
        "open('a.log', 'a').write('x')\nopen('b.log', mode='w')\ntorch.save(net, HERE / 'c.pt')\n(HERE / 'd.txt').write_text('x')\n"
        "open('e.txt')\n(HERE / 'f.bin').open('rb')\ngzip.open('mean.gz')\n"
    )
    assert names(tmp_path) == ["e.txt", "f.bin", "mean.gz", "net.py"]
