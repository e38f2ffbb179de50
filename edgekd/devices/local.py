"""This machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .. import host
from ..bench import environment, schedule
from ..bench.process import Worker
from ..errors import BadInput

if TYPE_CHECKING:
    from ..bench.things import Thing
    from . import Tell

HELP = "local"


class Local:
    """This machine: every backend that is installed, each thing in a process of its own."""

    address = "local"

    def __init__(self) -> None:
        self.title = host.cpu_model()

    def __enter__(self) -> Local:
        return self

    def __exit__(self, *rest: object) -> None:
        pass

    def describe(self) -> dict[str, Any]:
        """Describe this machine."""
        return environment.describe()

    def takes(self, thing: Thing) -> str | None:
        """Say why a thing cannot be timed here; None when it can: its own runtime is here, no simulator or interpreter of it."""
        from ..backends import backend_of
        from ..targets import load_target, target_names

        backend = backend_of(thing.backend)
        if thing.backend == "web":
            return "it is for a browser: --device browser"
        if thing.target_file:
            means = backend.executes(load_target(thing.target_file))
        else:
            known = [load_target(name) for name in target_names()]
            all_means = [backend.executes(target) for target in known if target.backend == thing.backend]
            if not all_means:  # a backend of another package
                return None
            means = max(all_means, key=lambda one: (one.seconds_are_the_devices, one.by == "runtime"))
        if means.by is None:
            return means.why
        if means.by != "runtime" or means.slow:
            return f"what executes it here is no device ({means.why or means.by}): its seconds say nothing"
        return None

    def scenarios(self) -> frozenset[str]:
        """Return all scenarios."""
        return frozenset({"single-stream", "chain", "generation", "streams", "sustained"})

    def run(self, job: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
        """Time a job's things here."""
        return schedule.run(job, Worker, tell)

    def rates(self, threads: int) -> dict[str, Any] | None:
        """Return this machine's matrix rate and bandwidth, from the cache where it has them."""
        from ..bench import roofline

        return roofline.rates_of(threads)


def open_(address: str) -> Local:
    """Return this machine. Raises BadInput for anything behind `local`."""
    if address != "local":
        raise BadInput(f"device `{address}`: this machine is `local`, with nothing behind it")
    return Local()
