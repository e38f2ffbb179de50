"""A key-value cache that stays where it is: of a file with GroupQueryAttention, a call appends to the arrays that the call before returned.

Whoever calls sees what any graph with a cache does: arrays of `past` positions go in, arrays of past + tokens come out. Those that come
out are the front of longer ones. When they come back, nothing is copied: the graph is given the longer arrays as past and as present,
and writes the new positions behind. Arrays that were returned never change. What an encoder made is read where it lies. Where a past is not the last one returned (a text is
gone on with in two ways, or the arrays are the caller's own), it is copied first.
"""

from __future__ import annotations

import json
import operator
import sys
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from . import ort_causal, ort_grouped

if TYPE_CHECKING:
    from ..export.graph import Arrays

_PAST, _PRESENT = ort_causal.PAST, "present."


class Cache:
    """Runs a session of a file whose cache may be longer than its past, see ort_grouped.py."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._declared = {value.name: list(value.shape) for value in session.get_inputs()}
        self._outputs = {value.name: list(value.shape) for value in session.get_outputs()}
        floats = {value.name for value in session.get_outputs() if value.type == "tensor(float)"}
        kept = {name: name.replace(_PAST, _PRESENT, 1) for name in self._declared if name.startswith(_PAST)}
        self._kept = {name: output for name, output in kept.items() if output in self._outputs}  # not what an encoder made
        self._masked = ort_causal.MASK in self._declared
        self._read = [name for name in self._declared if name not in self._kept]
        self._made = [name for name in self._outputs if name not in self._kept.values()]
        read = {name: self._declared[name] for name in self._read}
        told = {name: _told_by(self._outputs[name], read) for name in self._made if name in floats}
        self._told = {name: axes for name, axes in told.items() if axes is not None}
        self._room: _Room | None = None
        self._lock = Lock()

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Run once; see above for what becomes of the cache."""
        ids, past = inputs[ort_causal.IDS], [inputs[name] for name in self._kept]
        rows, tokens = ids.shape
        before = past[0].shape[2]
        if self._masked and before + tokens != inputs[ort_causal.MASK].shape[1]:
            return self._plain(inputs)  # the caller's own longer arrays, or an error that the runtime names
        if rows > 1 and tokens > 1 and before:
            return self._row_by_row(inputs, rows)
        room = self._taken(past, before, tokens)
        read = {name: inputs[name] for name in self._read}
        if not self._masked:
            read[ort_grouped.LENGTH] = np.array([before])
        made = room.run(read, self._made, self._shapes(inputs))
        room.views = [array[:, :, : before + tokens] for array in room.arrays]
        return {**made, **dict(zip(self._kept.values(), room.views, strict=True))}

    def _plain(self, inputs: Arrays) -> dict[str, np.ndarray]:
        names = list(self._outputs)
        return dict(zip(names, self._session.run(names, {name: inputs[name] for name in self._declared}), strict=True))

    def _row_by_row(self, inputs: Arrays, rows: int) -> dict[str, np.ndarray]:
        """Several tokens behind a cache: the operator takes one row at a time."""
        batch = self._declared[ort_causal.IDS][0]
        shared = {name for name, shape in self._declared.items() if shape[0] != batch}
        parts = [
            self._plain({name: v if name in shared else np.ascontiguousarray(v[row : row + 1]) for name, v in inputs.items()})
            for row in range(rows)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in self._outputs}

    def _taken(self, past: Sequence[np.ndarray], before: int, tokens: int) -> _Room:
        """Return arrays that begin with a past and have room for the tokens: the last ones where they do, and it is theirs."""
        with self._lock:
            room, total = self._room, before + tokens
            known = room is not None and room.filled == before and total <= room.length
            if room is None or not known or not room.returned(past):
                room = _Room(self._session, self._kept, past, total)
                if before:
                    for array, values in zip(room.arrays, past, strict=True):
                        array[:, :, :before] = values
                self._room = room
            room.filled = total  # from here on it is another's who comes with the same past
            return room

    def _shapes(self, inputs: Arrays) -> dict[str, list[int]]:
        """Return the shapes of those outputs that the axes of the inputs tell."""
        return {
            name: [axis if isinstance(axis, int) else inputs[axis[0]].shape[axis[1]] for axis in axes]
            for name, axes in self._told.items()
        }


