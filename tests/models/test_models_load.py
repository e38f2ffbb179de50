"""Every kind of reference becomes a network with the right weights, preprocessing and classes, or one clear message."""

import json
import struct
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from edgekd import models
from edgekd._torchvision import ensure
from edgekd.errors import BadInput
from edgekd.models import weights
from edgekd.preprocess import Preprocessed
from edgekd.recipe import Model, Preprocess

ensure()

CODE = """
import torch
from torch import nn

def net(num_classes=4, in_channels=1, width=3):
    return nn.Sequential(nn.Conv2d(in_channels, width, 3), nn.BatchNorm2d(width), nn.Flatten(), nn.LazyLinear(num_classes))

def plain(width=2):
    return nn.Sequential(nn.Flatten(), nn.Linear(75, width))

def wants(something):
    return nn.Identity()

def broken(num_classes):
    raise RuntimeError("no such luck")

def nothing():
    return 3
"""
SHAPE = (5, 5, 3)
PICTURES = torch.randint(0, 256, (4, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def code(tmp_path):
    (tmp_path / "nets.py").write_text(CODE.replace("nn.LazyLinear(", "nn.Linear(9 * width, "))
    return tmp_path / "nets.py"


def load(reference, role="student", need_weights=False, num_classes=4, shape=SHAPE, shared=None, seed=0, **config):
    return models.load(
        Model(model=reference, **config),
        role=role,
        num_classes=num_classes,
        image_shape=shape,
        shared=shared,
        seed=seed,
        need_weights=need_weights,
    )


def message(*arguments, **options):
    with pytest.raises(BadInput) as caught:
        load(*arguments, **options)
    return str(caught.value)


def test_a_function_gets_what_its_signature_takes(code):
    made = load(f"py:{code}:net", arguments={"width": 5})
    assert made.module(PICTURES).shape == (4, 4)
    assert made.module.net[0].weight.shape == (5, 3, 3, 3)
    assert made.parameters == (5 * 3 * 9 + 5) + (5 + 5) + (45 * 4 + 4)
    assert load(f"py:{code}:plain").module(PICTURES).shape == (4, 2)
    assert not made.module.training


def test_the_seed_decides_the_first_weights_and_leaves_the_global_one_alone(code):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, again, other = (load(f"py:{code}:net", seed=seed).module.net[0].weight for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_whose_preprocessing_holds(code):
    own, shared = Preprocess(mean=(0.1,), std=(0.2,)), Preprocess(mean=(0.3,), std=(0.4,))
    assert load(f"py:{code}:net", shared=shared, preprocess=own).preprocess == own
    assert load(f"py:{code}:net", shared=shared).preprocess == shared
    assert load(f"py:{code}:net").preprocess == Preprocess()


@pytest.mark.parametrize(
    ("reference", "options", "words"),
    [
        ("py:{code}:nett", {}, ["`nett`", "did you mean `net`", "plain"]),
        ("py:{code}", {}, ["py:FILE.py:FUNCTION"]),
        ("py:{folder}/gone.py:net", {}, ["no file", "gone.py"]),
        ("py:{code}:net", {"arguments": {"widht": 3}}, ["`widht`", "did you mean `width`"]),
        ("py:{code}:wants", {}, ["something", "arguments"]),
        ("py:{code}:broken", {}, ["nets.py, line 15", "RuntimeError", "no such luck"]),
        ("py:{code}:nothing", {}, ["int", "torch.nn.Module"]),
        ("py:{code}:net", {"role": "teacher", "need_weights": True}, ["teacher", "no trained weights", "edgekd train"]),
        ("tim:resnet18", {}, ["did you mean `timm`"]),
        ("{folder}/run", {}, ["run folder"]),
        ("hf:{folder}", {}, ["no config.json"]),
    ],
)
def test_a_wrong_reference_is_told(reference, options, words, code):
    told = message(reference.format(code=code, folder=code.parent), **options)
    for word in words:
        assert word in told


def test_a_syntax_error_names_its_line(tmp_path):
    (tmp_path / "bad.py").write_text("x = 1\ndef net(:\n")
    assert "bad.py, line 2" in message(f"py:{tmp_path / 'bad.py'}:net")


def test_a_file_may_import_its_neighbour(tmp_path):
    (tmp_path / "neighbour_of_nets.py").write_text("from torch import nn\nclass Net(nn.Flatten): pass\n")
    (tmp_path / "nets.py").write_text("from neighbour_of_nets import Net\ndef net(): return Net()\n")
    assert load(f"py:{tmp_path / 'nets.py'}:net").module(PICTURES).shape == (4, 75)


def test_save_and_load_as_a_run_folder(code, tmp_path):
    chosen = Preprocess(mean=(0.5,), std=(0.3,))
    made = load(f"py:{code}:net", arguments={"width": 6}, preprocess=chosen, classes=("a", "b", "c", "d"), seed=3)
    models.save(made, tmp_path / "run" / "student")
    card = json.loads((tmp_path / "run" / "student" / "model.json").read_text())
    assert card["arguments"] == {"num_classes": 4, "in_channels": 3, "width": 6}
    assert card["parameters"] == made.parameters
    for place in ("run", "run/student"):
        again = load(str(tmp_path / place), role="teacher", need_weights=True)
        assert torch.equal(again.module(PICTURES), made.module(PICTURES))
        assert (again.preprocess, again.classes) == (chosen, ("a", "b", "c", "d"))


def test_a_run_folder_keeps_the_code_that_made_it(code, tmp_path):
    made = load(f"py:{code}:net", seed=3)
    models.save(made, tmp_path / "run")
    code.write_text("from torch import nn\ndef net(num_classes, in_channels): return nn.Linear(1, 1)\n")
    assert torch.equal(load(str(tmp_path / "run")).module(PICTURES), made.module(PICTURES))
    code.unlink()
    assert torch.equal(load(str(tmp_path / "run")).module(PICTURES), made.module(PICTURES))


def test_saving_writes_the_same_bytes_each_time(code, tmp_path):
    for name in ("one", "two"):
        models.save(load(f"py:{code}:net"), tmp_path / name)
    for file in ("model.safetensors", "model.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_restore_leaves_the_model_it_is_like_alone(code, tmp_path):
    first, second = load(f"py:{code}:net", seed=0), load(f"py:{code}:net", seed=1)
    models.save(first, tmp_path)
    before = second.module(PICTURES)
    restored = models.restore(tmp_path, like=second)
    assert torch.equal(restored.module(PICTURES), first.module(PICTURES))
    assert torch.equal(second.module(PICTURES), before)


def test_a_damaged_card_is_told(code, tmp_path):
    models.save(load(f"py:{code}:net"), tmp_path)
    (tmp_path / "model.json").write_text("{")
    assert "model.json: damaged" in message(str(tmp_path))
    (tmp_path / "model.json").write_text("{}")
    assert "model.json: damaged" in message(str(tmp_path))


# --- timm and transformers ---------------------------------------------------------------------


def test_timm_network_for_other_channels_and_classes():
    pytest.importorskip("timm")
    small = {"preprocess": Preprocess(size=32), "shape": (32, 32, 1)}
    made = load("timm:test_resnet", **small)
    assert made.module(torch.zeros(2, 32, 32, 1, dtype=torch.uint8)).shape == (2, 4)
    vit = load("timm:test_vit", preprocess=Preprocess(size=48), shape=(48, 48, 3))
    assert vit.module(torch.zeros(2, 48, 48, 3, dtype=torch.uint8)).shape == (2, 4)


def test_timm_brings_its_preprocessing():
    timm = pytest.importorskip("timm")
    config = timm.get_pretrained_cfg("resnet18.a1_in1k")
    found = models.preprocess_of(Model(model="timm:resnet18.a1_in1k"), None)
    assert found.mean == tuple(config.mean) == (0.485, 0.456, 0.406)
    assert found.size == (224, 224)
    assert found.crop == config.crop_pct


def test_a_timm_run_folder_comes_back(tmp_path):
    pytest.importorskip("timm")
    made = load("timm:test_resnet", preprocess=Preprocess(size=32), shape=(32, 32, 1))
    models.save(made, tmp_path)
    again = load(str(tmp_path), shape=(32, 32, 3), num_classes=9)  # the card says how it was made, not the data
    pictures = torch.randint(0, 256, (2, 32, 32, 1), dtype=torch.uint8)
    assert torch.equal(again.module(pictures), made.module(pictures))


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("timm:resnt18", ["did you mean `resnet18`"]),
        ("timm:resnet18.nosuch", ["`nosuch`", "resnet18.a1_in1k"]),
    ],
)
def test_a_wrong_timm_name_is_told(reference, words):
    pytest.importorskip("timm")
    told = message(reference)
    for word in words:
        assert word in told


def test_timm_weights_that_cannot_be_had_are_told(monkeypatch, tmp_path):
    timm = pytest.importorskip("timm")

    def offline(name, pretrained=False, **_):
        assert pretrained
        raise OSError("cannot reach the hub")

    monkeypatch.setattr(timm, "create_model", offline)
    monkeypatch.setattr("edgekd.models.timm_model.prefer_cache_when_unreachable", lambda: None)
    told = message("timm:resnet18", role="teacher", need_weights=True)
    assert "cannot reach the hub" in told
    assert "weights: FILE" in told


def hf_folder(folder, classes=("ant", "bee", "cow", "dodo"), weights=True):
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        embedding_size=4,
        hidden_sizes=[4, 8],
        depths=[1, 1],
        layer_type="basic",
        num_labels=len(classes),
        id2label=dict(enumerate(classes)),
        label2id={name: number for number, name in enumerate(classes)},
    )
    torch.manual_seed(0)
    net = transformers.AutoModelForImageClassification.from_config(config).eval()
    net.save_pretrained(folder) if weights else config.save_pretrained(folder)
    processor = {
        "image_processor_type": "ConvNextImageProcessor",
        "size": {"shortest_edge": 32},
        "crop_pct": 0.875,
        "do_normalize": True,
        "do_rescale": True,
        "rescale_factor": 1 / 127.5,
        "image_mean": [1.0, 0.9, 0.8],
        "image_std": [0.5, 0.6, 0.7],
        "resample": 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return net


def test_transformers_folder(tmp_path):
    net = hf_folder(tmp_path)
    made = load(f"hf:{tmp_path}", role="teacher", need_weights=True, shape=(32, 32, 3))
    assert made.classes == ("ant", "bee", "cow", "dodo")
    assert (made.preprocess.size, made.preprocess.crop, made.preprocess.interpolation) == ((32, 32), 0.875, "bicubic")
    pictures = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    values = pictures.permute(0, 3, 1, 2) / 127.5  # what its processor does: times rescale_factor, minus mean, over std
    values = (values - torch.tensor([1.0, 0.9, 0.8]).view(3, 1, 1)) / torch.tensor([0.5, 0.6, 0.7]).view(3, 1, 1)
    with torch.no_grad():
        assert torch.allclose(made.module(pictures), net(values).logits, atol=1e-5)


def test_transformers_student_for_other_classes_starts_a_new_classifier(tmp_path):
    net = hf_folder(tmp_path)
    made = load(f"hf:{tmp_path}", num_classes=7, shape=(32, 32, 3))
    assert made.module(torch.zeros(1, 32, 32, 3, dtype=torch.uint8)).shape == (1, 7)
    assert made.classes is None
    ours, theirs = made.module.net.model.state_dict(), net.state_dict()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours if "classifier" not in k)


def test_transformers_folder_without_weights(tmp_path):
    hf_folder(tmp_path, weights=False)
    assert load(f"hf:{tmp_path}", shape=(32, 32, 3)).module.net is not None
    assert "no trained weights" in message(f"hf:{tmp_path}", role="teacher", need_weights=True, shape=(32, 32, 3))


def test_a_transformers_run_folder_comes_back(tmp_path):
    (tmp_path / "hf").mkdir()
    hf_folder(tmp_path / "hf")
    made = load(f"hf:{tmp_path / 'hf'}", num_classes=7, shape=(32, 32, 3))
    models.save(made, tmp_path / "run")
    (tmp_path / "hf" / "config.json").unlink()
    again = load(str(tmp_path / "run"), num_classes=7, shape=(32, 32, 3), need_weights=True)
    pictures = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    assert torch.equal(again.module(pictures), made.module(pictures))
    assert again.preprocess == made.preprocess


# --- weights -----------------------------------------------------------------------------------


@pytest.fixture
def trained(code):
    return load(f"py:{code}:net", seed=9)


def store(path, content):
    save_file(content, path) if path.suffix == ".safetensors" else torch.save(content, path)
    return path


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "model.", "net."])
def test_weights_with_what_wrappers_put_before_their_names(trained, code, tmp_path, prefix, name):
    state = {prefix + k: v for k, v in trained.module.net.state_dict().items()}
    made = load(f"py:{code}:net", weights=store(tmp_path / name, state), need_weights=True)
    assert torch.equal(made.module(PICTURES), trained.module(PICTURES))


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_weights_inside_a_checkpoint(trained, code, tmp_path, key):
    file = store(tmp_path / "w.pt", {key: trained.module.net.state_dict(), "epoch": 3})
    assert torch.equal(load(f"py:{code}:net", weights=file).module(PICTURES), trained.module(PICTURES))


