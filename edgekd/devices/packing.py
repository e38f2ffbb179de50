"""What travels to a device: the clock's code as one file that Python starts, and the files of the things to time."""

from __future__ import annotations

import ast
import functools
import hashlib
import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Any

from ..bench.things import parts
from ..errors import BadInput, first_line
from . import kit_backends

ROOTS = ("edgekd.bench.agent", "edgekd.bench.worker", "edgekd.bench.rates", "edgekd.bench.threads")
"""Started on a device; they travel with every module that they import."""

STAY = ("edgekd.backends", "edgekd.targets")
"""What they do not find there: a kit has backends of its own, and no target files."""

MAIN = "__main__.py"
_HOME = Path(__file__).parents[1]
_NOT_RUN = {"golden.npz", "check.py", "check.html", "artifact.json"}


@functools.cache
def code() -> dict[str, bytes]:
    """Return the kit's modules: name in the archive -> source."""
    found = {f"{module.replace('.', '/')}.py": _file(module).read_bytes() for module in sorted(_reached(ROOTS))}
    found |= {f"{package}/__init__.py": b"" for package in ("edgekd", "edgekd/bench")}
    found["edgekd/backends/__init__.py"] = Path(kit_backends.__file__).read_bytes()
    for part in set(kit_backends.PARTS.values()):
        found[f"edgekd/backends/part_{part}.py"] = (_HOME / "export" / "check_parts" / f"{part}.py").read_bytes()
    found["edgekd/backends/build_engine.py"] = (_HOME / "export" / "build_engine_template.py").read_bytes()
    found[MAIN] = (_HOME / "devices" / "kit_main.py").read_bytes()
    return found


def pack(code: Mapping[str, bytes], files: Mapping[str, Path | bytes], out: IO[bytes]) -> None:
    """Write a .pyz of code and of other files, stored as they are: the same contents give the same bytes."""
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in sorted([*code.items(), *files.items()]):
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.external_attr, entry.create_system = 0o644 << 16, 3
            entry.compress_type = zipfile.ZIP_DEFLATED if name in code else zipfile.ZIP_STORED
            if isinstance(content, bytes):
                archive.writestr(entry, content)
                continue
            entry.file_size = content.stat().st_size
            with content.open("rb") as source, archive.open(entry, "w") as target:
                while piece := source.read(1 << 20):
                    target.write(piece)


def packed() -> bytes:
    """Return the kit that carries code alone."""
    made = io.BytesIO()
    pack(code(), {}, made)
    return made.getvalue()


def travelling(job: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Path]]:
    """Return a job as a device reads it, paths relative to the kit's folder, and what lies there: path -> this machine's file.

    Paths are named after contents, so that a file that is there already need not be sent again. Raises BadInput for a thing whose
    weights lie outside of its folder.
    """
    things, files = [], dict[str, Path]()
    for thing in job["things"]:
        mains = {graph: Path(file) for graph, file in thing["files"].items()}
        pieces = {piece: main.parent for main in mains.values() for piece in _pieces(main)}
        homes = list(dict.fromkeys(main.parent for main in mains.values()))
        names = {piece: f"{homes.index(home)}/{piece.relative_to(home).as_posix()}" for piece, home in pieces.items()}
        told = json.dumps(sorted((name, sha256(piece)) for piece, name in names.items()))
        folder = f"things/{hashlib.sha256(told.encode()).hexdigest()[:16]}"
        files |= {f"{folder}/{name}": piece for piece, name in names.items()}
        inputs = None
        if thing.get("inputs"):
            inputs = f"inputs/{sha256(Path(thing['inputs']))[:16]}.npz"
            files[inputs] = Path(thing["inputs"])
        # a package is a folder: it has pieces, and no name of its own
        there = {graph: f"{folder}/{homes.index(main.parent)}/{main.name}" for graph, main in mains.items()}
        things.append({**thing, "files": there, "inputs": inputs, "target": None})
    return {**job, "things": things}, files


def refuses(backend: str, files: Mapping[str, Path]) -> str | None:
    """Say why things of a backend do not travel, or not these files; None when they do."""
    if backend == "web":
        return "it is for a browser: --device browser"
    if backend not in kit_backends.RUNTIMES:
        return f"the backend `{backend}` does not travel: {', '.join(kit_backends.RUNTIMES)} do"
    for file in files.values():
        engine = file.suffix in (".engine", ".plan")
        if backend == "tensorrt" and not engine and not file.with_name("build_engine.json").is_file():
            return "it is neither an engine nor an artifact that comes with build_engine.py"
        if backend == "openvino" and b"<edgekd>" not in file.read_bytes():
            return f"{file.name} does not say which device it is for: make it with `edgekd export`, or time the .onnx file"
    return None


def lacks(backend: str, runtimes: Mapping[str, Any], python: str, system: str = "") -> str | None:
    """Say what has to be installed on a device to time things of a backend there, and how; None when all is there.

    runtimes: module -> version there, None for one that is not. python: its path there. system: what runs there, "macOS 15.1".
    """
    if backend == "coreml" and system and not system.startswith("macOS"):
        return "Core ML exists on Apple's systems alone"
    wanted = [module for module in ("numpy", *kit_backends.RUNTIMES[backend]) if not runtimes.get(module)]
    if not wanted:
        return None
    names = [kit_backends.DISTRIBUTIONS[module][0] for module in wanted]
    are = "are" if len(names) > 1 else "is"
    return f"{' and '.join(names)} {are} not installed for {python} there: {python} -m pip install {' '.join(names)}"


def sha256(file: Path) -> str:
    """Return a file's SHA-256."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _pieces(main: Path) -> list[Path]:
    """Return the files that a graph's main file needs at run time."""
    found = parts(main)
    if main.suffix == ".onnx" and main.is_file():
        found += _external(main)
    record = main.parent / "artifact.json"
    if record.is_file():
        listed = [one["path"] for one in json.loads(record.read_text(encoding="utf-8"))["files"]]
        found += [
            main.parent / name
            for name in listed
            if name not in _NOT_RUN and ".." not in name and (main.parent / name).is_file()
        ]
    return list(dict.fromkeys(found))


def _external(main: Path) -> Iterator[Path]:
    """Yield the files beside an ONNX file that hold its weights. Raises BadInput for one outside of its folder."""
    import onnx

    try:
        graph = onnx.load(str(main), load_external_data=False).graph
    except Exception as error:  # protobuf raises its own types
        raise BadInput(f"{main}: cannot be read as ONNX ({first_line(error)})") from None
    named = {entry.value for tensor in graph.initializer for entry in tensor.external_data if entry.key == "location"}
    for name in sorted(named):
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise BadInput(f"{main}: its weights lie at {name}, outside of its folder; save it again with them beside it")
        yield main.parent / name


def _file(module: str) -> Path:
    return _HOME.parent / f"{module.replace('.', '/')}.py"


def _reached(roots: tuple[str, ...]) -> set[str]:
    """Return the modules that roots import, themselves included."""
    found: set[str] = set()
    todo = list(roots)
    while todo:
        module = todo.pop()
        if module not in found:
            found.add(module)
            todo += _imports(module)
    return found


def _imports(module: str) -> Iterator[str]:
    """Yield the modules of edgekd that a module imports when it runs."""
    tree = ast.parse(_file(module).read_text(encoding="utf-8"))
    for checked in [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]:
        checked.body = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        package = ".".join([*module.split(".")[: -node.level], *([node.module] if node.module else [])])
        for name in [package, *(f"{package}.{alias.name}" for alias in node.names)]:
            if _file(name).is_file() and name not in STAY:
                yield name