def _told_by(axes: Sequence[Any], inputs: Mapping[str, Sequence[Any]]) -> list[Any] | None:
    """Return each axis as its length, or as the (input, axis) that has the same name; None where one is told by no input."""
    where = {axis: (name, place) for name, shape in inputs.items() for place, axis in enumerate(shape) if isinstance(axis, str)}
    found = [axis if isinstance(axis, int) else where.get(axis) for axis in axes]
    return None if None in found else found


class _Room:
    """Arrays for the caches of all layers, (batch, heads, length, size), of which the first `filled` positions are in use."""

    def __init__(self, session: Any, names: Mapping[str, str], past: Sequence[np.ndarray], total: int) -> None:
        import onnxruntime as ort

        self.length = total + max(64, total // 2)
        self.filled = 0
        self.arrays = [np.empty((*one.shape[:2], self.length, one.shape[3]), one.dtype) for one in past]
        self.views: list[np.ndarray] = []
        self._read: dict[str, np.ndarray] = {}
        self._written: dict[str, np.ndarray] = {}
        self._session, self._binding = session, session.io_binding()
        for (name, output), array in zip(names.items(), self.arrays, strict=True):
            value = ort.OrtValue.ortvalue_from_numpy(array)  # the very memory
            self._binding.bind_ortvalue_input(name, value)
            self._binding.bind_ortvalue_output(output, value)

    def returned(self, past: Sequence[np.ndarray]) -> bool:
        """Say whether these are the arrays that were returned last."""
        return len(self.views) == len(past) and all(map(operator.is_, past, self.views))

    def run(self, inputs: Arrays, outputs: Sequence[str], shapes: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
        """Run on the arrays. outputs: those that are no cache; shapes: of those that are known.

        What is bound stays bound from step to step: binding takes longer than writing a token into what is. What an encoder made is long,
        and bound as it is.
        """
        for name, value in inputs.items():
            bound = self._read.get(name)
            if name.startswith(_PAST):
                if bound is not value:
                    self._read[name] = bound = np.ascontiguousarray(value)  # of other memory: bound afresh at every call
                    self._bind(name, bound)
            elif bound is not None and bound.shape == value.shape and bound.dtype == value.dtype:
                bound[...] = value
            else:
                self._read[name] = bound = np.array(value, order="C")
                self._bind(name, bound)
        for name in outputs:
            if name not in shapes:
                self._binding.bind_output(name)
            elif not self._is_free(name, tuple(shapes[name])):
                self._written[name] = made = np.empty(shapes[name], np.float32)
                self._binding.bind_output(name, "cpu", 0, np.float32, list(shapes[name]), made.ctypes.data)
        self._session.run_with_iobinding(self._binding)
        if len(shapes) == len(outputs):
            return {name: self._written[name] for name in outputs}
        values = dict(zip(outputs, self._binding.get_outputs()[len(self.arrays) :], strict=True))  # in the order of binding
        return {name: self._written[name] if name in shapes else values[name].numpy() for name in outputs}

    def _bind(self, name: str, array: np.ndarray) -> None:
        """Bind an input to this very memory; IOBinding's own call for that knows no input that may be left out."""
        import onnxruntime as ort

        self._binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))

    def _is_free(self, name: str, shape: tuple[int, ...]) -> bool:
        """Say whether an output can be written where the last one is: of that shape, and whoever asked for it has let it go."""
        return name in self._written and self._written[name].shape == shape and sys.getrefcount(self._written[name]) <= _OURS


_OURS = 2
"""References to an array that nobody else holds, as sys.getrefcount counts them: the dictionary's and its own argument."""


def of(session: Any) -> Cache | None:
    """Return what runs a session whose file was given the operator; None for any other."""
    from .ort_form import KEY

    told = session.get_modelmeta().custom_metadata_map.get(KEY)
    form = json.loads(told) if told else {}
    return Cache(session) if isinstance(form.get(ort_grouped.OPERATOR), int) else None
