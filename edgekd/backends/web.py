"""ONNX Runtime Web: WebAssembly or WebGPU, run in a real headless Chromium.

onnxruntime-web is no Python package. Where its dist folder is looked for: the environment variable EDGEKD_ONNXRUNTIME_WEB,
node_modules of the working folder, and share/edgekd/node_modules of the virtual environment, where `make setup` puts it.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import platform
import shutil
import sys
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import BadInput, Missing, first_line
from ..export.check_parts import onnxruntime_web as pages
from . import Means, chromium, onnxruntime

if TYPE_CHECKING:
    from ..export.graph import Arrays, Graph
    from ..quantize.variant import Variant
    from ..recipe import Scheme
    from ..targets import Target

PACKAGES = ("onnx", "onnxruntime")
OPTIONS = {"provider": ("wasm", "webgpu")}
CHECK = Path(pages.__file__)
PAGE = Path(__file__).with_name("web_page.html")
CLOCK = Path(__file__).with_name("web_clock.mjs")
VERSION = "1.30.0"
"""Of onnxruntime-web, that edgekd was tried with."""
VARIABLE = pages.VARIABLE
HOW = (
    f"npm install --ignore-scripts onnxruntime-web@{VERSION} in the working folder, "
    f"or set {VARIABLE} to the dist folder of an installed one"
)

interface = onnxruntime.interface
refuses_graph = onnxruntime.refuses_graph


def missing() -> str | None:
    """Nothing is needed to convert: what ships is ONNX."""
    return None


def refuses(scheme: Scheme, target: Target) -> str | None:
    """Say why this scheme cannot be stored for this target, and what to change; None when it can."""
    return onnxruntime.refuses(scheme, target)


def executes(target: Target) -> Means:
    """Say how this machine can execute what is made for a target: in Chromium, on WebGPU by a software GPU."""
    program, runtime = chromium.program(), runtime_folder()
    if program is None:
        return Means(None, str(chromium.missing()))
    if runtime is None:
        return Means(None, no_runtime())
    if reason := _broken(_provider(target), program, runtime):
        return Means(None, reason)
    where = f"by onnxruntime-web {runtime_version(runtime)} in headless {chromium.version(program)} on {platform.machine()}"
    if _provider(target) == "wasm":
        return Means("runtime", where)
    return Means("runtime", f"{where}, on SwiftShader, a software GPU: what it computes counts, its time does not", slow=True)


def runtime_version(runtime: Path) -> str:
    """Return the version of the onnxruntime-web whose dist folder this is; "?" where its package.json is not beside."""
    try:
        return str(json.loads((runtime.parent / "package.json").read_text(encoding="utf-8"))["version"])
    except (OSError, ValueError, KeyError):
        return "?"


def convert(variant: Variant, target: Target, folder: Path, graphs: Callable[[], Sequence[Graph]] = tuple) -> dict[str, Path]:
    """Write the variant's ONNX files, and check.html, which check.py opens in a browser.

    Weights alone in integers: WebAssembly gets them so that it expands them once, on loading. WebGPU has no Cast of 4 bits and
    gets the DequantizeLinear as it is, by which they stay small in the GPU's memory.
    """
    if _provider(target) == "wasm":
        made = onnxruntime.convert(variant, target, folder, graphs)
    else:
        from ..export.onnx import files_of

        made = {name: folder / source.name for name, source in variant.graphs.items()}
        for source in variant.graphs.values():
            for file in files_of(source):
                shutil.copyfile(file, folder / file.name)
    (folder / "check.html").write_text(page_of(_provider(target)), encoding="utf-8")
    return made


class WebSession:
    """A graph loaded in a page. providers: WebGPU or WASM -> nodes it took."""

    def __init__(self, browser: Browser, file: Path, loaded: dict[str, Any]) -> None:
        self._browser, self._file, self._number = browser, file, loaded["session"]
        self._inputs: list[str] = loaded["inputs"]
        self.providers: dict[str, int] = dict(sorted(loaded["providers"].items()))
        browser.sessions += 1
        weakref.finalize(self, browser.forget, self._number)

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Run once. Inputs that the graph does not have are left out."""
        given = {name: np.asarray(inputs[name]) for name in self._inputs}
        try:
            _, outputs = self._browser.ask({"do": "run", "session": self._number}, given)
        except RuntimeError as error:
            raise BadInput(f"{self._file}: ONNX Runtime Web cannot run it: {first_line(error)}") from None
        return outputs