def test_a_network_whose_own_names_start_like_a_wrapper_keeps_them(tmp_path):
    (tmp_path / "nets.py").write_text(
        "from torch import nn\nclass Net(nn.Module):\n"
        "  def __init__(self):\n    super().__init__(); self.model = nn.Linear(75, 4)\n"
        "  def forward(self, x): return self.model(x.flatten(1))\n"
    )
    made = load(f"py:{tmp_path / 'nets.py'}:Net")
    file = store(tmp_path / "w.safetensors", {k: v + 1 for k, v in made.module.net.state_dict().items()})
    again = load(f"py:{tmp_path / 'nets.py'}:Net", weights=file)
    assert torch.equal(again.module.net.model.weight, made.module.net.model.weight + 1)


class Evil:
    def __reduce__(self):
        return (print, ("code ran",))


def half(path, state):
    store(path, state)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def without(state, name):
    return {k: v for k, v in state.items() if k != name}


@pytest.mark.parametrize(
    ("name", "write", "words"),
    [
        ("w.safetensors", half, ["damaged"]),
        ("w.pt", half, ["damaged"]),
        ("w.safetensors", lambda path, state: path.write_bytes(b""), ["damaged"]),
        ("w.pt", lambda path, state: path.write_bytes(b""), ["damaged"]),
        ("w.pt", lambda path, state: path.write_bytes(b"hello" * 99), ["damaged"]),
        ("w.pt", lambda path, state: torch.save(Evil(), path), ["run code"]),
        ("w.pt", lambda path, state: torch.save(nn.Linear(2, 2), path), ["run code"]),
        ("w.pt", lambda path, state: torch.save([1, 2], path), ["no state dict"]),
        ("w.pt", lambda path, state: torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path), ["TorchScript"]),
        ("w.safetensors", lambda path, state: store(path, without(state, "0.bias")), ["missing 0.bias"]),
        ("w.safetensors", lambda path, state: store(path, {**state, "extra": torch.ones(1)}), ["unexpected extra"]),
        ("w.safetensors", lambda path, state: store(path, {**state, "3.bias": torch.ones(9)}), ["3.bias", "(9,)", "(4,)"]),
        ("w.safetensors", lambda path, state: store(path, {**state, "3.bias": torch.full((4,), torch.nan)}), ["NaN", "3.bias"]),
        ("w.safetensors", lambda path, state: None, ["no weights file"]),
    ],
)
def test_weights_that_cannot_be_used_are_told(trained, code, tmp_path, name, write, words, capfd):
    write(tmp_path / name, trained.module.net.state_dict())
    told = message(f"py:{code}:net", weights=tmp_path / name)
    assert name in told
    for word in words:
        assert word in told
    assert "code ran" not in capfd.readouterr().out


