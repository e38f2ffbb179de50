"""Every kind of source gives the pictures and labels that were put in, and one clear message when something is wrong."""

import gzip
import io
import json
import os

import numpy as np
import pytest
from PIL import Image

from edgekd import data
from edgekd.errors import BadInput
from edgekd.recipe import Data

COUNT = 24
PIXELS = np.random.default_rng(0).integers(0, 256, (COUNT, 6, 5, 3), dtype=np.uint8)
NAMES = ("ant", "bee", "cow")
LABELS = np.arange(COUNT) % 3


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def put_folder(folder):
    for number, (pixels, label) in enumerate(zip(PIXELS, LABELS, strict=True)):
        (folder / NAMES[label]).mkdir(exist_ok=True)
        (folder / NAMES[label] / f"{number:02}.png").write_bytes(png(pixels))
    return folder


def put_rows(folder):
    rows = []
    (folder / "pictures").mkdir()
    for number, (pixels, label) in enumerate(zip(PIXELS, LABELS, strict=True)):
        (folder / "pictures" / f"{number}.png").write_bytes(png(pixels))
        rows.append({"image": f"pictures/{number}.png", "label": NAMES[label]})
    return rows


def put_csv(folder):
    lines = ["image,label", *(f"{row['image']},{row['label']}" for row in put_rows(folder))]
    (folder / "table.csv").write_text("\n".join(lines))
    return folder / "table.csv"


def put_jsonl(folder):
    (folder / "table.jsonl").write_text("\n".join(json.dumps(row) for row in put_rows(folder)))
    return folder / "table.jsonl"


def put_plain_parquet(folder):
    import pyarrow
    from pyarrow import parquet

    table = {"img": [png(p) for p in PIXELS], "class": [NAMES[n] for n in LABELS]}
    parquet.write_table(pyarrow.table(table), folder / "table.parquet")
    return folder / "table.parquet"


def put_pixels_parquet(folder):
    import pyarrow
    from pyarrow import parquet

    table = {"image": [p.tolist() for p in PIXELS], "label": [NAMES[n] for n in LABELS]}
    parquet.write_table(pyarrow.table(table), folder / "table.parquet")
    return folder / "table.parquet"


def put_dataset_parquet(folder, file="table.parquet", names=NAMES):
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names))})
    rows = {"image": [{"bytes": png(p), "path": None} for p in PIXELS], "label": LABELS.tolist()}
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(folder / file))
    return folder / file


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize(
    "put",
    [put_folder, put_csv, put_jsonl, put_plain_parquet, put_pixels_parquet, put_dataset_parquet],
    ids=lambda put: put.__name__,
)
def test_what_goes_in_comes_out(put, tmp_path):
    splits = data.load(Data(source=str(put(tmp_path))), None, 0)
    assert splits.classes == NAMES
    assert splits.image_shape == (6, 5, 3)
    seen = []
    for split in (splits.train, splits.validation, splits.test):
        batch = split.take(np.arange(len(split)))
        for image, label in zip(batch["image"], batch["label"], strict=True):
            number = next(n for n in range(COUNT) if np.array_equal(PIXELS[n], image))
            assert LABELS[number] == label
            seen.append(number)
    assert sorted(seen) == list(range(COUNT))


def test_idx_files_plain_and_compressed(tmp_path):
    images = PIXELS[..., 0]
    for stem, count in (("train", 16), ("t10k", 8)):
        part, labels = images[:count], LABELS[:count].astype(np.uint8)
        header = bytes((0, 0, 8, 3)) + b"".join(n.to_bytes(4, "big") for n in part.shape)
        content = header + np.ascontiguousarray(part).tobytes()
        (tmp_path / f"{stem}-images-idx3-ubyte.gz").write_bytes(gzip.compress(content))
        (tmp_path / f"{stem}-labels-idx1-ubyte").write_bytes(bytes((0, 0, 8, 1)) + count.to_bytes(4, "big") + labels.tobytes())
    splits = data.load(Data(source=str(tmp_path)), None, 0)
    assert splits.image_shape == (6, 5, 1)
    assert splits.classes == ("0", "1", "2")
    assert np.array_equal(splits.test.take(np.arange(8))["image"][..., 0], images[:8])
    assert splits.test.labels.tolist() == LABELS[:8].tolist()
    assert len(splits.train) + len(splits.validation) == 16


