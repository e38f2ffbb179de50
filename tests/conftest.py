"""What several tests share: a small network trained on digits for a few seconds, and all that is made from it."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgekd import data
from edgekd.data import PictureSplits
from edgekd.export import onnx
from edgekd.export.graph import Graph, torch_runner
from edgekd.models import LoadedModel
from edgekd.preprocess import Preprocessed
from edgekd.quantize import Job
from edgekd.quantize.calibration import from_task
from edgekd.recipe import Data, Preprocess
from edgekd.targets import Target, load_target
from edgekd.tasks import Evaluation, Task, task_of

LONGEST = ("test_examples.py", "test_compress.py", "test_every_target.py")
"""Files that take minutes: begun first, so that no process waits for another at the end."""


def pytest_configure() -> None:
    """Let Ctrl-C reach the processes that tests start: a shell that runs all this in the background has them ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first; all else stays in its order."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


class Block(nn.Sequential):
    """Convolution, BatchNorm, ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, 1, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.act = nn.ReLU()


class SmallNet(nn.Module):
    """A convolutional classifier with a depthwise layer and a residual connection."""

    def __init__(self, channels: int = 1, width: int = 16) -> None:
        super().__init__()
        self.stem = Block(channels, width)
        self.depthwise = Block(width, width, stride=2, groups=width)
        self.wide = Block(width, 2 * width)
        self.residual = Block(2 * width, 2 * width)
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.wide(self.depthwise(self.stem(x)))
        return self.head((x + self.residual(x)).mean((2, 3)))


@dataclass(frozen=True)
class Trained:
    """A student on digits, evaluated, exported, and the job that its variants are made with."""

    task: Task
    splits: PictureSplits
    model: LoadedModel
    graphs: tuple[Graph, ...]
    student: Evaluation
    source: dict[str, Path]
    job: Job
    target: Target


def train(
    splits: PictureSplits,
    seed: int,
    preprocess: Preprocess,
    epochs: int = 12,
    wrap: Callable[[nn.Module], nn.Module] = lambda net: net,
) -> LoadedModel:
    """Fit a SmallNet, which `wrap` may put into another network, with a plain loop."""
    torch.manual_seed(seed)
    channels = splits.image_shape[2]
    module = Preprocessed(wrap(SmallNet(channels)), preprocess).train()
    sgd = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)
    steps = epochs * -(-len(splits.train) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(sgd, 0.1, total_steps=steps)
    batch = splits.train.take(np.arange(len(splits.train)))
    images, labels = torch.from_numpy(batch["image"]), torch.from_numpy(batch["label"])
    for _ in range(epochs):
        for chosen in torch.randperm(len(labels)).split(64):
            loss = nn.functional.cross_entropy(module(images[chosen]), labels[chosen])
            sgd.zero_grad()
            loss.backward()
            sgd.step()
            schedule.step()
    module.eval()
    return LoadedModel(module, f"py:{__file__}:SmallNet", preprocess, None, sum(p.numel() for p in module.parameters()))


def in_colour(splits: PictureSplits) -> PictureSplits:
    """Give gray digits three channels that differ, so that swapping them matters."""

    def colour(split):
        def pictures(at, gray=split.pictures):
            y = gray(at).astype(np.float32)
            return np.concatenate([y, 255 - y, y * 0.5 + 20], axis=-1).round().astype(np.uint8)

        return dataclasses.replace(split, pictures=pictures, image_shape=(*split.image_shape[:2], 3))

    return PictureSplits(*(colour(s) for s in (splits.train, splits.validation, splits.test)))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A student trained for a few seconds on coloured digits."""
    splits = in_colour(data.load(Data(source="digits"), None, 0))
    model = train(splits, seed=0, preprocess=Preprocess(mean=(0.3, 0.7, 0.25), std=(0.38, 0.36, 0.19)))
    task = task_of("image-classification")
    graphs = tuple(task.graphs(model, splits))
    folder = tmp_path_factory.mktemp("graphs")
    source = {}
    for graph in graphs:
        source[graph.name] = folder / f"{graph.name}.onnx"
        onnx.write(graph, source[graph.name])
    target = load_target("onnxruntime-cpu")
    calibration = partial(from_task, task, splits.train, seed=0)
    job = Job(source, (target,), lambda _, settings: calibration(settings), task, lambda: splits, lambda: model)
    student = task.evaluate(torch_runner(list(graphs)), splits.test)
    return Trained(task, splits, model, graphs, student, source, job, target)


@pytest.fixture(scope="session")
def fit() -> Callable[..., LoadedModel]:
    """Return the function that trained it: (splits, seed, preprocess, epochs, wrap) -> model."""
    return train