@pytest.mark.parametrize("layout", ["zip", "legacy", "safetensors"])
def test_whatever_is_wrong_with_the_bytes_it_is_one_message(layout, tmp_path):
    state, file = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.zeros(2)}, tmp_path / "w.pt"
    if layout == "safetensors":
        file = store(tmp_path / "w.safetensors", state)
    else:
        torch.save(state, file, _use_new_zipfile_serialization=layout == "zip")
    whole, random, told = file.read_bytes(), np.random.default_rng(0), []
    for _ in range(150):
        damaged = bytearray(whole)
        for place in random.integers(0, len(whole), random.integers(1, 6)):
            damaged[place] = random.integers(256)
        file.write_bytes(damaged[: random.integers(len(damaged) // 2, len(damaged) + 1)])
        try:
            weights.read(file)
        except BadInput as error:
            told.append(str(error))
    assert told
    assert all(str(file) in text for text in told)


@pytest.mark.parametrize("entry", [b"no entry at all", b"PK\x01\x02" + b"\x63" * 24], ids=["damaged", "version 9.9"])
def test_an_archive_that_cannot_be_listed_is_told(entry, tmp_path):
    file = tmp_path / "w.pt"
    end = b"PK\x05\x06" + struct.pack("<4H2LH", 0, 0, 1, 1, 46, 0, 0)
    file.write_bytes(entry.ljust(46, b"\0") + end)
    assert zipfile.is_zipfile(file)
    with pytest.raises(BadInput, match=r"w\.pt: damaged"):
        weights.read(file)


@pytest.mark.parametrize("error", [AssertionError(), UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"), zipfile.BadZipFile("bad")])
def test_whatever_torch_raises_is_told(error, tmp_path, monkeypatch):
    def fail(*args, **options):
        raise error

    file = store(tmp_path / "w.pt", {"a": torch.zeros(1)})
    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(BadInput, match=r"w\.pt: damaged"):
        weights.read(file)


def test_another_pickle_protocol_is_one_message_without_a_warning(tmp_path, recwarn):
    torch.save({"a": torch.ones(2)}, tmp_path / "w.pt", pickle_protocol=4)
    with pytest.raises(BadInput, match="another pickle protocol"):
        weights.read(tmp_path / "w.pt")
    assert not recwarn.list


def test_tensors_that_are_no_weights_are_told(code, tmp_path, trained):
    state = trained.module.net.state_dict()
    name = next(k for k, v in state.items() if v.ndim == 2)
    file = store(tmp_path / "w.pt", {**state, name: state[name].to_sparse()})
    assert "cannot be used as weights" in message(f"py:{code}:net", weights=file)


def test_old_weights_without_batch_counters(trained, code, tmp_path):
    file = store(tmp_path / "w.pt", without(trained.module.net.state_dict(), "1.num_batches_tracked"))
    assert torch.equal(load(f"py:{code}:net", weights=file).module(PICTURES), trained.module(PICTURES))


def test_tied_weights_can_be_saved(tmp_path):
    (tmp_path / "nets.py").write_text(
        "from torch import nn\ndef net():\n  a, b = nn.Linear(75, 75), nn.Linear(75, 75)\n"
        "  b.weight = a.weight\n  return nn.Sequential(nn.Flatten(), a, b)\n"
    )
    made = load(f"py:{tmp_path / 'nets.py'}:net")
    models.save(made, tmp_path / "run")
    assert set(load_file(tmp_path / "run" / "model.safetensors")) == {"1.weight", "1.bias", "2.weight", "2.bias"}
    assert isinstance(made.module, Preprocessed)
    assert torch.equal(load(str(tmp_path / "run")).module(PICTURES), made.module(PICTURES))
