"""What is timed together: things of one way of calling, batch and number of streams; and what of it a device can do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..errors import BadInput
from . import generation
from .scenarios import batch_of, random_inputs
from .things import GraphFacts, Thing, facts_of, fingerprint, interfaces
from .threads import threads_on

if TYPE_CHECKING:
    from ..devices import Device
    from ..recipe import Bench


@dataclass(frozen=True)
class Known:
    """What is known of a thing before it is timed. scenario: how a call of it is made."""

    thing: Thing
    facts: GraphFacts | None
    interfaces: dict[str, dict[str, list[dict[str, Any]]]]
    digest: str
    size: int
    scenario: str


@dataclass(frozen=True)
class Cell:
    """Things that are timed together, in alternation, in one scenario."""

    scenario: str
    known: tuple[Known, ...]
    batch: int = 1
    streams: int | None = None

    @property
    def name(self) -> str:
        """Names its files, and what a person sees of it."""
        return (
            f"batch{self.batch}"
            + (f"-streams{self.streams}" if self.streams else "")
            + (f"-{self.scenario}" if self.scenario in ("sustained", "generation") else "")
        )


def know(things: Sequence[Thing]) -> list[Known]:
    """Look at the files of things. Raises BadInput (two things with one label, a file that is missing or cannot be read)."""
    labels = [thing.label for thing in things]
    for label in labels:
        if labels.count(label) > 1:
            raise BadInput(f"two things to time are called `{label}`: give them different labels")
    found = []
    for thing in things:
        told, known = interfaces(thing), facts_of(thing)
        found.append(Known(thing, known, told, *fingerprint(thing), scenario_of(told)))
    return found


def scenario_of(interfaces: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]) -> str:
    """Return how a call of graphs is made: token by token, one after the other, or the one there is."""
    if generation.detect(interfaces):
        return "generation"
    return "chain" if len(interfaces) > 1 else "single-stream"


def fixed_batch(interfaces: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]) -> int | None:
    """Return the batch that graphs are made for; None where they take any."""
    first = {one["shape"][0] for told in interfaces.values() for one in told["inputs"] if one["shape"]}
    (only,) = first if len(first) == 1 else (None,)
    return only if isinstance(only, int) and only > 0 else None


def cells(known: Sequence[Known], settings: Bench) -> Iterator[Cell]:
    """Yield what is timed together: each way of calling and batch size, then each number of streams, then sustained runs.

    Graphs that are made for one batch size are timed with that alone.
    """
    for scenario in dict.fromkeys(one.scenario for one in known):
        alike = [one for one in known if one.scenario == scenario]
        made_for = {one.thing.label: fixed_batch(one.interfaces) for one in alike}
        for batch in dict.fromkeys([*settings.batch_sizes, *(size for size in made_for.values() if size)]):
            asked = batch in settings.batch_sizes
            here = tuple(
                one for one in alike if made_for[one.thing.label] == batch or (asked and not made_for[one.thing.label])
            )
            if not here:
                continue
            if settings.latency:
                yield Cell(scenario, here, batch)
            if batch == settings.batch_sizes[0] or batch not in settings.batch_sizes:
                for streams in settings.streams:
                    yield Cell(scenario, here, batch, streams)
    if settings.sustained_minutes:
        for batch in dict.fromkeys(fixed_batch(one.interfaces) or settings.batch_sizes[0] for one in known):
            yield Cell(
                "sustained",
                tuple(one for one in known if batch == (fixed_batch(one.interfaces) or settings.batch_sizes[0])),
                batch,
            )


def possible(cell: Cell, device: Device) -> tuple[Cell | None, dict[str, str]]:
    """Return what of a cell a device can do (None: nothing of it), and label -> the scenario that it lacks for each other thing.

    A sustained run of a thing makes the thing's own calls: a device has to know both.
    """
    there = device.scenarios()
    lacking = {}
    for one in cell.known:
        needs = [*(["streams"] if cell.streams else []), *(["sustained"] if cell.scenario == "sustained" else []), one.scenario]
        if missing := [scenario for scenario in needs if scenario not in there]:
            lacking[one.thing.label] = missing[0]
    able = tuple(one for one in cell.known if one.thing.label not in lacking)
    return (replace(cell, known=able) if able else None), lacking


def cannot(address: str, scenario: str) -> str:
    """Say that a device lacks a scenario."""
    return f"{address} cannot run the scenario `{scenario}`"


def input_shapes(known: Known, graph: str, batch: int) -> dict[str, list[int]]:
    """Return the shapes of the inputs that a graph is timed with: input name -> shape, `batch` samples."""
    given = known.thing.inputs.get(graph)
    inputs = batch_of(given, batch) if given else random_inputs(known.interfaces[graph]["inputs"], batch)
    return {name: list(value.shape) for name, value in inputs.items()}


def threads_for(settings: Bench, host: Mapping[str, Any], things: Sequence[Thing] = ()) -> int:
    """Return how many threads the runtime gets on a device, for things that ask for no number of their own.

    BadInput for many times the cores: they would wait for each other.
    """
    for thing in things:
        threads_on(host, thing.threads)
    return threads_on(host, settings.threads)
