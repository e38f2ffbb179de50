"""What the stages of one run share, loaded when a stage first needs it: a run that is all cached loads nothing."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import BadInput
from .plan import Plan
from .tasks import Task, task_of

if TYPE_CHECKING:
    from .data import Splits
    from .export.graph import Graph
    from .models import LoadedModel


class Materials:
    """The task, the data, the teacher and the student of a plan."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.shown: set[str] = set()
        """Targets that have been shown the student's graphs, and take them."""
        self._variant: tuple[str, list[Graph]] | None = None  # the one asked for last

    @cached_property
    def task(self) -> Task:
        """The recipe's task."""
        return task_of(self.plan.recipe.task)

    @cached_property
    def splits(self) -> Splits:
        """The data, at the size that the models want."""
        return self.task.splits(self.plan.recipe)

    @cached_property
    def _models(self) -> tuple[LoadedModel | None, LoadedModel]:
        return self.task.models(self.plan.recipe, self.splits)

    @property
    def teacher(self) -> LoadedModel:
        """The teacher, checked against data and student."""
        teacher = self._models[0]
        if teacher is None:
            raise BadInput("the recipe has no teacher: add `teacher: {model: ...}`")
        return teacher

    @property
    def fresh_student(self) -> LoadedModel:
        """The student as the recipe names it, before distillation."""
        return self._models[1]

    @cached_property
    def student(self) -> LoadedModel:
        """The finished student, as the run folder holds it."""
        from . import models

        return models.restore(self.plan.out / "student", like=self.fresh_student)

    @cached_property
    def student_graphs(self) -> list[Graph]:
        """The finished student's exportable graphs."""
        return self.task.graphs(self.student, self.splits)

    def variant_graphs(self, name: str) -> list[Graph]:
        """Return the exportable graphs of a finished variant: the student's, with its own weights where it has some."""
        from . import models
        from .quantize import variant

        folder = self.plan.out / "variants" / name
        if variant.load(folder).weights is None:
            return self.student_graphs
        if self._variant is None or self._variant[0] != name:
            made = models.restore(folder, like=self.fresh_student)
            self._variant = name, self.task.graphs(made, self.splits)
        return self._variant[1]

    def source_graphs(self) -> dict[str, Path]:
        """The finished student as ONNX, full precision: graph name -> file."""
        return {file.stem: file for file in sorted((self.plan.out / "graphs").glob("*.onnx"))}
