"""Where a run lives on disk: stage folders, fingerprints, atomic commit, manifest, lock.

A stage is a folder with a fingerprint of all it depends on. It is filled under RUN/.partial and renamed when whole, so a
kill at any instant leaves either no stage or a finished one.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import BadInput

RECORD = ".stage.json"


@dataclass(frozen=True)
class Stage:
    """A finished stage: its folder, and whether it was found finished or made now."""

    name: str
    folder: Path
    fingerprint: str
    seconds: float
    cached: bool


def fingerprint(*parts: Any) -> str:
    """Return a SHA-256 over the canonical JSON of `parts`, which must be plain data."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def finished(run: Path, folder: str, fingerprint: str) -> Stage | None:
    """Return the stage in RUN/folder if it is whole and was made from exactly these inputs, else None."""
    home = run / folder
    try:
        record = json.loads((home / RECORD).read_text())
        if record["fingerprint"] != fingerprint:
            return None
        for name, (size, digest) in record["files"].items():
            path = home / name
            if path.stat().st_size != size or file_hash(path) != digest:
                return None  # damaged or edited since: make it again rather than ship it
    except (OSError, ValueError, KeyError):
        return None
    return Stage(record["name"], home, fingerprint, record["seconds"], cached=True)


def made_from(run: Path, folder: str, fingerprint: str) -> bool:
    """Say whether the stage in RUN/folder was made from exactly these inputs. Its files are not looked at, so it takes no time."""
    try:
        return bool(json.loads((run / folder / RECORD).read_text())["fingerprint"] == fingerprint)
    except (OSError, ValueError, KeyError):
        return False


def changed_file(run: Path, folder: str, fingerprint: str) -> str | None:
    """Return the file of a stage made from exactly these inputs that is no longer what was made; None when there is none."""
    try:
        record = json.loads((run / folder / RECORD).read_text())
        if record["fingerprint"] != fingerprint:
            return None
        for name, (_, digest) in record["files"].items():
            path = run / folder / name
            if not path.is_file() or file_hash(path) != digest:
                return f"{folder}/{name}"
    except (OSError, ValueError, KeyError):
        pass
    return None


def make(run: Path, name: str, folder: str, fingerprint: str, fill: Callable[[Path], None]) -> Stage:
    """Fill a stage and commit it. `fill` gets a folder, which still holds what an interrupted run left in it."""
    partial = run / ".partial" / f"{folder.replace('/', '__')}@{fingerprint[:16]}"
    for stale in partial.parent.glob(f"{folder.replace('/', '__')}@*"):
        if stale != partial:
            shutil.rmtree(stale, ignore_errors=True)
    partial.mkdir(parents=True, exist_ok=True)
    before = _spent(partial)
    start = time.monotonic()
    try:
        fill(partial)
    except BaseException:
        with contextlib.suppress(OSError):
            _note_spent(partial, before + time.monotonic() - start)
        raise
    seconds = round(before + time.monotonic() - start, 3)
    (partial / ".spent").unlink(missing_ok=True)
    files = {str(p.relative_to(partial)): (p.stat().st_size, file_hash(p)) for p in sorted(partial.rglob("*")) if p.is_file()}
    record = {"name": name, "fingerprint": fingerprint, "seconds": seconds, "files": files}
    write_text(partial / RECORD, json.dumps(record, indent=1))
    _commit(partial, run / folder, run / ".partial")
    return Stage(name, run / folder, fingerprint, seconds, cached=False)


def _spent(partial: Path) -> float:
    try:
        return float((partial / ".spent").read_text())
    except (OSError, ValueError):
        return 0.0


def _note_spent(partial: Path, seconds: float) -> None:
    write_text(partial / ".spent", f"{seconds:.3f}")


