"""A browser: ONNX Runtime Web in WebAssembly or on WebGPU, in a headless Chromium here, or in any browser that opens our page."""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from .. import host
from ..backends import chromium, web
from ..bench import environment, schedule
from ..errors import BadInput, Missing, first_line
from ..export.check_parts import onnxruntime_web as pages
from .browser_worker import PageWorker
from .elsewhere import elsewhere

if TYPE_CHECKING:
    from ..bench.things import Thing
    from . import Tell

HELP = "browser[?provider=webgpu], browser://HOST:PORT[?provider=webgpu]"
OPENS = 600.0
"""Seconds that we wait for somebody to open the page."""
GONE = 10.0
"""A browser with no connection to us for so many seconds has been closed; an open page keeps asking for work."""
SOFTWARE = (
    "the only WebGPU adapter that Chromium finds here is SwiftShader, a GPU in software: its seconds are no device's. "
    "Time WebGPU where there is a GPU (browser://HOST:PORT?provider=webgpu), or to see it run all the same: "
    "browser?provider=webgpu&software=1"
)


class Browser:
    """A browser as a device. Each thing has a page of its own."""

    def __init__(self, address: str, title: str, provider: str, source: Headless | Visitor) -> None:
        self.address, self.title, self.provider, self._source = address, title, provider, source

    def __enter__(self) -> Browser:
        self._source.enter()
        self.title = self._source.title
        return self

    def __exit__(self, *rest: object) -> None:
        self._source.leave()

    def describe(self) -> dict[str, Any]:
        """Describe it, as far as it tells: of a browser that somebody opened, what its page may know."""
        return self._source.describe()

    def takes(self, thing: Thing) -> str | None:
        """Say why a thing cannot be timed here; None when it can: .onnx files, whatever they were made for but another provider."""
        if any(file.suffix != ".onnx" for file in thing.files.values()):
            return f"a browser runs .onnx files, and this is for {thing.backend}"
        from ..bench.things import weights_of

        for file in thing.files.values():
            if strange := [part.name for part in weights_of(file) if part.name != f"{file.name}.data"]:
                return f"its weights lie in {strange[0]}, and a page looks for {file.name}.data: save it with that location"
        if thing.backend not in ("onnxruntime", "web"):
            return f"it was made for {thing.backend}; give a browser what was made for onnxruntime or web"
        if thing.backend == "web" and thing.target_file:
            from ..targets import load_target

            made_for = str(load_target(thing.target_file).options.get("provider", "wasm"))
            if made_for != self.provider:
                other = "browser?provider=webgpu" if made_for == "webgpu" else "browser"
                return f"it was made for {made_for}, and this device is {self.provider}: --device '{other}'"
        return None

    def scenarios(self) -> frozenset[str]:
        """Return the scenarios of which the page knows how a call is made."""
        return frozenset({"single-stream", "chain", "sustained"})

    def run(self, job: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
        """Time a job's things, in pages. Raises WorkerDied; Missing when a browser that somebody opened is closed."""
        workers: list[PageWorker] = []
        groups: dict[str, int] = {}
        threads = {thing["label"]: schedule.threads_of(thing, job) for thing in job["things"]}

        def open_worker(label: str) -> PageWorker:
            workers.append(self._source.page(label, threads[label]))
            workers[-1].groups = groups
            return workers[-1]

        away = isinstance(self._source, Visitor)
        told = schedule.run({**job, "meter": not away}, open_worker, tell)
        if away:
            around = {"cpu": self._source.describe()["cpu"], "notes": []}
            told = elsewhere(told, around, "a page cannot read what its device draws")
        notes = [note for worker in workers for note in worker.notes()]
        told["around"]["notes"] = [*told["around"]["notes"], *dict.fromkeys(notes)]
        return told

    def rates(self, threads: int) -> dict[str, Any] | None:
        """Return None: what a browser's arithmetic reaches is not measured."""
        return None


class Headless:
    """A headless Chromium on this machine for each page: a process of its own, as everything that is timed."""

    def __init__(self, provider: str, software: bool) -> None:
        self._provider, self._gpu = provider, {"software_gpu": software, "real_gpu": provider == "webgpu" and not software}
        self._facts: dict[str, Any] = {}
        self.title = "headless Chromium"

    def enter(self) -> None:
        """Look whether a page runs here. Raises Missing, with what to do."""
        if reason := chromium.missing():
            raise Missing(reason)
        self._runtime = _runtime(self._provider)
        with self.page("this machine", 1) as worker:
            try:
                self._facts = worker.page.wait(worker._alive, 120)
            except RuntimeError as error:
                raise Missing(f"a page for {self._provider} does not run in Chromium here: {first_line(error)}") from None
        adapter = self._facts["adapter"] or {}
        if adapter.get("architecture") == "swiftshader" and not self._gpu["software_gpu"]:
            raise Missing(SOFTWARE)
        by = " ".join(filter(None, (adapter.get("vendor"), adapter.get("architecture")))) or host.cpu_model()
        self.title = f"{chromium.version(str(chromium.program()))} on {by}"

    def leave(self) -> None:
        """Pages are closed by whoever opened them."""

    def describe(self) -> dict[str, Any]:
        """Describe this machine, and the browser."""
        told = {**environment.describe(), "browser": self.title, "adapter": self._facts.get("adapter")}
        return {**told, "packages": {**(told.get("packages") or {}), **self._runtime}}

    def page(self, label: str, threads: int) -> PageWorker:
        """Start a Chromium that opens a page."""
        runtime = web.runtime_folder()
        assert runtime is not None
        page = pages.Page(web.page_of(self._provider, clock=True), runtime, threads)
        page.files["/clock.mjs"] = web.CLOCK
        try:
            browser = chromium.Chromium(page.address, **self._gpu)
        except BaseException:
            page.close()
            raise

        def close() -> None:
            browser.close()
            page.close()

        return PageWorker(label, page, browser.alive, close, self._runtime)


class Visitor:
    """Whatever browser opens our page; each thing gets a page within it."""

    def __init__(self, provider: str, at: tuple[str, int]) -> None:
        self._provider, self._at = provider, at
        self._page: pages.Page | None = None
        self._facts: dict[str, Any] = {}
        self._count = 0
        self.title = "a browser"

    def enter(self) -> None:
        """Serve the page and wait for a browser. Raises Missing when none comes."""
        self._runtime = _runtime(self._provider)
        runtime = web.runtime_folder()
        assert runtime is not None
        try:
            self._page = pages.Page(web.page_of(self._provider, clock=True), runtime, 0, self._at)
        except OSError as error:
            busy = "another program has that port" if error.errno == errno.EADDRINUSE else first_line(error)
            raise BadInput(f"device browser://{self._at[0]}:{self._at[1]}: cannot serve there ({busy}); give another") from None
        self._page.files["/clock.mjs"] = web.CLOCK
        try:
            self._welcome(self._page)
        except BaseException:
            self.leave()
            raise

    def _welcome(self, page: pages.Page) -> None:
        host_name, port = urlsplit(page.address).hostname, urlsplit(page.address).port
        shown = "THIS MACHINE'S NAME" if host_name in ("0.0.0.0", "::") else host_name
        print(
            f"Open http://{shown}:{port}/{page.key}/ in the browser to be timed (within {OPENS:.0f} s); leave it open and in front.\n"
            f"A phone on a cable: adb reverse tcp:{port} tcp:{port}, then http://localhost:{port}/{page.key}/ there.\n"
            "Threads and WebGPU need an address that browsers trust: localhost, or https. By any other it runs on 1 thread.",
            file=sys.stderr,
            flush=True,
        )
        try:
            self._facts = dict(page.wait(None, OPENS))
            head, _ = page.ask({"do": "facts"}, None, self._alive, 30)
        except RuntimeError as error:
            raise Missing(f"no page to time in: {first_line(error)}") from None
        for name in ("platform", "platformVersion", "architecture", "model"):
            self._facts[name] = head[name][:200] if isinstance(head.get(name), str) else None
        self.title = _title(self._facts)

    def leave(self) -> None:
        """Stop serving; the page says so."""
        if self._page is not None:
            self._page.close()
            self._page = None

    def describe(self) -> dict[str, Any]:
        """Describe the browser, and its device as far as a page may know it."""
        facts = self._facts
        return {
            "cpu": facts.get("model") or self.title,
            "architecture": facts.get("architecture") or None,
            "flags": [],
            "vnni": None,
            "cores": facts["cores"],
            # a page that is not isolated has no threads; of the others' cores it cannot tell which share their arithmetic
            "physical_cores": facts["cores"] if facts["isolated"] else 1,
            "governor": None,
            "memory_bytes": None,
            "os": " ".join(filter(None, (facts.get("platform"), facts.get("platformVersion")))) or None,
            "python": None,
            "packages": self._runtime,
            "browser": facts["agent"],
            "adapter": facts["adapter"],
            "isolated": facts["isolated"],
        }

    def page(self, label: str, threads: int) -> PageWorker:
        """Have the page open another within itself."""
        page = self._page
        assert page is not None
        self._count += 1
        number = self._count
        try:
            page.ask({"do": "enter", "number": number, "threads": threads}, None, self._alive, 90)
        except RuntimeError as error:
            raise Missing(f"{label}: no page could be opened in the browser: {first_line(error)}") from None
        return PageWorker(label, page, self._alive, lambda: page.tell({"do": "leave", "number": number}), self._runtime, number)

    def _alive(self) -> None:
        if self._page is not None and self._page.alone > GONE:
            raise Missing(f"{self.title}: the browser was closed, or lost its connection; open the page again for another run")


def _runtime(provider: str) -> dict[str, str]:
    """Return the version of onnxruntime-web. Raises Missing, with how to get it."""
    runtime = web.runtime_folder()
    if runtime is None:
        raise Missing(web.no_runtime())
    return {"onnxruntime-web": web.runtime_version(runtime)}


def _title(facts: Mapping[str, Any]) -> str:
    """Name a browser and what it is on.

    >>> _title({"agent": "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 Chrome/150.0.0.0 Mobile Safari/537.36", "model": "Pixel 9"})
    'Chrome 150 on Pixel 9'
    """
    agent = str(facts.get("agent"))
    named = next(
        (found for name in ("Firefox", "Edg", "Chrome", "Version") if (found := re.search(rf"{name}/(\d+)", agent))), None
    )
    browser = (
        f"{named[0].partition('/')[0].replace('Version', 'Safari').replace('Edg', 'Edge')} {named[1]}" if named else "a browser"
    )
    system = re.search(r"\(([^;)]+)", agent)
    return f"{browser} on {facts.get('model') or facts.get('platform') or (system[1] if system else 'a device')}"


def open_(address: str) -> Browser:
    """Return the browser of an address, not yet opened. Raises BadInput for an address that is not as in HELP."""
    parsed = urlsplit(address if "://" in address else address.replace("browser", "browser://", 1))
    options = {key: values[-1] for key, values in parse_qs(parsed.query, keep_blank_values=True).items()}
    provider, software = options.pop("provider", "wasm"), options.pop("software", "0")
    try:
        port = parsed.port
    except ValueError:
        port = None
    here = not parsed.netloc and "://" not in address
    whole = here or (parsed.hostname and port is not None)
    if parsed.scheme != "browser" or parsed.path or options or not whole or provider not in web.OPTIONS["provider"]:
        raise BadInput(f"device `{address}`: it is written {HELP}")
    if software not in ("0", "1") or (software == "1" and (provider != "webgpu" or not here)):
        raise BadInput(
            f"device `{address}`: software=1 is for browser?provider=webgpu&software=1, where SwiftShader stands in for a GPU"
        )
    if here:
        return Browser(address, "headless Chromium", provider, Headless(provider, software == "1"))
    return Browser(address, "a browser", provider, Visitor(provider, (str(parsed.hostname), int(port or 0))))