def test_a_folder_of_parquet_files_named_by_split(tmp_path):
    put_dataset_parquet(tmp_path, "data/train-00000-of-00002.parquet")
    put_dataset_parquet(tmp_path, "data/train-00001-of-00002.parquet")
    put_dataset_parquet(tmp_path, "data/test-00000-of-00001.parquet")
    splits = data.load(Data(source=str(tmp_path)), None, 0)
    assert len(splits.test) == COUNT
    assert len(splits.train) + len(splits.validation) == 2 * COUNT


def test_damaged_parquet_is_told_by_us_alone(tmp_path, caplog, capfd):
    file = put_plain_parquet(tmp_path)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(BadInput, match=r"table\.parquet: cannot be read as parquet \(.+\)$"):
        data.load(Data(source=str(file)), None, 0)
    assert (caplog.records, *capfd.readouterr()) == ([], "", "")


def test_a_dataset_of_the_hub(monkeypatch, tmp_path):
    import datasets

    put_dataset_parquet(tmp_path)
    rows = datasets.Dataset.from_parquet(str(tmp_path / "table.parquet"))
    asked = []

    def load_dataset(*arguments):
        asked.append(arguments)
        return datasets.DatasetDict({"train": rows, "valid": rows})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    splits = data.load(Data(source="someone/insects", config="small"), None, 0)
    assert asked == [("someone/insects", "small")]
    assert len(splits.validation) == COUNT
    assert splits.classes == NAMES


def broken_csv(folder):
    table = put_csv(folder)
    (folder / "pictures" / "3.png").write_bytes(b"no picture")
    return Data(source=str(table))


def missing_picture(folder):
    table = put_csv(folder)
    (folder / "pictures" / "3.png").unlink()
    return Data(source=str(table))


def wrong_column(folder):
    return Data(source=str(put_csv(folder)), label="lable")


def no_column(folder):
    (folder / "t.csv").write_text("a,b\n1,2\n")
    return Data(source=str(folder / "t.csv"))


def empty_csv(folder):
    (folder / "t.csv").write_text("image,label\n")
    return Data(source=str(folder / "t.csv"))


def not_json(folder):
    (folder / "t.jsonl").write_text('{"image": "a.png", "label": 1}\n{oops\n')
    return Data(source=str(folder / "t.jsonl"))


def one_class(folder):
    put_folder(folder)
    for name in NAMES[1:]:
        for path in (folder / name).iterdir():
            path.unlink()
        (folder / name).rmdir()
    return Data(source=str(folder))


def truncated_picture(folder):
    put_folder(folder)
    path = folder / "ant" / "00.png"
    path.write_bytes(path.read_bytes()[:60])
    return Data(source=str(folder))


def loose_pictures(folder):
    (folder / "a.png").write_bytes(png(PIXELS[0]))
    return Data(source=str(folder))


def empty_class_folder(folder):
    put_folder(folder)
    (folder / "dodo").mkdir()
    return Data(source=str(folder))


def unknown_test_class(folder):
    (folder / "train").mkdir()
    put_folder(folder / "train")
    (folder / "test" / "emu").mkdir(parents=True)
    (folder / "test" / "emu" / "1.png").write_bytes(png(PIXELS[0]))
    return Data(source=str(folder))


def other_size(folder):
    put_folder(folder)
    (folder / "cow" / "23.png").write_bytes(png(PIXELS[0][:4]))
    return Data(source=str(folder))


def not_parquet(folder):
    (folder / "t.parquet").write_bytes(b"PAR1 no")
    return Data(source=str(folder / "t.parquet"))


def unlabelled_split(folder):
    import datasets

    for split, label in (("train", 1), ("test", -1)):
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(NAMES))})
        rows = {"image": [{"bytes": png(p), "path": None} for p in PIXELS], "label": [label] * COUNT}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(str(folder / f"{split}.parquet"))
    return Data(source=str(folder))


