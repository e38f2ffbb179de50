"""Fit a network: the one training loop behind `edgekd train` and `edgekd distill`.

The same numbers come out whatever interrupts it: all randomness derives from (seed, epoch, step), and a checkpoint holds
everything else. It talks to accelerate's `Accelerator` alone, so it runs on CPU, GPU, and under `accelerate launch`.
"""

from __future__ import annotations

import dataclasses
import math
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.utils import DistributedType, broadcast_object_list

from .. import recipe
from ..errors import BadInput, Diverged
from ..export.graph import torch_runner
from ..progress import bar
from . import batches, checkpoint, keys, memory_format, objectives, teachers
from .history import Epoch, History, warnings_of
from .optimization import Average, learning_rate, optimizer_of
from .samples import Samples
from .trainee import Trainee

if TYPE_CHECKING:
    from ..data import Splits
    from ..models import LoadedModel
    from ..tasks import Task

LOOK_EVERY = 16
"""Steps between two looks at the losses: on a GPU every look waits for it."""
SLOW_READ = 0.005
"""Seconds a batch may take to read before threads read ahead."""


@dataclass
class State:
    """All of a training's progress that is not a tensor. step: within the epoch; sums: of each term over its samples."""

    epoch: int = 0
    step: int = 0
    sums: list[float] = field(default_factory=list)
    samples: int = 0
    seconds: float = 0.0
    all_seconds: float = 0.0
    all_samples: int = 0
    start: tuple[float, float] = (math.nan, math.nan)
    best: tuple[float, float] = (math.nan, math.nan)
    best_epoch: int = 0
    epochs: list[dict[str, Any]] = field(default_factory=list)


def fit(
    student: LoadedModel, splits: Splits, task: Task, settings: recipe.Training, *, seed: int, folder: Path,
    objectives: Sequence[Any] | None = None, teacher: LoadedModel | None = None, cache: Path | None = None,
) -> History:  # fmt: skip
    """Fit the student and leave the weights of its best epoch (by validation) in `student.module`, on the CPU.

    objectives: entries of the recipe; when absent those of the settings, or the task's loss alone.
    teacher: needed by objectives that read it. cache: folder of its outputs with `teacher: cached`; made when not there
    (FOLDER/teacher_cache when absent). folder: checkpoints live in FOLDER/checkpoint, and an interrupted fit() goes on
    from there; delete it once the weights are saved elsewhere.
    Under `accelerate launch` every process calls this; the first one's folders count, and only it writes.
    Raises BadInput for what does not fit together, Diverged for NaN or infinity.
    """
    with ExitStack() as stack:
        return _Fit(stack, student, splits, task, settings, seed, folder, objectives, teacher, cache).run()


