"""What a kit's record (kits.py) may say. It is a file from elsewhere: what does not stand here is not believed.

Types and bounds of single values; what has to fit together stands in kit_check.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue

from ..recipe import Bench

MOST_CALLS = 1 << 26
"""Calls of one thing in one cell: half a gigabyte of samples."""

LONGEST = 10**15
"""Nanoseconds that no block takes: eleven days."""


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("has characters that cannot be printed")
    return text


def _plain(value: Any) -> Any:
    """Let through what a page can show whatever it is: printable, finite, not large."""
    for count, one in enumerate(_leaves(value, 6)):
        if isinstance(one, str):
            _printable(one)
        big = len(one) > 2000 if isinstance(one, str) else one is not None and not abs(one) < 1e30
        if count >= 10_000 or big:
            raise ValueError("is larger than anything that belongs here")
    return value


def _leaves(value: Any, depth: int) -> Iterator[Any]:
    if not isinstance(value, list | dict):
        yield value
        return
    if not depth:
        raise ValueError("is larger than anything that belongs here")
    for one in value if isinstance(value, list) else [*value, *value.values()]:
        yield from _leaves(one, depth - 1)


Plain = Annotated[JsonValue, AfterValidator(_plain)]
Name = Annotated[str, Field(min_length=1, max_length=500), AfterValidator(_printable)]
Text = Annotated[str, Field(max_length=2000), AfterValidator(_printable)]
Printed = Annotated[str, Field(max_length=20_000)]
"""What a runtime printed, colours and all: kit_reading.shown makes it fit to be shown."""
Number = Annotated[float, Field(ge=-1e30, le=1e30, allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, lt=1e9, allow_inf_nan=False)]
Rate = Annotated[float, Field(ge=1, le=1e21, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=10**9)]
Amount = Annotated[int, Field(ge=0, le=10**21)]
Bytes = Annotated[int, Field(ge=0, le=1 << 60)]
Nanoseconds = Annotated[int, Field(ge=1, le=LONGEST)]
Pair = Annotated[list[Number | None], Field(min_length=2, max_length=2)]


class Told(BaseModel):
    """Anything in a record. Numbers are no strings and booleans no numbers; a key that is not known may say something plain."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)
    __pydantic_extra__: dict[str, Plain]


class Facts(Told):
    """things.GraphFacts."""

    inputs: list[dict[str, Plain]]
    nodes: Count
    conversions: Count
    heavy: Count
    heavy_float: Count
    weights_alone: bool


class PlannedThing(Told):
    """What the plan says of a thing."""

    label: Name
    backend: Name
    target: Name | None
    control: bool
    threads: Annotated[int, Field(ge=1, le=1 << 16)] | None = None
    digest: Annotated[str, Field(pattern=r"\A[0-9a-f]{64}\z")]
    size: Bytes
    scenario: Literal["single-stream", "chain", "generation"]
    facts: Facts | None


class Node(Told):
    """cost.NodeCost."""

    name: Annotated[str, Field(max_length=20_000)]
    op: Annotated[str, Field(max_length=500)]
    macs: Amount
    flops: Amount
    weight_bytes: Bytes
    activation_bytes: Bytes
    integer: bool


class Counted(Told):
    """cost.Cost."""

    macs: Amount
    flops: Amount
    int8_macs: Amount
    weights_bytes: Bytes
    weights_read_bytes: Bytes
    io_bytes: Bytes
    activation_bytes: Bytes
    nodes: Annotated[list[Node], Field(max_length=1_000_000)]
    notes: list[Annotated[str, Field(max_length=20_000)]]


class PlannedCell(Told):
    """What was to be timed together. batch and streams go into file names."""

    scenario: Literal["single-stream", "chain", "generation", "sustained"]
    batch: Annotated[int, Field(ge=1, le=1 << 20)]
    streams: Annotated[int, Field(ge=2, le=256)] | None
    things: Annotated[list[Count], Field(min_length=1)]
    costs: list[Counted | None]
    job: Any  # the kit's alone
    name: Any


class Plan(Told):
    """What the kit was made for."""

    settings: Bench
    things: Annotated[list[PlannedThing], Field(min_length=1, max_length=10_000)]
    cells: Annotated[list[PlannedCell], Field(max_length=10_000)]
    files: Any


