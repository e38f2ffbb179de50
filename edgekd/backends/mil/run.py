"""Running a program: its operations in order, each value rounded to what it is declared to be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import BadInput
from . import constants, elementwise, layers, recurrent, reductions, shapes
from .program import Constant, Operation, Program, Type
from .values import Table

OPERATIONS: Table = {
    **elementwise.OPERATIONS,
    **layers.OPERATIONS,
    **recurrent.OPERATIONS,
    **reductions.OPERATIONS,
    **shapes.OPERATIONS,
    **constants.OPERATIONS,
}


@dataclass(frozen=True)
class NonFinite:
    """Where a program leaves the numbers: an operation that gives NaN or infinity though all that it was given is finite."""

    operation: str
    kind: str
    value: str
    what: str

    def __str__(self) -> str:
        """Say it in words."""
        return f"operation {self.operation} ({self.kind}) gives {self.what}"


class Runner:
    """A program, its constants as tensors and its compressed weights expanded once.

    exact: float32 throughout. Else each value that the program declares float16 is rounded to it, beyond 65504 to infinity, as a
    device that computes in half precision does at best.
    """

    def __init__(self, program: Program, exact: bool) -> None:
        self.program = program
        self.exact = exact
        self._known: dict[str, Any] = {name: _given(value) for name, value in program.constants.items()}
        self._left: list[Operation] = []
        self._stored: dict[str, Tensor] = {}
        with torch.inference_mode():
            for operation in program.operations:
                if operation.kind.startswith("constexpr_"):
                    made = self._computed(operation, self._known)
                    self._known.update(made)
                    self._stored.update(made)
                else:
                    self._left.append(operation)
        if unknown := sorted({one.kind for one in self._left if one.kind not in OPERATIONS}):
            raise BadInput(
                f"edgekd's interpreter of Core ML programs does not know {', '.join(unknown)}: its outputs cannot be checked"
            )

    def stored(self) -> dict[str, Tensor]:
        """Return the compressed weights, expanded, by name."""
        return self._stored

    def values(self, inputs: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        """Run once; return every value that an operation made, by name, in order of execution."""
        known = dict(self._known)
        for name, declared in self.program.inputs.items():
            if name not in inputs:
                raise BadInput(f"the program needs an input `{name}`")
            known[name] = self._rounded(_typed(torch.from_numpy(np.ascontiguousarray(inputs[name])), declared.dtype), declared)
            _check(f"input `{name}`", known[name], declared)
        made: dict[str, Tensor] = {}
        with torch.inference_mode():
            for operation in self._left:
                found = self._computed(operation, known)
                known.update(found)
                made.update(found)
        made.update({name: known[name] for name in self.program.outputs if name not in made})
        return made

    def _computed(self, operation: Operation, known: Mapping[str, Any]) -> dict[str, Tensor]:
        where = f"operation {operation.name} ({operation.kind})"
        if operation.kind not in OPERATIONS:
            raise BadInput(
                f"edgekd's interpreter of Core ML programs does not know {operation.kind}: its outputs cannot be checked"
            )
        given = {key: self._argument(key, of, known) for key, of in operation.inputs.items()}
        try:
            made = OPERATIONS[operation.kind](**given)
        except (TypeError, NotImplementedError, RuntimeError, ValueError, IndexError) as error:
            reason = str(error).splitlines()[0].replace("() got an unexpected keyword argument", " has no parameter")
            raise BadInput(f"{where}: {reason}") from None
        several = made if isinstance(made, tuple | list) else (made,)
        found = {}
        for (name, declared), value in zip(operation.outputs, several, strict=True):
            _check(where, value, declared)
            found[name] = self._rounded(_typed(value, declared.dtype), declared)
        return found

    def _argument(self, key: str, of: list[str | Constant], known: Mapping[str, Any]) -> Any:
        values = [_given(one) if isinstance(one, Constant) else known[one] for one in of]
        return values if key == "values" or len(values) > 1 else values[0]

    def _rounded(self, value: Tensor, declared: Type) -> Tensor:
        return value.half().float() if declared.dtype == "fp16" and not self.exact else value


def run(program: Program, inputs: Mapping[str, np.ndarray], exact: bool = False) -> dict[str, np.ndarray]:
    """Run a program once; return its outputs. Raises BadInput for an operation, or a value of a parameter, that is not known."""
    made = Runner(program, exact).values(inputs)
    return {name: made[name].numpy() for name in program.outputs}


def first_non_finite(runner: Runner, inputs: Mapping[str, np.ndarray]) -> NonFinite | None:
    """Return the first operation that makes NaN or infinity; None when every value is a number."""
    made = runner.values(inputs)
    for operation in runner.program.operations:
        for name, _ in operation.outputs:
            value = made.get(name)
            if value is None or not value.is_floating_point() or bool(torch.isfinite(value).all()):
                continue
            what = "NaN" if bool(torch.isnan(value).any()) else f"{'-' if bool((value == -torch.inf).any()) else ''}infinity"
            return NonFinite(operation.name, operation.kind, name, what)
    return None


def _given(constant: Constant) -> Any:
    """Return a constant as operations take it: floats as float32, integers as int64, texts as they are."""
    if isinstance(constant.value, str | list):
        return constant.value
    return _typed(torch.from_numpy(np.array(constant.value)), constant.dtype)


def _typed(value: Tensor, dtype: str) -> Tensor:
    if dtype.startswith("fp"):
        return value.float()
    return value.bool() if dtype == "bool" else value.to(torch.int64)


def _check(where: str, value: Tensor, declared: Type) -> None:
    """Raise BadInput when a value has not the shape that the program declares."""
    fits = len(value.shape) == len(declared.shape) and all(
        n is None or n == m for n, m in zip(declared.shape, value.shape, strict=True)
    )
    if not fits:
        raise BadInput(f"{where}: made {tuple(value.shape)}, and the program declares {declared.shape}")
