"""A tiny task, data and networks to fit; run as a script it is a training that can be killed.

python tiny.py FOLDER SETTINGS_JSON [--teacher]: fits, writes FOLDER/result.safetensors and FOLDER/history.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from edgekd import recipe
from edgekd.data import PictureSplit, PictureSplits
from edgekd.distill.trainer import fit
from edgekd.distributed import is_main_process
from edgekd.export.graph import Graph
from edgekd.models import LoadedModel
from edgekd.preprocess import Preprocessed
from edgekd.tasks import Evaluation, Metric

CLASSES = ("a", "b", "c")


class TinyTask:
    """Image classification, as little of it as the trainer needs."""

    name = "tiny"
    metric = Metric("accuracy", higher_is_better=True)
    outputs = ("logits",)
    unit = "images"

    def forward(self, module, batch):
        return {"logits": module(batch["image"])}

    def loss(self, outputs, batch, smoothing=0.0):
        return nn.functional.cross_entropy(outputs["logits"], batch["label"], label_smoothing=smoothing)

    def evaluate(self, run, split, batch_size=256, advance=None):
        taken = split.take(np.arange(len(split)))
        logits = run("model", {"image": taken["image"]})["logits"]
        right = (logits.argmax(1) == taken["label"]).astype(np.float64)
        return Evaluation(float(right.mean()), right, {"logits": logits})

    def validation_loss(self, made, split):
        return float(self.loss({"logits": torch.from_numpy(made.outputs["logits"])}, {"label": torch.from_numpy(split.labels)}))

    def graphs(self, model, splits):
        return [Graph("model", model.module, ("image",), ("logits",), {"image": torch.zeros(1, *splits.image_shape)})]


def network(width: int = 8, norm: bool = True, dropout: float = 0.1, seed: int = 0) -> nn.Module:
    """Two convolutions; `norm` puts BatchNorm between."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width) if norm else nn.Identity(), nn.ReLU(),
        nn.Conv2d(width, width, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Dropout(dropout), nn.Linear(width, len(CLASSES)),
    )  # fmt: skip


def loaded(net: nn.Module, role: str = "student") -> LoadedModel:
    preprocess = recipe.Preprocess(mean=(0.5,), std=(0.5,))
    count = sum(p.numel() for p in net.parameters())
    return LoadedModel(Preprocessed(net, preprocess), f"py:{role}", preprocess, CLASSES, count, role)


def splits(samples: int = 150, seed: int = 0) -> PictureSplits:
    """Stripes: level, upright and slanting, with noise; learnable within an epoch or two."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:8, 0:8]
    patterns = np.stack([(rows // 2) % 2, (columns // 2) % 2, ((rows + columns) // 2) % 2]) * 200.0

    def one(name: str, count: int) -> PictureSplit:
        labels = rng.integers(0, 3, count)
        images = np.clip(patterns[labels] + rng.normal(0, 60, (count, 8, 8)), 0, 255).astype(np.uint8)[..., None]
        return PictureSplit(name, CLASSES, f"{name}-{seed}-{count}", labels.astype(np.int64), (8, 8, 1), lambda i: images[i])

    return PictureSplits(one("train", samples), one("validation", 60), one("test", 60))


def main() -> None:
    folder, options = Path(sys.argv[1]), json.loads(sys.argv[2])
    torch.set_num_threads(1)
    norm, teacher = options.pop("norm", True), options.pop("with_teacher", False)
    dropout = options.pop("dropout", 0.1)
    made = splits(options.pop("samples", 150))
    student = loaded(network(norm=norm, dropout=dropout, seed=1))
    if teacher:
        settings: recipe.Training = recipe.Distill(**options)
    else:
        settings = recipe.Training(**options)
    history = fit(
        student, made, TinyTask(), settings, seed=3, folder=folder,
        teacher=loaded(network(16, seed=2), "teacher") if teacher else None,
    )  # fmt: skip
    if is_main_process():
        save_file(student.module.state_dict(), folder / "result.safetensors")
        (folder / "history.json").write_text(json.dumps(history.to_json()))


if __name__ == "__main__":
    main()