def load(file: Path, target: Target | None = None, threads: int | None = None, exact: bool = False) -> Any:
    """Load one graph file in Chromium; threads: as many as onnxruntime-web takes itself when None. Raises BadInput for a file that
    it cannot load, Missing where there is no browser, or it ended.

    exact: by the desktop's ONNX Runtime with every optimisation off, which reads the same file.
    """
    if exact:
        return onnxruntime.load(file, target, threads, exact=True)
    provider = _provider(target)
    browser = _browser(provider, threads or 0)
    try:
        loaded, _ = browser.ask({"do": "load", **pages.publish(browser.page, file)})
    except RuntimeError as error:
        raise BadInput(f"{file}: ONNX Runtime Web cannot load it: {first_line(error)}") from None
    if provider == "webgpu" and not loaded["providers"]:
        raise BadInput(f"{file}: onnxruntime-web did not say which provider took which nodes; use version {VERSION}")
    return WebSession(browser, file, loaded)


class Browser:
    """Chromium with one page open in it, whose server we are. sessions: how many are loaded."""

    def __init__(self, provider: str, threads: int) -> None:
        runtime = runtime_folder()
        if runtime is None:
            raise Missing(no_runtime())
        self.sessions = 0
        self.page = pages.Page(page_of(provider), runtime, threads)
        try:
            self.chromium = chromium.Chromium(self.page.address, software_gpu=provider == "webgpu")
        except BaseException:
            self.page.close()
            raise
        try:
            facts = self.page.wait(self.chromium.alive, patience=120)
        except RuntimeError as error:
            self.close()
            raise Missing(f"the page for {provider} does not run in Chromium here: {first_line(error)}") from None
        except BaseException:
            self.close()
            raise
        if not facts["isolated"]:
            self.close()
            raise Missing(
                "the page is not isolated (crossOriginIsolated is false), so it has no threads: COOP and COEP are lost"
            )

    def ask(self, job: dict[str, Any], arrays: Arrays | None = None) -> Any:
        """Have the page do a job; return (head, arrays). Raises RuntimeError with what went wrong there."""
        return self.page.ask(job, arrays, self._alive)

    def forget(self, number: int) -> None:
        """Release a session."""
        self.sessions -= 1
        self.page.tell({"do": "close", "session": number})

    def close(self) -> None:
        """End Chromium and the server."""
        self.chromium.close()
        self.page.close()

    def _alive(self) -> None:
        try:
            self.chromium.alive()
        except RuntimeError as error:
            close_browsers([self])
            raise Missing(f"{error}; load the model again, a new one is started then") from None


_open: dict[tuple[str, int], Browser] = {}
"""(provider, threads) -> its browser: threads are set before a page's first session, so each setting has a page of its own."""


def _browser(provider: str, threads: int) -> Browser:
    if (provider, threads) not in _open:
        close_browsers([browser for browser in _open.values() if not browser.sessions])
        _open[provider, threads] = Browser(provider, threads)
    return _open[provider, threads]


def close_browsers(chosen: Sequence[Browser] | None = None) -> None:
    """End these browsers; None: all that run."""
    for key, browser in list(_open.items()):
        if chosen is None or browser in chosen:
            del _open[key]
            browser.close()


atexit.register(close_browsers)


def runtime_folder() -> Path | None:
    """Return onnxruntime-web's dist folder; None where there is none."""
    told = os.environ.get(VARIABLE)
    beside = [Path.cwd() / "node_modules", Path(sys.prefix) / "share" / "edgekd" / "node_modules"]
    places = [Path(told)] if told else [folder / "onnxruntime-web" / "dist" for folder in beside]
    return next((place for place in places if (place / "ort.wasm.min.mjs").is_file()), None)


def no_runtime() -> str:
    """Say that onnxruntime-web is not here, and what to do."""
    if told := os.environ.get(VARIABLE):
        return f"{VARIABLE} is set to `{told}`, where no ort.wasm.min.mjs lies. To get onnxruntime-web: {HOW}"
    return f"onnxruntime-web is not here: {HOW}"


@functools.cache
def _broken(provider: str, program: str, runtime: Path) -> str | None:
    """Say why a page for this provider does not run here; None when it does. Starts the browser, for a second or two.

    A verdict depends on it: one that could not be had because the browser was broken is asked for again once it is mended.
    """
    try:
        Browser(provider, 0).close()
    except Missing as error:
        return str(error)
    return None


def _provider(target: Target | None) -> str:
    return str(target.options.get("provider", "wasm")) if target else "wasm"


def page_of(provider: str, clock: bool = False) -> str:
    """Return the page that runs models on a provider, "wasm" or "webgpu". clock: it fetches /clock.mjs, and can time them."""
    html = PAGE.read_text(encoding="utf-8")
    assert 'data-provider="wasm"' in html
    return html.replace('data-provider="wasm"', f'data-provider="{provider}"' + " data-clock" * clock)
