"""ONNX Runtime in a browser: this program serves check.html, and the page that a browser opened fetches its work here.

A page has threads and a GPU only where it is isolated (COOP and COEP headers) and its address is trusted: https, or localhost.
For a phone: `adb reverse tcp:PORT tcp:PORT`, then open the address there.
"""

from __future__ import annotations

import errno
import json
import os
import queue
import secrets
import struct
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

NEEDS = ("numpy", "onnxruntime-web")
VARIABLE = "EDGEKD_ONNXRUNTIME_WEB"
TYPES = {".html": "text/html", ".mjs": "text/javascript", ".js": "text/javascript", ".wasm": "application/wasm"}
PATIENCE = 600.0  # seconds for one job
LARGEST = 1 << 30  # bytes of an answer
TOLD: Any = {"isolated": bool, "cores": int, "threads": int, "agent": str, "version": str, "adapter": (dict, type(None))}
ISOLATION = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}


def pack(head: dict[str, Any], arrays: dict[str, Any]) -> bytes:
    """Return head and arrays as bytes: uint32 length of the JSON, the JSON, then each array, everything filled up to 8 bytes."""
    described, data, at = [], [], 0
    for name, values in arrays.items():
        # not ascontiguousarray, which makes a number an array of one
        raw = values.astype(values.dtype.newbyteorder("<")).tobytes()
        described.append({"name": name, "type": values.dtype.name, "dims": list(values.shape), "at": at, "bytes": len(raw)})
        data.append(raw + bytes(-len(raw) % 8))
        at += len(data[-1])
    text = json.dumps({**head, "tensors": described}).encode("utf-8")
    text += b" " * (-(len(text) + 4) % 8)
    return struct.pack("<I", len(text)) + text + b"".join(data)