def cut_idx(folder):
    (folder / "train-images-idx3-ubyte").write_bytes(bytes((0, 0, 8, 3, 0, 0, 0, 9, 0, 0, 0, 2, 0, 0, 0, 2)) + b"123")
    (folder / "train-labels-idx1-ubyte").write_bytes(bytes((0, 0, 8, 1, 0, 0, 0, 9)) + b"123456789")
    return Data(source=str(folder))


def foreign_idx(folder):
    cut_idx(folder)
    (folder / "train-images-idx3-ubyte").write_bytes(b"\x00\x00\x0d\x03" + bytes(16))
    return Data(source=str(folder))


def idx_without_labels(folder):
    cut_idx(folder)
    (folder / "train-labels-idx1-ubyte").unlink()
    return Data(source=str(folder))


def no_such_split(folder):
    (folder / "train").mkdir()
    put_folder(folder / "train")
    return Data(source=str(folder), test="tset")


def same_split_twice(folder):
    (folder / "train").mkdir()
    put_folder(folder / "train")
    return Data(source=str(folder), train="train", test="train")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (broken_csv, ["table.csv, row 4", "3.png", "unreadable"]),
        (missing_picture, ["table.csv, row 4", "3.png", "no such picture"]),
        (wrong_column, ["`lable`", "did you mean `label`", "image, label"]),
        (no_column, ["columns there: a, b", "data.image"]),
        (empty_csv, ["t.csv", "no rows"]),
        (not_json, ["t.jsonl, line 2", "not JSON"]),
        (one_class, ["one class only"]),
        (truncated_picture, ["00.png", "unreadable"]),
        (loose_pictures, ["1 pictures", "class folders"]),
        (empty_class_folder, ["dodo", "without pictures"]),
        (unknown_test_class, ["`emu`", "test", "no training sample"]),
        (other_size, ["23.png", "4x5", "6x5", "size"]),
        (not_parquet, ["t.parquet", "parquet"]),
        (unlabelled_split, ["label -1", "data.test", "row 0"]),
        (cut_idx, ["train-images-idx3-ubyte", "cut off"]),
        (foreign_idx, ["train-images-idx3-ubyte", "not an IDX file"]),
        (idx_without_labels, ["train-labels-idx1-ubyte"]),
        (no_such_split, ["data.test", "`tset`", "there: train"]),
        (same_split_twice, ["`train` is used twice"]),
        (lambda folder: Data(source=str(folder / "gone.parquet")), ["gone.parquet", "no file"]),
        (lambda folder: Data(source=str(folder / "gone")), ["gone", "does not exist"]),
        (lambda folder: Data(source=str(folder)), ["no pictures"]),
    ],
)
def test_bad_data_is_told_in_one_message(make, words, tmp_path):
    config = make(tmp_path)
    with pytest.raises(BadInput) as caught:
        data.load(config, None, 0)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_hub_that_cannot_be_reached_is_told_at_once(monkeypatch):
    import huggingface_hub.constants

    from edgekd import hub_access

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_access, "_resolves", lambda host: False)
    monkeypatch.setattr(hub_access, "getproxies", dict)
    with pytest.raises(BadInput, match="did you mean `digits`"):
        data.load(Data(source="digit"), None, 0)


def test_the_fingerprint_follows_the_content(tmp_path):
    table = put_csv(tmp_path)
    first = data.fingerprint(Data(source=str(table)))
    assert data.fingerprint(Data(source=str(table))) == first
    assert data.fingerprint(Data(source=str(table), in_memory_gb=0.5)) == first
    assert data.fingerprint(Data(source=str(table), limit=5)) != first
    picture = tmp_path / "pictures" / "0.png"
    picture.write_bytes(png(PIXELS[1]))
    assert data.fingerprint(Data(source=str(table))) != first


@pytest.mark.parametrize("put", [put_csv, put_folder])
def test_fingerprints_do_not_depend_on_where_the_files_lie(put, tmp_path):
    found = []
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        source = Data(source=str(put(tmp_path / place)))
        found.append((data.fingerprint(source), data.load(source, None, 0).train.fingerprint))
    assert found[0] == found[1]


