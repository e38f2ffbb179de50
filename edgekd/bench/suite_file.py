"""A suite's file: several things on several devices in several scenarios.

things: [../runs/digits, mobilenet.onnx]     # as for `edgekd bench`, from where the file lies
devices: [local, "ssh://pi@raspberrypi", browser]
scenarios: [latency, {streams: [2]}, {sustained_minutes: 5}]   # each: settings of `bench`, besides those below
bench: {min_seconds: 2}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from ..devices import open_device
from ..errors import BadInput
from ..recipe import Bench, Strict
from .things import Thing, thing_from


class SuiteFile(Strict):
    """What a suite's file says."""

    things: tuple[str, ...] = Field(min_length=1)
    devices: tuple[str, ...] = Field(("local",), min_length=1)
    scenarios: tuple[str | dict[str, Any], ...] = Field(("latency",), min_length=1)
    bench: dict[str, Any] = Field({})


@dataclass(frozen=True)
class Suite:
    """Things, the addresses of devices, and how they are timed: each of `settings` in turn."""

    things: tuple[Thing, ...]
    devices: tuple[str, ...] = ("local",)
    settings: tuple[Bench, ...] = (Bench(),)
    compare: bool = True


def read(file: Path) -> Suite:
    """Read a suite's file. Raises BadInput with the key that is wrong."""
    try:
        told = yaml.safe_load(file.read_text(encoding="utf-8"))
        if not isinstance(told, dict):
            raise BadInput(f"{file}: a suite has `things` and, where it wants, `devices`, `scenarios` and `bench`")
        suite = SuiteFile.model_validate(told)
        settings = [_settings(one, suite.bench) for one in suite.scenarios]
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{file}: cannot be read ({error})") from None
    except yaml.YAMLError as error:
        raise BadInput(f"{file}: not YAML ({' '.join(str(error).split())})") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise BadInput(f"{file}: {'.'.join(str(part) for part in first['loc'])}: {first['msg']}") from None
    for address in suite.devices:
        open_device(address)
    paths = [Path(thing) if Path(thing).is_absolute() else file.parent / thing for thing in suite.things]
    return Suite(things_of(paths), suite.devices, tuple(settings))


def _settings(scenario: str | dict[str, Any], common: Mapping[str, Any]) -> Bench:
    """Return how one scenario is timed. One that adds streams or minutes leaves the plain latency to the others."""
    if isinstance(scenario, str):
        if scenario != "latency":
            raise BadInput(
                f"scenario `{scenario}`: it is `latency`, or a table such as {{streams: [2]}} or {{sustained_minutes: 5}}"
            )
        return Bench.model_validate(dict(common))
    more = "streams" in scenario or "sustained_minutes" in scenario
    return Bench.model_validate({"latency": not more, **common, **scenario})


def things_of(paths: Sequence[Path], targets: Sequence[str] = ()) -> tuple[Thing, ...]:
    """Return the things at paths, every artifact of a run folder among them; the same path twice is two things.

    targets: of run folders, only artifacts for these.
    """
    found: list[Path] = []
    if targets and not any(any(path.glob("targets/*/*/artifact.json")) for path in paths):
        raise BadInput(f"--target {targets[0]}: chooses among the artifacts of a run folder, and none is given: leave it out")
    for path in paths:
        artifacts = sorted(record.parent for record in path.glob("targets/*/*/artifact.json"))
        chosen = [one for one in artifacts if not targets or one.parent.name in targets]
        if artifacts and not chosen:
            raise BadInput(f"{path}: has no artifacts for {', '.join(targets)}")
        found += chosen or [path]
    things = [thing_from(path) for path in found]
    labels = [thing.label for thing in things]
    named: list[Thing] = []
    for path, thing in zip(found, things, strict=True):
        label = thing.label if labels.count(thing.label) == 1 else str(path)
        again = sum(label == other.label or other.label.startswith(f"{label} (") for other in named)
        named.append(replace(thing, label=f"{label} ({again + 1})" if again else label))
    return tuple(named)
