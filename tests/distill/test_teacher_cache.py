"""The teacher's outputs on disk: right, resumable, refused when they are of something else, never garbage."""

import json
import shutil

import numpy as np
import pytest
import tiny
import torch

from edgekd import recipe
from edgekd.augment import augment
from edgekd.distill import teacher_cache
from edgekd.errors import BadInput

AUGMENT = recipe.Augment(crop=2, flip=True)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(teacher_cache, "CHUNK", 40)
    monkeypatch.setattr(teacher_cache, "BATCH", 16)


@pytest.fixture
def teacher():
    return tiny.loaded(tiny.network(16, seed=2).eval(), "teacher")


@pytest.fixture
def train():
    return tiny.splits(150).train


def made(teacher, train, folder, settings=None, outputs=("logits",), seed=3):
    settings = settings or recipe.Distill(augment=AUGMENT, views=2)
    key = teacher_cache.key(teacher, train, settings, seed, outputs)
    teacher_cache.build(teacher, train, tiny.TinyTask(), settings, folder, key)
    return key


def expected(teacher, train, view, positions, seed=3):
    images, index = (torch.from_numpy(train.take(positions)[name]) for name in ("image", "index"))
    teacher.module.eval()
    with torch.no_grad():
        return teacher.module(augment(images, index, AUGMENT, seed, view)).numpy()


def test_what_is_read_is_what_the_teacher_gives_on_that_view(teacher, train, tmp_path):
    cache = teacher_cache.open(tmp_path, made(teacher, train, tmp_path))
    positions = np.array([149, 3, 77, 3])
    for view in (0, 1):
        found = cache.read(view, positions)["logits"].numpy()
        np.testing.assert_allclose(found, expected(teacher, train, view, positions), rtol=1e-4, atol=1e-5)
    assert not np.allclose(cache.read(0, positions)["logits"], cache.read(1, positions)["logits"])


def test_layers_are_kept_only_when_wanted(teacher, train, tmp_path):
    made(teacher, train, tmp_path / "logits")
    assert sorted(p.name for p in (tmp_path / "logits").glob("*.npy")) == ["logits.0.npy", "logits.1.npy"]
    made(teacher, train, tmp_path / "layer", outputs=("4",))
    assert sorted(p.name for p in (tmp_path / "layer").glob("*.npy")) == ["4.0.npy", "4.1.npy"]
    cache = teacher_cache.open(tmp_path / "both", made(teacher, train, tmp_path / "both", outputs=("logits", "4")))
    assert cache.shapes() == {"logits": (3,), "4": (16, 3, 3)}
    with torch.no_grad():
        teacher.module.eval()
        images = torch.from_numpy(train.take(np.arange(5))["image"])
        first = teacher.module.net[:5]((augment(images, torch.arange(5), AUGMENT, 3, 1).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5)
    np.testing.assert_allclose(cache.read(1, np.arange(5))["4"], first, rtol=1e-4, atol=1e-5)


def test_without_augmentation_views_and_seed_do_not_matter(teacher, train):
    keys = [teacher_cache.key(teacher, train, recipe.Distill(views=v), s) for v, s in ((1, 0), (3, 0), (1, 9))]
    assert keys[0] == keys[1] == keys[2]
    keys = [teacher_cache.key(teacher, train, recipe.Distill(views=v, augment=AUGMENT), s) for v, s in ((1, 0), (3, 0), (1, 9))]
    assert keys[0] != keys[1] != keys[2] != keys[0]


def interrupted_after(chunks, teacher, train, folder, monkeypatch):
    """Build until so many chunks are done, then fail."""

    class Stop(Exception):
        pass

    def put(*arguments, really=teacher_cache._put, count=[0]):  # noqa: B006 (counts the calls)
        count[0] += 1
        if count[0] > chunks:
            raise Stop
        really(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(teacher_cache, "_put", put)
        with pytest.raises(Stop):
            made(teacher, train, folder)


@pytest.mark.parametrize("chunks", [0, 1, 3, 4, 7])
def test_an_interrupted_build_goes_on(teacher, train, tmp_path, monkeypatch, chunks):
    interrupted_after(chunks, teacher, train, tmp_path / "a", monkeypatch)
    key = teacher_cache.key(teacher, train, recipe.Distill(augment=AUGMENT, views=2), 3)
    with pytest.raises(BadInput, match="incomplete"):
        teacher_cache.open(tmp_path / "a", key)
    calls = []
    monkeypatch.setattr(teacher_cache, "_check", lambda rows, *_: calls.append(len(rows["logits"])))
    made(teacher, train, tmp_path / "a")
    assert len(calls) == 8 - chunks  # 2 views of 150 samples by 40
    made(teacher, train, tmp_path / "b")
    for view in (0, 1):
        name = f"logits.{view}.npy"
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("damage", ["truncate", "remove"])
def test_an_interrupted_build_that_lost_a_file_starts_over(teacher, train, tmp_path, monkeypatch, damage):
    interrupted_after(3, teacher, train, tmp_path / "a", monkeypatch)
    file = tmp_path / "a" / "logits.0.npy"
    file.write_bytes(file.read_bytes()[:-100]) if damage == "truncate" else file.unlink()
    made(teacher, train, tmp_path / "a")
    made(teacher, train, tmp_path / "b")
    assert file.read_bytes() == (tmp_path / "b" / "logits.0.npy").read_bytes()


def truncate(path):
    path.write_bytes(path.read_bytes()[:-4])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, lambda path: path.unlink()])