class _Fit:
    """What fit() works on; its methods are fit()'s parts."""

    def __init__(
        self, stack: ExitStack, student: LoadedModel, splits: Splits, task: Task, settings: recipe.Training, seed: int,
        folder: Path, entries: Sequence[Any] | None, teacher: LoadedModel | None, cache: Path | None,
    ) -> None:  # fmt: skip
        self.student, self.splits, self.task, self.settings, self.seed = student, splits, task, settings, seed
        self.section = "distill" if isinstance(settings, recipe.Distill) else "train"
        self.path = folder / "checkpoint" / "state.safetensors"
        self.accelerator = _accelerator()
        stack.callback(self.accelerator.free_memory)
        self.processes = self.accelerator.num_processes
        # Plain "cpu": accelerate's is "cpu:0" in a distributed run, which .to() takes for another place and copies to.
        device = self.device = torch.device("cpu") if self.accelerator.device.type == "cpu" else self.accelerator.device
        default = settings.objectives if isinstance(settings, recipe.Distill) else (recipe.TaskLoss(),)
        self.goals = objectives.resolve(tuple(entries or default))
        self.sizes = batches.sizes(len(splits.train), settings.batch_size, self.processes)
        self.samples = Samples(splits.train, settings.augment, seed, device)
        self.teach = teachers.of(
            self.goals, teacher, splits.train, task, settings, seed, cache or folder / "teacher_cache", self.accelerator, device
        )
        stack.callback(self.teach.close)
        example = {name: torch.from_numpy(values) for name, values in splits.train.take(np.arange(2)).items()}
        self.trainee = Trainee(student, task, self.goals, settings.label_smoothing, seed, example, self.teach.example())
        stack.callback(self.trainee.taps.close)
        if self.processes > 1:
            self.accelerator.ddp_handler.find_unused_parameters = self.trainee.leaves_out(example, self.teach.example())
        optimizer = optimizer_of(self.trainee, settings)
        self.model, self.optimizer = self.accelerator.prepare(self.trainee, optimizer)
        self.average = Average(student.module, settings.average) if settings.average else None
        self.judged = dataclasses.replace(student, module=self.average.module) if self.average else student
        self.best: dict[str, torch.Tensor] = {}
        self.state = State()
        self.saved = time.monotonic()
        self.threads = self._reading_threads()

    def run(self) -> History:
        if not self._resume():
            self.state.start = self.state.best = self._validate()
            self._keep_best(0)
            self._save()
        state, epochs = self.state, self.settings.epochs
        while state.epoch < epochs:
            self._epoch()
            terms = {goal.name: total / state.samples for goal, total in zip(self.goals, state.sums, strict=True)}
            loss = sum(goal.config.weight * terms[goal.name] for goal in self.goals)
            self._check_weights()
            score, validation_loss = self._validate()
            if self._better((score, validation_loss)):
                state.best = (score, validation_loss)
                self._keep_best(state.epoch + 1)
            rate = self._rate(len(self.sizes) - 1)
            epoch = Epoch(state.epoch + 1, loss, terms, score, validation_loss, rate, state.seconds)
            state.epochs.append(dataclasses.asdict(epoch))
            state.epoch, state.step, state.sums, state.samples, state.seconds = state.epoch + 1, 0, [], 0, 0.0
            self._save()
        best = broadcast_object_list([self.best])[0] if self.processes > 1 else self.best
        memory_format.contiguous(self.student.module.cpu())
        self.student.module.load_state_dict(best)
        self.student.module.eval()
        return self._history()

    def _epoch(self) -> None:
        """Train from state.step to the end of the epoch."""
        state, settings = self.state, self.settings
        order = batches.order(self.seed, state.epoch, len(self.splits.train))
        state.sums = state.sums or [0.0] * len(self.goals)
        self.trainee.train()
        window: list[tuple[torch.Tensor, int]] = []
        began = time.monotonic()
        look_every = LOOK_EVERY if settings.checkpoint_minutes else 1
        steps = range(state.step, len(self.sizes))
        with bar(f"epoch {state.epoch + 1}/{settings.epochs}", len(self.sizes)) as advance:
            advance(state.step)
            for step, positions, read in self._read(order, steps):
                window.append((self._step(step, positions, read), self.sizes[step]))
                last = step == len(self.sizes) - 1
                if len(window) < look_every and not last:
                    continue
                due = time.monotonic() - self.saved >= 60 * settings.checkpoint_minutes
                due = self._look(window, due) and not last
                now = time.monotonic()
                spent, began = now - began, now
                count = sum(size for _, size in window)
                state.step, state.samples = step + 1, state.samples + count
                state.seconds, state.all_seconds = state.seconds + spent, state.all_seconds + spent
                state.all_samples += count
                loss = sum(goal.config.weight * s for goal, s in zip(self.goals, state.sums, strict=True)) / state.samples
                advance(len(window), f"loss {loss:.4f}, {count / max(spent, 1e-9):.0f} images/s")
                window = []
                if due:
                    self._check_weights()
                    self._save()
                    began = time.monotonic()

    def _step(self, step: int, positions: np.ndarray, read: dict[str, torch.Tensor]) -> torch.Tensor:
        """Move the weights once; return this process's part of the mean of each term."""
        number = self.state.epoch * len(self.sizes) + step
        _reseed(self.seed, number, self.accelerator.process_index, self.device)
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate(step)
        view = self.teach.view(self.state.epoch)
        batch = self.samples.batch(read, view)
        total, terms = self.model(batch, self.teach(view, positions, batch))
        if self.processes > 1:
            # Processes' gradients are averaged with equal weights, whatever their share of an uneven last batch.
            share = len(positions) * self.processes / self.sizes[step]
            total, terms = total * share, terms * share
        self.accelerator.backward(total)
        if self.settings.gradient_clip:
            self.accelerator.clip_grad_norm_(self.trainee.parameters(), self.settings.gradient_clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average:
            self.average.update(number + 1)
        return terms

    def _read(self, order: np.ndarray, steps: range) -> Iterator[tuple[int, np.ndarray, dict[str, torch.Tensor]]]:
        """Yield (step, this process's positions, samples in main memory)."""
        ends = np.cumsum(self.sizes)

        def one(step: int) -> tuple[int, np.ndarray, dict[str, torch.Tensor]]:
            whole = order[ends[step] - self.sizes[step] : ends[step]]
            positions = batches.share(whole, self.accelerator.process_index, self.processes)
            return step, positions, self.samples.read(positions)

        return batches.ahead(one, steps, self.threads)

    def _look(self, window: list[tuple[torch.Tensor, int]], due: bool) -> bool:
        """Add the latest steps' losses up, one by one, so that it does not matter when this is called. Raises Diverged.

        Returns whether a checkpoint is due, by the first process's clock.
        """
        seen = torch.stack([terms for terms, _ in window]).double()
        if self.processes > 1:
            clock = torch.full((1,), float(due and self.accelerator.is_main_process), dtype=seen.dtype, device=seen.device)
            gathered = self.accelerator.reduce(torch.cat([seen.flatten(), clock]), reduction="mean")
            seen, due = gathered[:-1].reshape(seen.shape), bool(gathered[-1] > 0)
        first = self.state.step
        for offset, (values, (_, size)) in enumerate(zip(seen.cpu().tolist(), window, strict=True)):
            for number, value in enumerate(values):
                if not math.isfinite(value):
                    self._diverged(f"objective `{self.goals[number].name}` is {value}", first + offset)
                self.state.sums[number] += value * size
        return due

    def _check_weights(self) -> None:
        if not all(bool(torch.isfinite(p).all()) for p in self.trainee.parameters()):
            self._diverged("a weight is NaN or infinite", self.state.step - 1)

    def _diverged(self, what: str, step: int) -> None:
        clip = "" if self.settings.gradient_clip else f", set {self.section}.gradient_clip: 1.0"
        raise Diverged(
            f"training diverged in epoch {self.state.epoch + 1}, step {step + 1} of {len(self.sizes)}: {what}. Lower "
            f"{self.section}.learning_rate (now {self.settings.learning_rate:g}){clip}, or raise {self.section}.warmup"
        )

    def _validate(self) -> tuple[float, float]:
        """Return score and loss on the validation split, computed by the first process."""
        found = [0.0, 0.0]
        if self.accelerator.is_main_process:
            runner = torch_runner(self.task.graphs(self.judged, self.splits), str(self.device))
            split = self.splits.validation
            with bar("validation", len(split)) as advance:
                made = self.task.evaluate(runner, split, advance=advance)
            outputs = {name: torch.from_numpy(values) for name, values in made.outputs.items()}
            loss = self.task.loss(outputs, {"label": torch.from_numpy(split.labels)})
            found = [float(made.score), float(loss)]
        score, loss_value = broadcast_object_list(found) if self.processes > 1 else found
        if not math.isfinite(loss_value):
            self._diverged(f"the validation loss is {loss_value}", len(self.sizes) - 1)
        return score, loss_value

    def _better(self, now: tuple[float, float]) -> bool:
        """Compare (score, loss) with the best so far: a better score, or the same with a lower loss."""
        sign = 1 if self.task.metric.higher_is_better else -1
        return (sign * now[0], -now[1]) > (sign * self.state.best[0], -self.state.best[1])

    def _keep_best(self, epoch: int) -> None:
        self.state.best_epoch = epoch
        self.best = {name: tensor.detach().cpu().clone() for name, tensor in self.judged.module.state_dict().items()}

    def _rate(self, step: int) -> float:
        steps = len(self.sizes)
        return learning_rate(self.settings, self.state.epoch * steps + step, self.settings.epochs * steps)

    def _reading_threads(self) -> int:
        """Return 0 when batches come from memory, else a thread a core."""
        positions = np.arange(self.sizes[0] // self.processes)
        self.samples.read(positions[:1])
        start = time.perf_counter()
        self.samples.read(positions)
        return batches.decoding_threads() if time.perf_counter() - start > SLOW_READ else 0

    def _key(self) -> dict[str, Any]:
        """What a checkpoint belongs to."""
        return keys.plain(
            {
                "settings": self.settings.model_dump(exclude={"checkpoint_minutes"}),
                "objectives": [goal.config.model_dump() for goal in self.goals],
                "seed": self.seed,
                "data": self.splits.train.fingerprint,
                "student": {name: list(t.shape) for name, t in self.trainee.state_dict().items()},
            }
        )

    def _save(self) -> None:
        if self.accelerator.is_main_process:
            tensors = {
                **checkpoint.put("model", self.trainee.state_dict()),
                **checkpoint.put("optimizer", checkpoint.optimizer_tensors(self.optimizer.optimizer)),
                **checkpoint.put("average", self.average.module.state_dict() if self.average else {}),
                **checkpoint.put("best", self.best),
            }
            scaler = self.accelerator.scaler.state_dict() if self.accelerator.scaler else None
            checkpoint.write(self.path, tensors, {"key": self._key(), "scaler": scaler, **dataclasses.asdict(self.state)})
        self.saved = time.monotonic()

    def _resume(self) -> bool:
        """Go back to the last checkpoint; return whether there was one. The first process reads it for all."""
        found = checkpoint.read(self.path) if self.accelerator.is_main_process else None
        if self.processes > 1:
            found = broadcast_object_list([found])[0]
        if found is None:
            return False
        tensors, state = found
        if lines := keys.differences(state.pop("key"), self._key()):
            raise BadInput(
                f"the checkpoint {self.path} belongs to another training: {'; '.join(lines)}. "
                "Delete it to start over, or go back to those settings"
            )
        self.trainee.load_state_dict(checkpoint.take("model", tensors))
        checkpoint.load_optimizer(self.optimizer.optimizer, checkpoint.take("optimizer", tensors))
        if self.average:
            self.average.module.load_state_dict(checkpoint.take("average", tensors))
        self.best = checkpoint.take("best", tensors)
        if (scaler := state.pop("scaler")) and self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(scaler)
        self.state = State(**{**state, "start": tuple(state["start"]), "best": tuple(state["best"])})
        return True

    def _history(self) -> History:
        state = self.state
        history = History(
            initial_validation=state.start[0],
            initial_validation_loss=state.start[1],
            epochs=[Epoch(**epoch) for epoch in state.epochs],
            best_epoch=state.best_epoch,
            best_validation=state.best[0],
            images_per_second=state.all_samples / max(state.all_seconds, 1e-9),
            steps=len(self.sizes) * len(state.epochs),
            processes=self.processes,
        )
        return dataclasses.replace(history, warnings=warnings_of(history, self.task.metric.name, self.section))


def _accelerator() -> Accelerator:
    # A long timeout: the others wait while the first one caches the teacher.
    accelerator = Accelerator(
        kwargs_handlers=[DistributedDataParallelKwargs(), InitProcessGroupKwargs(timeout=timedelta(days=1))]
    )
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise BadInput(
            f"accelerate is configured for {accelerator.distributed_type.value}, which splits a model over devices; students "
            "here fit on one: choose MULTI_GPU or MULTI_CPU in `accelerate config`"
        )
    return accelerator


def _reseed(seed: int, step: int, process: int, device: torch.device) -> None:
    """Make dropout and the like depend on the step alone, so that where a run was interrupted does not matter."""
    value = int(np.random.SeedSequence([seed, step, process]).generate_state(1, np.uint64)[0])
    # Not torch.manual_seed(): it costs more than all of this together, every step.
    torch.default_generator.manual_seed(value)
    if device.type == "cuda":
        torch.cuda.manual_seed(value)
    random.seed(value)
    np.random.seed(value % 2**32)
