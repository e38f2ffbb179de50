"""Splits: what is cut, kept and repeatable, whatever the source."""

import csv

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgekd import data
from edgekd.data.cut import cut
from edgekd.errors import BadInput
from edgekd.recipe import Data

DIGITS = Data(source="digits")


def taken(split, n=None):
    return split.take(np.arange(n or len(split)))


def test_digits_are_the_published_ones():
    splits = data.load(DIGITS, None, 0)
    assert splits.image_shape == (8, 8, 1)
    assert splits.classes == tuple("0123456789")
    everything = [taken(s) for s in (splits.train, splits.validation, splits.test)]
    counts = np.bincount(np.concatenate([part["label"] for part in everything]))
    # class counts in the UCI documentation of optdigits.tes
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    images = np.concatenate([part["image"] for part in everything])
    assert images.dtype == np.uint8
    assert set(np.unique(images)) <= {round(v * 255 / 16) for v in range(17)}


def test_the_digits_agree_with_scikit_learns_copy():
    sklearn_datasets = pytest.importorskip("sklearn.datasets")
    with np.load(data.sources.digits._FILE) as stored:
        theirs = sklearn_datasets.load_digits()
        assert np.array_equal(np.rint(theirs.images * 255 / 16), stored["images"])
        assert np.array_equal(theirs.target, stored["labels"])


def test_splits_share_no_sample_and_keep_class_proportions(tmp_path):
    images = np.arange(200, dtype=np.uint8).repeat(4).reshape(200, 2, 2)
    labels = np.array([0] * 150 + [1] * 50, np.uint8)
    write_idx(tmp_path, images, labels)
    splits = data.load(Data(source=str(tmp_path), test_fraction=0.2, validation_fraction=0.1), None, 3)
    ids = [taken(s)["image"][:, 0, 0, 0] for s in (splits.train, splits.validation, splits.test)]
    assert sorted(np.concatenate(ids).tolist()) == list(range(200))
    assert [np.bincount(s.labels).tolist() for s in (splits.train, splits.validation, splits.test)] == [
        [105, 35],
        [15, 5],
        [30, 10],
    ]


def test_the_seed_moves_validation_samples_and_never_test_samples():
    first, second, again = (data.load(DIGITS, None, seed) for seed in (0, 1, 0))
    assert np.array_equal(taken(first.test)["image"], taken(second.test)["image"])
    assert not np.array_equal(taken(first.validation)["image"], taken(second.validation)["image"])
    assert np.array_equal(taken(first.validation)["image"], taken(again.validation)["image"])
    assert first.validation.fingerprint == again.validation.fingerprint != second.validation.fingerprint


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=2, max_size=200), st.data())
def test_a_cut_is_a_partition_in_proportion(labels, chooser):
    values = np.array(labels)
    count = chooser.draw(st.integers(1, len(values) - 1))
    chosen, rest = cut(values, count, seed=7)
    assert sorted([*chosen.tolist(), *rest.tolist()]) == list(range(len(values)))
    assert len(chosen) == count
    for value in np.unique(values):
        expected = (values == value).sum() * count / len(values)
        # equal ranks in several classes are told apart by the shuffle: at most one sample off
        assert abs((values[chosen] == value).sum() - expected) <= 1


def test_limit_keeps_a_sample_of_every_class():
    splits = data.load(Data(source="digits", limit=20), None, 0)
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [20, 20, 20]
    assert np.bincount(splits.test.labels).tolist() == [2] * 10


def test_take_gives_the_asked_samples_in_order():
    split = data.load(DIGITS, None, 0).train
    whole, some = taken(split), split.take(np.array([5, 3, 5]))
    assert np.array_equal(some["image"], whole["image"][[5, 3, 5]])
    assert some["index"].tolist() == [5, 3, 5]
    assert some["label"].dtype == some["index"].dtype == np.int64
    assert some["label"].tolist() == split.labels[[5, 3, 5]].tolist()


def test_decoding_later_gives_what_decoding_at_once_gives(tmp_path):
    make_class_folders(tmp_path, sizes=[(20, 14), (9, 30)])
    at_once = data.load(Data(source=str(tmp_path)), (10, 8), 0)
    later = data.load(Data(source=str(tmp_path), in_memory_gb=0), (10, 8), 0)
    assert np.array_equal(taken(at_once.train)["image"], taken(later.train)["image"])
    assert at_once.train.fingerprint != ""


def test_channels_as_stored_or_as_asked():
    assert data.load(DIGITS, None, 0, channels=3).image_shape == (8, 8, 3)
    rgb, gray = data.load(DIGITS, None, 0, channels=3).test, data.load(DIGITS, None, 0).test
    assert np.array_equal(taken(rgb)["image"], taken(gray)["image"].repeat(3, axis=3))


def test_resizing_digits():
    splits = data.load(DIGITS, (16, 12), 0)
    assert splits.image_shape == (16, 12, 1)
    assert taken(splits.train, 4)["image"].shape == (4, 16, 12, 1)


def test_a_usual_split_name_is_used_and_nothing_cut_from_train(tmp_path):
    for split in ("train", "val", "test"):
        make_class_folders(tmp_path / split, seed=len(split))
    splits = data.load(Data(source=str(tmp_path)), None, 0)
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [12, 12, 12]


def test_integer_labels_written_as_text_are_in_numeric_order(tmp_path):
    with (tmp_path / "table.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "label"])
        for number in range(30):
            Image.fromarray(np.full((4, 4), number, np.uint8)).save(tmp_path / f"{number}.png")
            rows.writerow([f"{number}.png", [2, 10, 9][number % 3]])
    splits = data.load(Data(source=str(tmp_path / "table.csv")), None, 0)
    assert splits.classes == ("2", "9", "10")
    batch = taken(splits.train)
    assert batch["label"].tolist() == [{0: 0, 1: 2, 2: 1}[n % 3] for n in batch["image"][:, 0, 0, 0].tolist()]


def test_too_few_samples_to_cut_from(tmp_path):
    write_idx(tmp_path, np.zeros((2, 4, 4), np.uint8), np.array([0, 1], np.uint8))
    with pytest.raises(BadInput, match="too few"):
        data.load(Data(source=str(tmp_path)), None, 0)


def write_idx(folder, images, labels, stem="train"):
    header = bytes((0, 0, 8, 3)) + b"".join(n.to_bytes(4, "big") for n in images.shape)
    (folder / f"{stem}-images-idx3-ubyte").write_bytes(header + images.tobytes())
    (folder / f"{stem}-labels-idx1-ubyte").write_bytes(bytes((0, 0, 8, 1)) + len(labels).to_bytes(4, "big") + labels.tobytes())


def make_class_folders(root, classes=("cat", "dog"), count=6, sizes=((6, 6),), seed=0):
    random = np.random.default_rng(seed)
    for name in classes:
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels = random.integers(0, 256, (*sizes[number % len(sizes)], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