@pytest.mark.parametrize("name", ["logits.1.npy", "files.json"])
def test_damage_is_seen_and_mended(teacher, train, tmp_path, damage, name):
    key = made(teacher, train, tmp_path)
    good = (tmp_path / "logits.1.npy").read_bytes()
    damage(tmp_path / name)
    with pytest.raises(BadInput, match="incomplete or damaged"):
        teacher_cache.open(tmp_path, key)
    made(teacher, train, tmp_path)
    teacher_cache.open(tmp_path, key)
    assert (tmp_path / "logits.1.npy").read_bytes() == good


def test_a_finished_cache_is_not_computed_again(teacher, train, tmp_path, monkeypatch):
    made(teacher, train, tmp_path)
    monkeypatch.setattr(teacher_cache, "_forward", None)
    made(teacher, train, tmp_path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda a: a | {"seed": 4}, "seed is 3, not 4"),
        (
            lambda a: a | {"settings": recipe.Distill(augment=recipe.Augment(crop=1, flip=True), views=2)},
            "augment.crop is 2, not 1",
        ),
        (lambda a: a | {"settings": recipe.Distill(augment=AUGMENT, views=3)}, "views is 2, not 3"),
        (lambda a: a | {"train": tiny.splits(150, seed=1).train}, "data is train-0-150, not train-1-150"),
        (lambda a: a | {"teacher": tiny.loaded(tiny.network(16, seed=5), "teacher")}, "weights is"),
        (lambda a: a | {"outputs": ("logits", "4")}, "outputs is"),
    ],
)
def test_a_cache_of_something_else_is_refused_and_told(teacher, train, tmp_path, change, named):
    start = {
        "teacher": teacher,
        "train": train,
        "settings": recipe.Distill(augment=AUGMENT, views=2),
        "seed": 3,
        "outputs": ("logits",),
    }
    made(**start, folder=tmp_path)
    with pytest.raises(BadInput) as refused:
        made(**change(start), folder=tmp_path)
    assert named in str(refused.value)


def test_a_teacher_that_gives_nan_is_refused(teacher, train, tmp_path):
    with torch.no_grad():
        teacher.module.net[-1].bias[0] = float("nan")
    with pytest.raises(BadInput, match="NaN or infinity"):
        made(teacher, train, tmp_path)


def test_a_full_disk_is_told_before_it_is_full(teacher, train, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 99, 1))
    with pytest.raises(BadInput, match="GB free"):
        made(teacher, train, tmp_path)


def test_the_key_is_json(teacher, train, tmp_path):
    key = made(teacher, train, tmp_path)
    assert json.loads((tmp_path / "key.json").read_text()) == key
