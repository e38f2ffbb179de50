"""The parent's end of a page that times one thing: speaks the commands of bench/worker.py. The timing loop is in the page
(backends/web_clock.mjs), so no message lies between two calls.

In its words: load is InferenceSession.create on bytes that are in the page's memory, after the runtime's WebAssembly was compiled for
an earlier one. A call is from tensors in memory to outputs read back (getData). Memory is the heap that the runtime made itself in
WebAssembly, which grows in steps; how much of it a model added is not told.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from ..bench.process import PATIENCE, WorkerDied
from ..bench.scenarios import inputs_of
from ..errors import first_line
from ..export.check_parts import onnxruntime_web as pages
from .asked import Asked


class PageWorker(Asked):
    """One page for one thing. A context manager: leaving it closes the page.

    groups: thing -> how many calls lie between two readings of the clock, chosen in its first warm-up and kept for its other pages,
    so that all blocks of a thing are alike; whoever opens several pages for a thing lets them share it.
    page: whose server we are; alive: raises when its browser is gone; close: ends it. frame: of a page that holds several, which one.
    runtime: versions.
    """

    def __init__(
        self,
        label: str,
        page: pages.Page,
        alive: Callable[[], None],
        close: Callable[[], None],
        runtime: Mapping[str, str],
        frame: int | None = None,
    ) -> None:
        self.label, self.page, self._alive, self._close, self._runtime = label, page, alive, close, runtime
        self._frame = {} if frame is None else {"frame": frame}
        self._graphs: dict[str, int] = {}
        self.facts: dict[str, Any] = {}
        self.groups: MutableMapping[str, int] = {}
        self.hidden = False

    def __enter__(self) -> PageWorker:
        return self

    def __exit__(self, *rest: object) -> None:
        self._close()

    def obey(self, do: str, command: dict[str, Any], expected: float) -> dict[str, Any]:
        """Have the page do it. Raises WorkerDied, also when no answer came PATIENCE after `expected` seconds."""
        try:
            return self._obey(do, command, expected + PATIENCE)
        except RuntimeError as error:
            raise WorkerDied(f"{self.label}: the page that timed it failed\n  {first_line(error)}", self.label) from None

    def _page(self, job: Mapping[str, Any], arrays: Any = None, patience: float = PATIENCE) -> dict[str, Any]:
        head, _ = self.page.ask({**job, **self._frame}, arrays, self._alive, patience)
        return {key: value for key, value in head.items() if key != "id"}

    def _obey(self, do: str, command: dict[str, Any], patience: float) -> dict[str, Any]:
        if do == "start":
            self.facts = {**self.page.wait(self._alive, patience), **self._page({"do": "facts"})}
            return {"runtime": dict(self._runtime), "bytes": None}
        if do == "load":
            return self._load({graph: Path(file) for graph, file in command["files"].items()}, patience)
        if do == "prepare":
            given = inputs_of(
                command.get("inputs"), command.get("interfaces") or {}, self._graphs, command["batch"], command.get("seed") or 0
            )
            arrays = {f"{graph}/{name}": value for graph, named in given.items() for name, value in named.items()}
            return self._page({"do": "prepare", "graphs": list(self._graphs.items())}, arrays)
        if do == "warm-up":
            told = self._page({"do": "warm", **command}, patience=patience)
            self.groups.setdefault(self.label, told["group"])
            return told
        if do == "time":
            told = self._page({"do": "time", "group": self.groups[self.label], **command}, patience=patience)
            self.hidden |= told.pop("hidden")
            return told
        if do in ("first", "memory"):
            return self._page({"do": do}, patience=patience)
        raise RuntimeError(f"a page does not know the command `{do}`")

    def _load(self, files: Mapping[str, Path], patience: float) -> dict[str, Any]:
        seconds, providers = 0.0, dict[str, int]()
        for graph, file in files.items():
            told = self._page({"do": "load", **pages.publish(self.page, file)}, patience=patience)
            self._graphs[graph] = told["session"]
            seconds += told["seconds"]
            for name, nodes in told["providers"].items():
                providers[name] = providers.get(name, 0) + nodes
        return {"seconds": seconds, "providers": providers}

    def notes(self) -> list[str]:
        """Say what of this page makes its numbers less sure."""
        step = self.facts.get("step", 0) / 1000
        told = [f"the page's clock has steps of {step:g} µs"]
        group = self.groups.get(self.label, 1)
        if group > 1:
            told.append(
                f"{self.label}: a call takes less than 20 of them, so {group} calls are timed together and their mean is one sample: "
                "percentiles and slowest calls are of such means"
            )
        if not self.facts.get("isolated", True):
            told.append(
                "the page is not isolated, so it ran on 1 thread, by a coarse clock: open it as http://localhost or by https"
            )
        if self.hidden:
            told.append("the page was in the background for a while, where browsers slow pages down")
        return told
