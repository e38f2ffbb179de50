"""Polino, Pascanu and Alistarh (2018), table 1, again: PM, quantized distillation and differentiable quantization, and qd+.

python benchmarks/polino/run.py --data cifar10 [--source FOLDER] [--students 0.3M 0.1M] [--seeds 0 1 2]

Resumes where it was interrupted, inside a training too. Several processes may work in the same folder, on different students or
seeds, once the teacher's outputs are there (`--only teacher`).
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import cells
import networks
import results
import torch

from edgekd import models, recipe, verbs
from edgekd.distill.objectives import Step, logits
from edgekd.distill.trainer import fit
from edgekd.errors import EdgekdError
from edgekd.export.graph import torch_runner
from edgekd.models import LoadedModel
from edgekd.progress import say
from edgekd.quantize import size
from edgekd.run_folder import fingerprint, write_text
from edgekd.tasks import Evaluation, task_of

HERE = Path(__file__).parent
EPOCHS = {"distilled": 12, "qd": 4, "dq": 2, "qd+": 8}
"""The paper trains for 200; --epochs FACTOR multiplies these."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what is missing, cell by cell; write results/DATA.json and print the table. Returns the exit code."""
    options = _options(arguments)
    try:
        bench = Bench(options)
        for student in options.students:
            for seed in options.seeds:
                bench.student(student, seed)
        file = results.collect(bench.cells, bench.name, options.data, bench.facts(), options.add)
    except EdgekdError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130
    try:
        import plot
    except ImportError:
        say("no plot: it needs matplotlib")
    else:
        say(f"written: {file}, {plot.draw(file)}")
    return 0


