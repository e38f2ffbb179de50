"""Fit a network: the one training loop behind `edgekd train` and `edgekd distill`.

The same numbers come out whatever interrupts it: all randomness derives from (seed, epoch, step), and a checkpoint holds
everything else. It talks to accelerate's `Accelerator` alone, so it runs on CPU, GPU, and under `accelerate launch`.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list

from .. import recipe
from ..errors import BadInput, Diverged
from ..export.graph import torch_runner
from ..progress import bar
from ..text import tokenizer
from . import allocator, batches, checkpoint, keys, memory_format, objectives, processes, teachers
from .history import Epoch, History
from .optimization import Average, learning_rate, optimizer_of
from .samples import Samples
from .state import State
from .trainee import Trainee

if TYPE_CHECKING:
    from ..data import Splits
    from ..models import LoadedModel
    from ..tasks import Task

LOOK_EVERY = 16
"""Steps between two looks at the losses: on a GPU every look waits for it."""
SLOW_READ = 0.005
"""Seconds a batch may take to read before threads read ahead."""


def fit(
    student: LoadedModel, splits: Splits, task: Task, settings: recipe.Training, *, seed: int, folder: Path,
    objectives: Sequence[Any] | None = None, teacher: LoadedModel | None = None, cache: Path | None = None,
    section: str | None = None,
) -> History:  # fmt: skip
    """Fit the student and leave the weights of its best epoch (by validation) in `student.module`, on the CPU.

    objectives: entries of the recipe; when absent those of the settings, or the task's loss alone.
    teacher: needed by objectives that read it. cache: folder of its outputs with `teacher: cached`; made when not there
    (FOLDER/teacher_cache when absent). folder: checkpoints live in FOLDER/checkpoint, and an interrupted fit() goes on
    from there; delete it once the weights are saved elsewhere.
    section: where the settings stand in the recipe, for messages; when absent `distill` or `train`, by their kind.
    Under `accelerate launch` every process calls this; the first one's folders count, and only it writes.
    Raises BadInput for what does not fit together, Diverged for NaN or infinity.
    """
    with ExitStack() as stack:
        return _Fit(stack, student, splits, task, settings, seed, folder, objectives, teacher, cache, section).run()


class _Fit:
    """What fit() works on; its methods are fit()'s parts."""

    def __init__(
        self, stack: ExitStack, student: LoadedModel, splits: Splits, task: Task, settings: recipe.Training, seed: int,
        folder: Path, entries: Sequence[Any] | None, teacher: LoadedModel | None, cache: Path | None, section: str | None,
    ) -> None:  # fmt: skip
        self.student, self.splits, self.task, self.settings, self.seed = student, splits, task, settings, seed
        self.section = section or ("distill" if isinstance(settings, recipe.Distill) else "train")
        self.path = folder / "checkpoint" / "state.safetensors"
        self.accelerator = processes.accelerator()
        self.processes = self.accelerator.num_processes
        device = self.device = processes.device_of(self.accelerator)
        stack.enter_context(allocator.kept(device.type == "cpu"))
        stack.callback(self.accelerator.free_memory)
        default = settings.objectives if isinstance(settings, recipe.Distill) else (recipe.TaskLoss(),)
        self.goals = objectives.resolve(tuple(entries or default))
        self.sizes = batches.sizes(len(splits.train), settings.batch_size, self.processes)
        self.samples = Samples(splits.train, settings.augment, seed, device)
        self.teach = teachers.of(
            self.goals, teacher, splits.train, task, settings, seed, cache or folder / "teacher_cache", self.accelerator, device
        )
        stack.callback(self.teach.close)
        reads = any(goal.needs_teacher for goal in self.goals)
        self.teacher = keys.weights_hash(teacher.module) if teacher and reads else None
        example = {name: torch.from_numpy(values) for name, values in splits.train.take(np.arange(2)).items()}
        self.trainee = Trainee(student, task, self.goals, settings, seed, example, self.teach.example())
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
        self.draw = _drawing(task, settings)

    def run(self) -> History:
        state = self.state
        if not self._resume():
            start = self._validate()
            if not math.isfinite(start[1]):
                raise BadInput(
                    f"{self.student.reference} gives NaN or infinity before any training: check its weights and preprocessing"
                )
            state.start = state.best = start
            self._keep_best(0)
            self._save()
        steps, epochs = len(self.sizes), self.settings.epochs
        with bar(self.section, steps * epochs) as advance:
            advance(steps * state.epoch + state.step)
            while state.epoch < epochs:
                self._epoch(advance)
                self._end_epoch()
        best = broadcast_object_list([self.best])[0] if self.processes > 1 else self.best
        memory_format.contiguous(self.student.module.cpu())
        self.student.module.load_state_dict(best)
        self.student.module.eval()
        return state.history(steps, self.processes, self.task.metric.name, self.section)

    def _epoch(self, advance: Callable[..., Any]) -> None:
        """Train from state.step to the end of the epoch."""
        state, settings = self.state, self.settings
        train = self.splits.train
        order = batches.order(self.seed, state.epoch, len(train), train.lengths, settings.batch_size)
        state.sums = state.sums or [0.0] * len(self.goals)
        self.trainee.train()
        window: list[tuple[torch.Tensor, int]] = []
        look_every = LOOK_EVERY if settings.checkpoint_minutes else 1
        began = time.monotonic()
        for step, positions, read in self._read(order, range(state.step, len(self.sizes))):
            window.append((self._step(step, positions, read), self.sizes[step]))
            last = step == len(self.sizes) - 1
            if len(window) < look_every and not last:
                continue
            due = self._look(window, time.monotonic() - self.saved >= 60 * settings.checkpoint_minutes)
            spent = time.monotonic() - began
            state.count(len(window), sum(size for _, size in window), spent)
            note = (
                f"epoch {state.epoch + 1}/{settings.epochs}, loss {self._mean()[0]:.4f}, {state.rate():.0f} {self.task.unit}/s"
            )
            advance(len(window), note)
            window = []
            if due and not last:
                self._check_weights()
                self._save()
            began = time.monotonic()

    def _end_epoch(self) -> None:
        """Validate, keep the weights if they are the best so far, and save."""
        state = self.state
        self._check_weights()
        loss, terms = self._mean()
        score, validation_loss = self._validate()
        if not math.isfinite(validation_loss):
            self._diverged(f"the validation loss is {validation_loss}", state.step - 1)
        if state.better((score, validation_loss), self.task.metric.higher_is_better):
            state.best = (score, validation_loss)
            self._keep_best(state.epoch + 1)
        rate = self._rate(len(self.sizes) - 1)
        state.end_epoch(Epoch(state.epoch + 1, loss, terms, score, validation_loss, rate, state.seconds))
        self._save()

    def _mean(self) -> tuple[float, dict[str, float]]:
        """Return the epoch's loss so far, and its terms before their weights."""
        terms = {goal.name: total / self.state.samples for goal, total in zip(self.goals, self.state.sums, strict=True)}
        return sum(goal.config.weight * terms[goal.name] for goal in self.goals), terms

    def _step(self, step: int, positions: np.ndarray, read: dict[str, torch.Tensor]) -> torch.Tensor:
        """Move the weights once; return this process's part of the mean of each term."""
        number = self.state.epoch * len(self.sizes) + step
        processes.reseed(self.seed, number, self.accelerator.process_index, self.device)
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate(step)
        view = self.teach.view(self.state.epoch)
        batch = self.samples.batch(read, view)
        if self.draw is not None:
            batch = self.draw(self.student, batch, (self.seed, number, self.accelerator.process_index))
        taught = self.teach(view, positions, batch)
        try:
            total, terms = self.model(batch, taught)
        except ValueError as error:
            if "Expected more than 1" not in str(error):  # torch.nn.functional's words for BatchNorm without a spread
                raise
            raise BadInput(
                f"{self.section}.batch_size: the student's normalization needs more than one value a channel, and gets one from "
                f"{len(positions)} sample(s) a step and process; raise it (now {self.settings.batch_size})"
            ) from None
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
            made = self.task.evaluate(runner, split)
            found = [float(made.score), self.task.validation_loss(made, split)]
        score, validation_loss = broadcast_object_list(found) if self.processes > 1 else found
        return score, validation_loss

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
                "tokenizer": tokenizer.fingerprint(self.student.tokenizer) if self.student.tokenizer is not None else None,
                "teacher": self.teacher,
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
        self.state.restore(state)
        return True


def _drawing(task: Task, settings: recipe.Training) -> Callable[..., dict[str, torch.Tensor]] | None:
    """Return what puts targets that the student wrote itself into a batch; None where it learns from the data's. Raises BadInput."""
    if not isinstance(settings, recipe.Distill) or settings.targets == "given":
        return None
    draw: Callable[..., dict[str, torch.Tensor]] | None = getattr(task, "drawn", None)
    if draw is None:
        raise BadInput(f"distill.targets: student: a {task.name} model writes no targets of its own: leave `targets` out")
    return draw