class Block(Told):
    """One block, see schedule.run."""

    nanoseconds: Annotated[list[Nanoseconds], Field(min_length=1, max_length=MOST_CALLS)]
    wall: Nanoseconds
    at: Annotated[int, Field(ge=-(2**63), le=2**63)]
    joules: Seconds | None
    metered_s: Seconds | None = None
    launch: Count
    finished: Annotated[float, Field(ge=1e-6, le=1e9)] | None = None
    marks: Annotated[dict[Name, list[Any]], Field(max_length=100)]


class WarmUp(Told):
    """What warm-up took."""

    count: Count
    seconds: Seconds


class Timed(Told):
    """One thing that was timed."""

    label: Name
    load_s: Seconds
    first_call_s: Seconds
    warm_up: WarmUp
    blocks: Annotated[list[Block], Field(min_length=1, max_length=1 << 20)]
    calls: Annotated[int, Field(ge=1, le=MOST_CALLS)]
    settle: Count
    stopped_by: Literal["interval", "min_seconds and min_count", "max_seconds", "minutes"]
    providers: dict[Name, Count]
    runtime: dict[Name, Name]
    peak_memory_bytes: Bytes | None
    peak_memory_above_runtime_bytes: Bytes | None


class Around(Told):
    """environment.around."""

    notes: Annotated[list[Text], Field(max_length=100)]
    load_average: Pair
    temperature_c: Pair
    frequency_mhz: Pair
    vnni: bool | None
    cpu: Text | None
    governor: Text | None
    others: Number | None
    stolen: Number | None
    free_bytes: Bytes | None


class Energy(Told):
    """Which meter there was, or why none."""

    source: Text | None
    idle_watts: Number | None
    why: Text | None


class Look(Told):
    """environment.point, of a thing."""

    label: Name
    at_s: Number
    temperature_c: Number | None
    frequency_mhz: Number | None
    others: Number | None


class Result(Told):
    """What schedule.run returned."""

    timed: Annotated[list[Timed], Field(min_length=1)]
    around: Around
    energy: Energy
    watched: Annotated[list[Look], Field(max_length=100_000)]


class MeasuredCell(Told):
    """A cell that was timed, or why not."""

    place: Count
    things: Annotated[list[Count], Field(min_length=1)]
    told: Result | None = None
    error: Printed | None = None


class Rates(Told):
    """rates.measure."""

    threads: Annotated[int, Field(ge=1, le=1 << 16)]
    float32_flops: Rate
    runtime_float32_flops: Rate | None
    runtime_int8_ops: Rate | None
    bandwidth: Annotated[list[Annotated[list[Rate], Field(min_length=2, max_length=2)]], Field(min_length=1, max_length=1000)]
    last_level_bytes: Bytes | None
    load_average: Number | None
    runtime: Text | None = None
    why: Text | None = None
    blas: Text | None = None
    numpy: Text | None = None


class Frequency(Told):
    """Clock rates."""

    now: Number | None
    min: Number | None
    max: Number | None


class Host(Told):
    """environment.describe."""

    cpu: Name
    cores: Annotated[int, Field(ge=1, le=1 << 16)]
    physical_cores: Annotated[int, Field(ge=1, le=1 << 16)] | None
    vnni: bool | None
    flags: Annotated[list[Name], Field(max_length=1000)]
    packages: Annotated[dict[Name, Name | None], Field(max_length=1000)]
    memory_bytes: Bytes | None
    swap_bytes: Bytes | None
    quota_cores: Number | None
    virtual_machine: bool | None
    architecture: Text | None
    governor: Text | None
    os: Text | None
    python: Text | None
    clocksource: Text | None
    frequency_mhz: Frequency


class Skipped(Told):
    """A thing that was left out."""

    label: Name
    reason: Printed


class Record(Told):
    """All of it."""

    plan: Plan
    name: Name
    when: Name
    host: Host
    threads: Annotated[int, Field(ge=1, le=1 << 16)]
    rates: Rates | None
    skipped: Annotated[list[Skipped], Field(max_length=10_000)]
    cells: Annotated[list[MeasuredCell], Field(max_length=100_000)]