class Bench:
    """The data, the teacher and its outputs, which all cells share."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.work = options, options.work / options.data
        # Trainings of another length have a folder and results of their own.
        length = "" if options.epochs == 1 else f"x{options.epochs:g}"
        self.cells, self.name = self.work / length, "-".join(filter(None, (options.data, length)))
        settings = [f"data.source={options.source}"] if options.source else []
        settings += ["distill.views=" + str(options.views)] if options.views else []
        self.recipe = recipe.load(HERE / f"{options.data}.yaml", settings)
        self.epochs = {name: max(1, round(options.epochs * count)) for name, count in EPOCHS.items()}
        if self.recipe.teacher is not None and self.recipe.teacher.weights is None:
            folder = self.work / "teacher"
            if not (folder / "model" / "model.safetensors").is_file():
                say("the teacher: labels alone")
                verbs.train(HERE / f"{options.data}.yaml", folder, "teacher", settings)
            made = self.recipe.teacher.model_copy(update={"weights": folder / "model" / "model.safetensors"})
            self.recipe = self.recipe.model_copy(update={"teacher": made})
        self.task = task_of(self.recipe.task)
        self.splits = self.task.splits(self.recipe)
        self.teacher = self.task.model(self.recipe, self.splits, "teacher", need_weights=True)
        made = self._evaluated(self.teacher)
        self.teacher_score, self.teacher_logits = made.score, torch.from_numpy(made.outputs["logits"])
        say(f"teacher: {self.teacher_score:.4f}, {self.teacher.parameters:,} parameters")

    def student(self, name: str, seed: int) -> None:
        """Do all cells of a student and a seed (of its first weights; the order of the samples and their views are shared)."""
        home = self.cells / name / f"seed{seed}"
        fresh = self._fresh(name, seed)
        wanted = self.options.only
        for start, objectives in (("normal", (recipe.TaskLoss(),)), ("distilled", None)):
            if start == "normal" and not self.options.normal:
                continue
            self._cell(
                home / start,
                {"cell": start, "epochs": self.epochs["distilled"]},
                lambda folder, o=objectives: self._whole(fresh, folder, o),
            )
        distilled = models.restore(home / "distilled", like=fresh)
        for cell in (*cells.paper(self.epochs), *cells.better(self.epochs), *cells.controls(self.epochs)):
            if wanted and not any(cell.name.startswith(prefix) for prefix in wanted):
                continue
            self._cell(home / cell.name, asdict(cell), lambda folder, cell=cell: self._quantized(cell, distilled, folder))

    def facts(self) -> dict[str, Any]:
        """Return what the results file says about the data, the teacher and the settings."""
        assert self.recipe.distill is not None
        return {
            "source": self.recipe.data.source if not self.options.source else self.options.source.name,
            "samples": {"train": len(self.splits.train), "validation": len(self.splits.validation), "test": len(self.splits.test)},
            "teacher": {"accuracy": self.teacher_score, "parameters": self.teacher.parameters},
            "distill": self.recipe.distill.model_dump(mode="json"),
            "epochs": self.epochs,
            "keep": cells.KEEP,
            "group": cells.GROUP,
        }  # fmt: skip

    def _fresh(self, name: str, seed: int) -> LoadedModel:
        config = self.recipe.student.model_copy(update={"arguments": {**self.recipe.student.arguments, "name": name}})
        return self.task.model(
            self.recipe.model_copy(update={"student": config, "seed": seed}), self.splits, "student", need_weights=False
        )

    def _cell(self, folder: Path, key: Mapping[str, Any], make: Any) -> None:
        """Make a cell unless it is there."""
        distill = self.recipe.distill.model_dump(mode="json")
        made = fingerprint(json.loads(json.dumps({**key, "distill": distill, "teacher": round(self.teacher_score, 6)})))
        file = folder / "result.json"
        if file.is_file() and json.loads(file.read_text())["key"] == made:
            return
        folder.mkdir(parents=True, exist_ok=True)
        began = time.perf_counter()
        found = make(folder)
        found |= {"key": made, "seconds": time.perf_counter() - began, "threads": torch.get_num_threads()}
        write_text(file, json.dumps(found, indent=1) + "\n")
        say(
            f"{folder.parent.parent.name} {folder.parent.name} {folder.name}: {found['accuracy']:.4f} ({found['seconds']:.0f} s)"
        )

    def _whole(self, fresh: LoadedModel, folder: Path, objectives: Any) -> dict[str, Any]:
        """Train a student in full precision."""
        made = replace(fresh, module=copy.deepcopy(fresh.module))
        history = self._fit(
            made, {"epochs": self.epochs["distilled"]} | ({"objectives": objectives} if objectives else {}), folder
        )
        models.save(made, folder)
        return {**self._tested(made), "parameters": made.parameters, "training": [history]}

    def _quantized(self, cell: cells.Cell, distilled: LoadedModel, folder: Path) -> dict[str, Any]:
        made, encoded, told = cells.make(cell, distilled, self._fit, folder)
        return {
            **self._tested(made),
            "size": size.sizes(encoded, size.numbers(made.module.net, without=encoded)),
            "training": told,
        }

    def _fit(self, student: LoadedModel, changes: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        assert self.recipe.distill is not None
        settings = self.recipe.distill.model_copy(update=dict(changes))
        history = fit(
            student, self.splits, self.task, settings, seed=0, folder=folder, teacher=self.teacher, cache=self.work / "cache"
        )
        checkpoint = folder / "checkpoint"
        for file in checkpoint.glob("*"):
            file.unlink()
        return history.to_json()

    def _tested(self, model: LoadedModel) -> dict[str, float]:
        """Return the accuracy on the test samples, and the distance from the teacher there: T^2 KL(teacher || model), mean, in nats."""
        made = self._evaluated(model)
        step = Step({"logits": torch.from_numpy(made.outputs["logits"])}, {"logits": self.teacher_logits}, {}, self.task)
        return {"accuracy": made.score, "kl": float(logits.loss(recipe.Logits(kind="logits", temperature=2), step))}

    def _evaluated(self, model: LoadedModel) -> Evaluation:
        return self.task.evaluate(torch_runner(self.task.graphs(model, self.splits)), self.splits.test)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("cifar10", "fashion-mnist"), default="cifar10")
    parser.add_argument("--source", type=Path, help="folder with the data; its hub id when absent")
    parser.add_argument("--students", nargs="+", choices=networks.STUDENTS, default=["0.3M", "0.1M"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", metavar="PREFIX", help="cells whose names begin so, such as qd-4 pm")
    parser.add_argument("--normal", action="store_true", help="also train each student on labels alone")
    parser.add_argument("--epochs", type=float, default=1.0, metavar="FACTOR", help="times the default numbers of epochs")
    parser.add_argument("--views", type=int, help="augmented views of each picture, for which the teacher's outputs are kept")
    parser.add_argument("--add", action="store_true", help="keep the results file's other cells, such as seeds made elsewhere")
    parser.add_argument("--work", type=Path, default=Path("runs/polino"), help="where trainings live (default: runs/polino)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
