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