def _commit(partial: Path, home: Path, trash: Path) -> None:
    for path in partial.rglob("*"):
        if path.is_file():
            _sync(path)
    home.parent.mkdir(parents=True, exist_ok=True)
    old = trash / f"old-{home.name}-{os.getpid()}"
    if home.exists():
        home.rename(old)
    partial.rename(home)
    _sync(home.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees either the old or the new content, whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


# --- the run folder as a whole -----------------------------------------------------------------


def read_manifest(run: Path) -> dict[str, Any]:
    """Return RUN/manifest.json. Raises BadInput when the folder is no run or the manifest is damaged."""
    path = run / "manifest.json"
    if not run.is_dir():
        raise BadInput(f"{run}: no such folder. Give a run folder: the -o of `edgekd compress` or `edgekd distill`")
    if not path.is_file():
        raise BadInput(f"{run}: not a run folder, it has no manifest.json. `edgekd compress RECIPE -o {run}` makes one")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["schema"] != 1:
            raise BadInput(f"{path}: schema {manifest['schema']} is not known to this edgekd (it reads 1); update edgekd")
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(
            f"{path}: damaged ({error}); run `edgekd compress RECIPE -o {run}` again, finished stages are kept"
        ) from None
    return dict(manifest)


def write_manifest(run: Path, manifest: dict[str, Any]) -> None:
    """Write RUN/manifest.json atomically."""
    write_text(run / "manifest.json", json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def identity(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return what makes a recipe the same one after its settings changed: task, data, teacher and student."""
    return {
        "task": recipe["task"],
        "data": recipe["data"]["source"],
        "teacher": (recipe.get("teacher") or {}).get("model"),
        "student": recipe["student"]["model"],
    }


def _same(there: Any, here: Any) -> bool:
    """Say whether two references are one: equal, or a file or folder that was moved, of the old name and no longer at the old place."""
    if there == here or not isinstance(there, str) or not isinstance(here, str):
        return bool(there == here)
    (kind, old, function), new = _parts(there), _parts(here)
    gone = not os.path.exists(old)  # Path.exists() raises where a folder above may not be read, such as another user's home
    return old.is_absolute() and gone and (kind, old.name, function) == (new[0], new[1].name, new[2])


def _parts(reference: str) -> tuple[str, Path, str]:
    """Return (py:, hf: or nothing; the file or folder; the function) of a model or data source as in a recipe."""
    kind = reference[:3] if reference.startswith(("py:", "hf:")) else ""
    path = reference.removeprefix(kind)
    path, _, function = path.rpartition(":") if kind == "py:" else (path, "", "")
    return kind, Path(path), function


def has_stages(run: Path) -> bool:
    """Say whether any stage in the run folder is finished: before that, nothing would be lost."""
    return any(".partial" not in path.relative_to(run).parts for path in run.rglob(RECORD))


def check(run: Path, recipe: dict[str, Any], kind: str) -> None:
    """Check that a run folder may be made there, or is this recipe's and of this kind (compress, train). Raises BadInput."""
    if run.exists() and not run.is_dir():
        raise BadInput(f"{run}: is a file; give -o a folder")
    if run.is_dir():
        others = [p.name for p in run.iterdir() if p.name not in {".lock", ".partial"}]
        if (run / "manifest.json").is_file() and has_stages(run):
            manifest = read_manifest(run)
            made = {"verb": manifest.get("kind", "compress"), **identity(manifest["recipe"])}
            mine = {"verb": kind, **identity(recipe)}
            differing = [f"{key} {made[key]!r} there, {mine[key]!r} here" for key in mine if not _same(made[key], mine[key])]
            if differing:
                raise BadInput(
                    f"{run}: made by another recipe ({'; '.join(differing)}). Give another -o, or remove that folder"
                )
        elif others and not (run / "manifest.json").is_file():
            raise BadInput(f"{run}: not empty and not a run folder (it holds {others[0]}). Give -o a new folder")


def claim(run: Path, recipe: dict[str, Any], kind: str) -> None:
    """Create the run folder, or check that it is this recipe's. Raises BadInput."""
    check(run, recipe, kind)
    try:
        run.mkdir(parents=True, exist_ok=True)
        if not os.access(run, os.W_OK | os.X_OK):
            raise PermissionError
    except (PermissionError, FileExistsError, NotADirectoryError):
        raise BadInput(f"{run}: cannot write there. Give -o a folder that you may write to") from None


@contextlib.contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold the run folder: two processes that write to one run would destroy each other's work. Raises BadInput."""
    with (run / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BadInput(f"{run}: another edgekd is working in this folder; wait for it, or give another -o") from None
        yield


def code_fingerprint(modules: Iterable[str]) -> str:
    """Return a hash of edgekd's own modules and packages named (such as "distill", "data.py"): of every file that ships there."""
    package = Path(__file__).parent
    digest = hashlib.sha256()
    for module in sorted(modules):
        home = package / module
        for file in sorted(home.rglob("*")) if home.is_dir() else [home]:
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(f"{file.relative_to(package)}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()
