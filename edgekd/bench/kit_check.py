"""Whether a kit's record is what a kit makes: each value as in kit_record.py, and all of them fit together."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from ..devices import kit_backends
from .kit_record import LONGEST, MOST_CALLS, PlannedCell, Record, Timed


class Wrong(ValueError):
    """What is wrong in a record. key: where, such as "cells[0].things"."""

    def __init__(self, key: str, said: str) -> None:
        super().__init__(said)
        self.key = key


def check(text: str) -> None:
    """Raise Wrong where a record is not what kit_main.timed makes."""
    try:
        record = Record.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise Wrong(_key(first["loc"]), first["msg"].partition("\n")[0]) from None
    _fits(record)


def _key(where: Sequence[Any]) -> str:
    """Write where something stands: cells[0].told. What stands there may be anything, so may its name."""
    said = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where)
    return re.sub(r"[^\w.\[\]:/ -]", "?", said.lstrip("."))[:200] or "the file"


def _need(true: bool, key: str, said: str) -> None:
    if not true:
        raise Wrong(key, said)


def _fits(record: Record) -> None:
    """Raise Wrong where one part of a record contradicts another."""
    plan = record.plan
    labels = [one.label for one in plan.things]
    _need(len(set(labels)) == len(labels), "plan.things", "two things have one label")
    for at, thing in enumerate(plan.things):
        _need(thing.backend in kit_backends.RUNTIMES, f"plan.things[{at}].backend", "no backend that travels")
    for at, planned in enumerate(plan.cells):
        key = f"plan.cells[{at}]"
        _need(len(set(planned.things)) == len(planned.things), f"{key}.things", "a thing stands there twice")
        _need(max(planned.things) < len(labels), f"{key}.things", "there is no such thing")
        _need(len(planned.costs) == len(planned.things), f"{key}.costs", "not one for each thing")
    done = [cell.place for cell in record.cells if cell.told]
    _need(len(set(done)) == len(done), "cells", "a cell stands there twice")
    for at, cell in enumerate(record.cells):
        key = f"cells[{at}]"
        _need((cell.told is None) != (cell.error is None), key, "it has neither or both of `told` and `error`")
        _need(cell.place < len(plan.cells), f"{key}.place", "there is no such cell")
        planned = plan.cells[cell.place]
        _need(len(set(cell.things)) == len(cell.things), f"{key}.things", "a thing stands there twice")
        _need(set(cell.things) <= set(planned.things), f"{key}.things", "other things than planned")
        if cell.told:
            wanted = [labels[index] for index in cell.things]
            _need(
                [one.label for one in cell.told.timed] == wanted, f"{key}.told.timed", "other things were timed than were to be"
            )
            _need({one.label for one in cell.told.watched} <= set(wanted), f"{key}.told.watched", "of other things")
            for place, one in enumerate(cell.told.timed):
                generates = plan.things[cell.things[place]].scenario == "generation"
                _timed(one, planned, generates, f"{key}.told.timed[{place}]")


def _timed(one: Timed, planned: PlannedCell, generates: bool, key: str) -> None:
    """Raise Wrong where one thing's blocks do not fit together, or not what they are of."""
    lasting = planned.scenario == "sustained"
    _need((one.stopped_by == "minutes") == lasting, f"{key}.stopped_by", f"not of the scenario `{planned.scenario}`")
    _need(not lasting or len(one.blocks) > 1, f"{key}.blocks", "one block alone says nothing of how it went on")
    calls, first = len(one.blocks[0].nanoseconds), one.blocks[0]
    _need(calls * len(one.blocks) <= MOST_CALLS, f"{key}.blocks", "more calls than are taken in")
    lengths: set[int] = set()
    _need(
        not generates or {"ttft", "tokens"} <= set(first.marks), f"{key}.blocks[0].marks", "no ttft or tokens of what generates"
    )
    for at, block in enumerate(one.blocks):
        where = f"{key}.blocks[{at}]"
        _need(len(block.nanoseconds) == calls, f"{where}.nanoseconds", "more or fewer calls than in the first block")
        _need(not at or block.at > one.blocks[at - 1].at, f"{where}.at", "it began before the block before")
        _need(not planned.streams or block.finished is not None, f"{where}.finished", "how many calls ended is not told")
        _need((block.joules is None) == (first.joules is None), f"{where}.joules", "told of some blocks alone")
        _need(set(block.marks) == set(first.marks), f"{where}.marks", "other parts than in the first block")
        for name, values in block.marks.items():
            mark = _key([f"{where}.marks", name])
            _need(len(values) == calls, mark, "parts of more or fewer calls than were made")
            many = generates and name == "tokens"
            _need(all(isinstance(value, list) == many for value in values), mark, "no durations")
            flat = [number for value in values for number in value] if many else values
            lengths |= {len(value) for value in values} if many else set()
            _need(all(type(number) is int and 0 <= number <= LONGEST for number in flat), mark, "no durations")
            _need(len(lengths) <= 1 and 0 not in lengths, mark, "calls of more or fewer tokens")
            _need(len(lengths) == 0 or calls * len(one.blocks) * max(lengths) <= MOST_CALLS, mark, "more than is taken in")