def unpack(body: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (head, arrays) of what pack() made, here or in the page."""
    import numpy as np

    (length,) = struct.unpack("<I", body[:4])
    head, data = json.loads(body[4 : 4 + length].decode("utf-8")), body[4 + length :]
    arrays = {}
    for told in head.pop("tensors", []):
        kind = np.dtype(told["type"]).newbyteorder("<")
        values = np.frombuffer(data[told["at"] : told["at"] + told["bytes"]], kind)
        arrays[told["name"]] = values.reshape(told["dims"]).astype(np.dtype(told["type"]))
    return head, arrays


class Page:
    """A server for one page: hands it jobs, takes their results. address: what the browser is to open.

    All that is served lies below a path of its own that is drawn by lot (key): who finds the port, another site in the same browser
    too, gets nothing and can send nothing.
    page: the HTML shown; runtime: onnxruntime-web's dist folder; threads: of it (0: as many as it takes itself).
    at: host and port to serve on (port 0: any that is free). facts: what the page told of itself.
    """

    def __init__(self, page: str, runtime: Path, threads: int, at: tuple[str, int] = ("127.0.0.1", 0)) -> None:
        self.key = secrets.token_hex(4)  # short enough for a person to type
        self.files: dict[str, Path] = {}
        self.facts: dict[str, Any] = {}
        self._jobs: queue.Queue[bytes] = queue.Queue()
        self._results: queue.Queue[bytes] = queue.Queue()
        self._lock, self._count, self._threads = threading.Lock(), 0, threads
        self._guard, self._name, self._connected, self._left = threading.Lock(), "", 0, time.monotonic()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # else each answer waits 40 ms, for the browser to confirm its head

            def log_message(self, format: str, *args: Any) -> None:
                pass

            def setup(self) -> None:
                super().setup()
                owner._connect(1)

            def finish(self) -> None:
                owner._connect(-1)
                super().finish()

            def answer(self, status: int, body: bytes = b"", kind: str = "application/octet-stream", to: str = "") -> None:
                self.send_response(status)
                if to:
                    self.send_header("Location", to)
                for key, value in {**ISOLATION, "Content-Type": kind, "Content-Length": str(len(body))}.items():
                    self.send_header(key, value)
                self.end_headers()
                self.wfile.write(body)

            def place(self) -> str | None:
                """Return the path asked for below the key; None where the key is another."""
                key, found, path = unquote(urlsplit(self.path).path)[1:].partition("/")
                return found + path if secrets.compare_digest(key.encode(), owner.key.encode()) else None

            def do_GET(self) -> None:
                path = self.place()
                if path is None:
                    return self.answer(403, b"open the whole address that was printed", "text/plain")
                if path == "/job":
                    return self.job() if owner._first(urlsplit(self.path).query) else self.answer(409)
                if not path:  # the page's addresses are relative to a folder
                    return self.answer(302, to=f"/{owner.key}/?{urlsplit(self.path).query}")
                if path == "/":
                    return self.answer(200, page.encode("utf-8"), "text/html; charset=utf-8")
                name = path.rpartition("/")[2]
                if path.startswith("/ort/") and name not in {"", ".", ".."}:
                    file = runtime / name
                else:
                    file = owner.files.get(path, Path())
                if not file.is_file():
                    return self.answer(404)
                return self.answer(200, file.read_bytes(), TYPES.get(file.suffix, "application/octet-stream"))

            def job(self) -> None:
                try:
                    body = owner._jobs.get(timeout=10)
                except queue.Empty:
                    return self.answer(204)
                return self.answer(200, body)

            def do_POST(self) -> None:
                length = self.headers.get("Content-Length") or ""
                right, known = self.place() == "/result", length.isascii() and length.isdigit()
                if not right or not known or int(length) > LARGEST:
                    self.close_connection = True  # what was sent stays unread
                    return self.answer(403 if not right else 413 if known else 411)
                owner._results.put(self.rfile.read(int(length)))
                return self.answer(204)

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # a browser that goes away in the middle of an answer

        self._server = Server(at, Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True).start()

    @property
    def address(self) -> str:
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}/{self.key}/?threads={self._threads}"

    @property
    def alone(self) -> float:
        """Seconds since the last browser went: 0 while one is connected."""
        with self._guard:
            return 0.0 if self._connected else time.monotonic() - self._left

    def _connect(self, change: int) -> None:
        with self._guard:
            self._connected, self._left = self._connected + change, time.monotonic()

    def _first(self, name: str) -> bool:
        """Say whether a page may have work: pages that name themselves only if they were the first to ask."""
        with self._guard:
            self._name = self._name or name
            return not name or name == self._name

    def wait(self, alive: Any = None, patience: float = PATIENCE) -> dict[str, Any]:
        """Wait until a browser opened the page and the runtime is loaded there; return what it says of itself."""
        if not self.facts:
            told, _ = self._result(0, alive, patience)
            for name, kind in TOLD.items():
                if not isinstance(told.get(name), kind):
                    raise RuntimeError(f"what the page says of itself cannot be: `{name}` is {told.get(name)!r:.100}")
            self.facts = {name: told[name] for name in TOLD}
            self.facts["agent"] = self.facts["agent"][:500]
            if self.facts["adapter"]:
                self.facts["adapter"] = {str(key): str(value)[:200] for key, value in self.facts["adapter"].items()}
        return self.facts

    def ask(self, job: dict[str, Any], arrays: Any = None, alive: Any = None, patience: float = PATIENCE) -> Any:
        """Have the page do one job; return (head, arrays). alive: called again and again, raises when the browser is gone."""
        with self._lock:
            self._count += 1
            self._jobs.put(pack({**job, "id": self._count}, arrays or {}))
            return self._result(self._count, alive, patience)

    def tell(self, job: dict[str, Any]) -> None:
        """Have the page do a job that has no result."""
        self._jobs.put(pack({**job, "id": -1}, {}))

    def _result(self, number: int, alive: Any, patience: float) -> Any:
        end = time.monotonic() + patience
        while time.monotonic() < end:
            try:
                body = self._results.get(timeout=0.25)
            except queue.Empty:
                if alive is not None:
                    alive()
                continue
            try:
                head, arrays = unpack(body)
                known = isinstance(head["id"], int)
            except (ValueError, KeyError, TypeError, AttributeError, struct.error):
                known = False
            if not known:
                raise RuntimeError("the page sent what is no answer")
            if head["id"] not in (number, -1):
                continue  # the answer to a question that was given up
            if head.get("error"):
                raise RuntimeError(str(head["error"]))
            if head["id"] == number:
                return head, arrays
        raise RuntimeError(f"the page did not answer within {patience:.0f} s")

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()


def publish(page: Page, path: Path) -> dict[str, Any]:
    """Let the page fetch a model; return where it finds it, and the weights that lie beside it."""
    folder = f"/model/{len(page.files)}/"
    data = path.with_name(f"{path.name}.data")
    for file in [path, *([data] if data.is_file() else [])]:
        page.files[folder + file.name] = file
    return {"model": folder[1:] + path.name, "external": [data.name] if data.is_file() else []}


def runtime_folder() -> Path:
    """Return onnxruntime-web's dist folder. Raises ImportError, with how to get it."""
    told = os.environ.get(VARIABLE)
    beside = [folder / "node_modules/onnxruntime-web/dist" for folder in (Path(__file__).resolve().parent, Path.cwd())]
    places = [Path(told)] if told else beside
    for place in places:
        if (place / "ort.wasm.min.mjs").is_file():
            return place
    raise ImportError(
        f"onnxruntime-web is not here (looked in {', '.join(map(str, places))}): "
        f"npm install --ignore-scripts onnxruntime-web@1.30.0 in this folder, or set {VARIABLE} to its dist folder"
    )


PAGES: dict[int, Page] = {}
SPENT = [0.0]


def version() -> str:
    """Return onnxruntime-web's version. Raises ImportError where it is not here."""
    package = runtime_folder().parent / "package.json"
    return str(json.loads(package.read_text(encoding="utf-8"))["version"]) if package.is_file() else "unknown"


def clock() -> float:
    """Return the seconds that the page has spent in the runtime: the way there and back is not the model's."""
    return SPENT[0]


def about() -> dict[str, Any]:
    """Return what the page says of its browser, which need not be on this machine."""
    if not any(page.facts for page in PAGES.values()):
        return {}
    facts = next(iter(PAGES.values())).facts
    gpu = facts["adapter"] or {}
    software = gpu.get("architecture") == "swiftshader"
    name = " ".join(word for word in (gpu.get("vendor"), gpu.get("architecture"), gpu.get("description")) if word)
    return {
        "processor": name or f"{facts['cores']} cores",
        "system": facts["agent"],
        "emulator": "SwiftShader, a GPU in software" if software else None,
        "browser": {key: facts[key] for key in ("isolated", "threads", "cores", "adapter")},
    }


def open_session(path: Path, threads: int) -> tuple[Any, float]:
    """Load one graph file in the page, which somebody opens in a browser first; return (call, seconds)."""
    if threads not in PAGES:
        html = Path(__file__).resolve().with_name("check.html").read_text(encoding="utf-8")
        PAGES[threads] = Page(html, runtime_folder(), threads)
        print(
            f"open this address in a browser (within {PATIENCE:.0f} s): {PAGES[threads].address}", file=sys.stderr, flush=True
        )
        try:
            isolated = PAGES[threads].wait()["isolated"]
        except RuntimeError as error:  # nobody opened it, or the browser has no GPU
            raise OSError(errno.ENODEV, str(error)) from None
        if not isolated:
            print(
                "the page is not isolated, so it runs on 1 thread: open it as http://127.0.0.1 or over https", file=sys.stderr
            )
    page = PAGES[threads]
    loaded, _ = page.ask({"do": "load", **publish(page, path)})

    def call(inputs: dict[str, Any]) -> dict[str, Any]:
        head, outputs = page.ask({"do": "run", "session": loaded["session"]}, inputs)
        SPENT[0] += head["seconds"]
        return dict(outputs)

    call.providers = loaded["providers"]  # type: ignore[attr-defined]
    return call, loaded["seconds"]
