"""Running an .mlpackage on samples as tasks have them: in edgekd's interpreter, or in Core ML on a Mac."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .fixed import filled, one_by_one

if TYPE_CHECKING:
    from ..export.graph import Arrays
    from .mil import Program

PROVIDER = "MIL reference interpreter"


class Interpreted:
    """A program in edgekd's interpreter. providers: the interpreter -> how many operations the program has, constants not counted."""

    def __init__(self, program: Program, exact: bool) -> None:
        from .mil.run import Runner

        self._program = program
        self._runner = Runner(program, exact)
        self.providers = {PROVIDER: len(program.operations)}

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Run any number of samples, one after the other."""
        wanted = {name: inputs[name] for name in self._program.inputs}
        return one_by_one(self._one, wanted, shapes=shapes_of(self._program))

    def _one(self, sample: Arrays) -> dict[str, np.ndarray]:
        made = self._runner.values(handed(sample, self._program))
        return {name: made[name].numpy() for name in self._program.outputs}


class OnMac:
    """A program in Core ML itself."""

    def __init__(self, call: Callable[[Arrays], dict[str, np.ndarray]], program: Program) -> None:
        self._call, self._shapes = call, shapes_of(program)
        self.providers = {"Core ML": len(program.operations)}

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Run any number of samples."""
        return self._call(filled(inputs, self._shapes))


def shapes_of(program: Program) -> dict[str, tuple[int | None, ...]]:
    """Return the shapes of a program's inputs, pictures left out: Core ML has those the other way round."""
    return {name: one.shape for name, one in program.inputs.items() if name not in program.pictures}


def sample_of(file: Path, program: Program) -> dict[str, np.ndarray]:
    """Return a sample to run: of the artifact's golden inputs, else noise."""
    beside = file.parent / "golden.npz"
    if beside.is_file():
        with np.load(beside, allow_pickle=False) as stored:
            keys = {name: f"{file.stem}/in/{name}" for name in program.inputs}
            if set(keys.values()) <= set(stored.files):
                return {name: stored[key][:1] for name, key in keys.items()}
    made: dict[str, np.ndarray] = {}
    rng = np.random.default_rng(0)
    for name, one in program.inputs.items():
        shape = tuple(n or 1 for n in one.shape)
        if name in program.pictures:
            made[name] = rng.integers(0, 256, (shape[0], *shape[2:], shape[1]))
        else:
            made[name] = rng.normal(size=shape) if one.dtype.startswith("fp") else rng.integers(0, 2, shape)
    return made


def handed(sample: Arrays, program: Program) -> dict[str, np.ndarray]:
    """Return a sample as the program takes it: a picture, (1, H, W, C), as float32 (1, C, H, W) in 0-255."""
    return {
        name: np.asarray(values).transpose(0, 3, 1, 2).astype(np.float32) if name in program.pictures else np.asarray(values)
        for name, values in sample.items()
        if name in program.inputs
    }