def test_the_same_data_mounted_again_is_the_same_and_only_more_than_is_read_goes_by_its_time(tmp_path, monkeypatch):
    file, other = tmp_path / "pictures.parquet", bytearray(20_000_000)
    file.write_bytes(other)
    first = data.fingerprint(Data(source=str(file)))
    os.utime(file, (1, 1))
    assert data.fingerprint(Data(source=str(file))) == first
    other[10_000_000] = 1
    file.write_bytes(other)
    assert data.fingerprint(Data(source=str(file))) != first
    monkeypatch.setattr("edgekd.data.identity._READ_AT_MOST", 19_999_999)
    large = data.fingerprint(Data(source=str(file)))
    os.utime(file, (1, 1))
    assert data.fingerprint(Data(source=str(file))) != large


def test_a_split_fingerprint_follows_all_that_changes_its_pictures(tmp_path):
    source = Data(source=str(put_csv(tmp_path)))
    made = [
        data.load(source, None, 0),
        data.load(source, (4, 4), 0),
        data.load(source, (4, 4), 0, channels=1),
        data.load(source, (4, 4), 0, crop=0.5),
        data.load(source, (4, 4), 0, interpolation="nearest"),
        data.load(source, None, 1),
        data.load(source.model_copy(update={"limit": 9}), None, 0),
    ]
    assert len({splits.train.fingerprint for splits in made}) == len(made)
    assert data.load(source.model_copy(update={"in_memory_gb": 0}), None, 0).train.fingerprint == made[0].train.fingerprint


def test_the_fingerprint_needs_no_torch():
    import subprocess
    import sys

    program = (
        "import sys; from edgekd import data; from edgekd.recipe import Data; data.fingerprint(Data(source='digits'));"
        "sys.exit(bool({'torch', 'datasets', 'PIL'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


# --- odd names, odd pictures -------------------------------------------------------------------


def test_file_names_need_not_be_utf8(tmp_path):
    put_folder(tmp_path)
    before = data.fingerprint(Data(source=str(tmp_path)))
    odd = os.fsdecode(os.fsencode(tmp_path / "ant") + b"/caf\xe9.png")
    try:
        os.rename(tmp_path / "ant" / "00.png", odd)
    except OSError:
        pytest.skip("this file system takes UTF-8 names alone")
    assert data.fingerprint(Data(source=str(tmp_path))) != before
    splits = data.load(Data(source=str(tmp_path)), None, 0)
    assert sum(len(s) for s in (splits.train, splits.validation, splits.test)) == COUNT
    with open(odd, "wb") as file:
        file.write(b"no picture")
    with pytest.raises(BadInput) as raised:
        data.load(Data(source=str(tmp_path)), None, 0)
    assert "caf\ufffd.png: unreadable" in str(raised.value)
    os.rename(tmp_path / "ant", os.fsdecode(os.fsencode(tmp_path) + b"/\xe9t\xe9"))
    with pytest.raises(BadInput, match="its name is not UTF-8"):
        data.load(Data(source=str(tmp_path)), None, 0)


def test_a_picture_that_cannot_become_gray_or_rgb_is_named(tmp_path):
    put_folder(tmp_path)
    Image.new("LAB", (5, 6)).save(tmp_path / "ant" / "odd.tif")
    with pytest.raises(BadInput, match=r"ant.odd\.tif: cannot become gray .*LAB.*; save it as such"):
        data.load(Data(source=str(tmp_path)), None, 0, channels=1)


def test_pixels_with_fractions_are_refused(tmp_path):
    import pyarrow
    from pyarrow import parquet

    table = {"image": [(p / 255).tolist() for p in PIXELS], "label": [NAMES[n] for n in LABELS]}
    parquet.write_table(pyarrow.table(table), tmp_path / "table.parquet")
    with pytest.raises(BadInput, match="row 0: pixels with fractions"):
        data.load(Data(source=str(tmp_path / "table.parquet")), None, 0)


def test_datasets_shows_no_bars_of_its_own(tmp_path, capfd):
    import datasets

    datasets.enable_progress_bars()
    data.load(Data(source=str(put_plain_parquet(tmp_path))), None, 0)
    assert "Generating" not in capfd.readouterr().err
    assert not datasets.are_progress_bars_disabled()
