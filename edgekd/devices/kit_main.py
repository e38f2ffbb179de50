"""Times what is in this file on the machine that it is run on, and writes what came of it as JSON, to be taken in elsewhere.

Needs Python 3.8 or newer, numpy, and the runtime of what is timed. Each thing is timed in a process of its own, in alternation;
the file says how long. Nothing is left behind but the result.
"""

# __main__.py of a kit (bench/kits.py): here edgekd is what lies in the archive.
from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

ARCHIVE = Path(os.path.abspath(__file__)).parent
"""This file. Before Python 3.9 `__file__` is as it was typed, and means nothing once another folder is the current one."""
MISSING = 4
"""Exit code when something has to be installed first; 1 when nothing could be timed, 2 for a wrong command."""


def main() -> int:
    """Parse the command line, time, write; return the exit code."""
    with zipfile.ZipFile(str(ARCHIVE)) as archive:
        plan = json.loads(archive.read("plan.json").decode("utf-8"))
    sys.path[0] = str(ARCHIVE)  # as __file__: what is imported later comes from here too
    labels = [one["label"] for one in plan["things"]]
    parser = argparse.ArgumentParser(description=__doc__, epilog="In this file: " + ", ".join(labels))
    host = "".join(c if c.isalnum() or c in "-_." else "-" for c in platform.node()) or "device"
    parser.add_argument(
        "-o", "--out", metavar="FILE", default=f"kit-{host}.json", help="where results go (default: %(default)s)"
    )
    out = Path(parser.parse_args().out).absolute()
    if not out.parent.is_dir():
        parser.error(f"{out.parent}: no such folder")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    if sys.version_info < (3, 8):
        print(f"Python {platform.python_version()} is too old: 3.8 or newer is needed", file=sys.stderr)
        return MISSING
    try:
        import numpy  # noqa: F401
    except ImportError:
        print(f"numpy is not installed: {sys.executable} -m pip install numpy", file=sys.stderr)
        return MISSING
    from edgekd.errors import BadInput

    folder = Path(tempfile.mkdtemp(prefix="edgekd-"))
    try:
        with contextlib.ExitStack() as stack:
            stack.callback(os.chdir, os.getcwd())
            os.chdir(str(folder))  # workers start here, where nothing hides edgekd
            os.environ["TMPDIR"] = tempfile.mkdtemp(dir=str(folder))  # ONNX Runtime leaves a file there
            os.environ["PYTHONPATH"] = os.pathsep.join(p for p in (str(ARCHIVE), os.environ.get("PYTHONPATH")) if p)
            record = timed(plan, folder)
    except KeyboardInterrupt:
        print("\ninterrupted: nothing is written", file=sys.stderr)
        return 130
    except (Damaged, BadInput) as error:
        print(error, file=sys.stderr)
        return 2
    finally:
        shutil.rmtree(str(folder), ignore_errors=True)
    out.write_text(sealed(record), encoding="utf-8")
    done = sum("told" in cell for cell in record["cells"])
    for one in record["skipped"]:
        print(f"left out: {one['label']}: {one['reason']}", file=sys.stderr)
    print(f"{out}: {done} of {len(plan['cells'])} measured; take it in with: edgekd bench --import {out.name}")
    return 0 if done else MISSING if record["skipped"] else 1


class Damaged(Exception):
    """A file in the kit is not what it was."""


def timed(plan: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Time a plan's cells; return the record (see bench/kits.py)."""
    from edgekd.bench import environment, rates, schedule
    from edgekd.bench.agent import here
    from edgekd.bench.process import Worker, WorkerDied
    from edgekd.bench.threads import threads_on

    host, reasons = environment.describe(), [lacks(one["backend"]) for one in plan["things"]]
    threads = threads_on(host, plan["threads"])
    unpack(plan, folder)
    cells = []  # type: list[dict[str, Any]]
    record = {
        "schema": plan["schema"],
        "edgekd": plan["edgekd"],
        "plan": plan,
        "name": platform.node() or "device",
        "host": host,
    }
    record.update(when=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), threads=threads, rates=None)
    record.update(skipped=[{"label": one["label"], "reason": why} for one, why in zip(plan["things"], reasons) if why])  # noqa: B905
    record["cells"] = cells
    say = Progress(len(plan["cells"]))
    for place, cell in enumerate(plan["cells"]):
        chosen = [at for at, index in enumerate(cell["things"]) if not reasons[index]]
        while chosen:
            job = dict(cell["job"], things=[cell["job"]["things"][at] for at in chosen])
            job["threads"] = max(1, threads // (job["streams"] or 1))
            job["control"] = chosen.index(job["control"]) if job["control"] in chosen else 0
            made = {"place": place, "things": [cell["things"][at] for at in chosen]}  # type: dict[str, Any]
            try:
                made["told"] = schedule.run(here(job, folder), Worker, functools.partial(say, place, cell["name"]))
                chosen = []
            except WorkerDied as error:  # the others are timed without it
                print(f"\n{error}", file=sys.stderr)
                failed = [at for at in chosen if cell["job"]["things"][at]["label"] == error.label] or chosen
                made = {"place": place, "things": [cell["things"][at] for at in failed], "error": str(error)}
                chosen = [at for at in chosen if at not in failed]
            except KeyboardInterrupt:
                if not any("told" in cell for cell in cells):
                    raise
                print("\ninterrupted: what was measured is kept", file=sys.stderr)
                cells.append(dict(made, error="interrupted on the device"))
                return record
            cells.append(made)
    if plan["roofline"] and any("told" in cell for cell in cells):
        say(len(plan["cells"]), "rates", 1.0, "what this machine can do")
        with contextlib.suppress(Exception):  # a sentence less in the report
            record["rates"] = rates.measure(threads)
    say.end()
    return record


class Progress:
    """One line on standard error that is written over, or a line for each new thing where that is no terminal."""

    def __init__(self, count: int) -> None:
        self._count, self._last = count, ""

    def __call__(self, place: int, name: str, share: float, what: str) -> None:
        line = f"[{min(place + 1, self._count)}/{self._count}] {name}: {what}"
        if line != self._last:
            over = sys.stderr.isatty()
            print(line.ljust(len(self._last)) if over else line, end="\r" if over else "\n", file=sys.stderr, flush=True)
            self._last = line

    def end(self) -> None:
        if sys.stderr.isatty():
            print(file=sys.stderr)


def unpack(plan: dict[str, Any], folder: Path) -> None:
    """Write the things' files into the folder. Raises Damaged for one whose SHA-256 is not the plan's."""
    with zipfile.ZipFile(str(ARCHIVE)) as archive:
        for name, digest in plan["files"].items():
            path = folder.joinpath(*name.split("/"))
            path.parent.mkdir(parents=True, exist_ok=True)
            found = hashlib.sha256()
            try:
                with archive.open(name) as source, path.open("wb") as target:
                    for piece in iter(lambda: source.read(1 << 20), b""):
                        found.update(piece)
                        target.write(piece)
            except (zipfile.BadZipFile, KeyError) as error:
                raise Damaged(f"{ARCHIVE}: damaged ({error}); copy it again") from None
            if found.hexdigest() != digest:
                raise Damaged(f"{ARCHIVE}: damaged ({name} is not what it was); copy it again")


def lacks(backend: str) -> str | None:
    """Say which runtime has to be installed here for a backend, and how; None when it is here."""
    from edgekd.backends import DISTRIBUTIONS, RUNTIMES  # type: ignore[attr-defined]
    from edgekd.bench.agent import version

    wanted = [DISTRIBUTIONS[name][0] for name in RUNTIMES[backend] if version(name, DISTRIBUTIONS[name]) is None]
    return f"{sys.executable} -m pip install {' '.join(wanted)}" if wanted else None


def sealed(record: dict[str, Any]) -> str:
    """Return a record as JSON, with the SHA-256 of all else in it: what was changed on the way is found."""
    body = json.dumps(record, sort_keys=True, allow_nan=False)
    return json.dumps(dict(json.loads(body), sha256=hashlib.sha256(body.encode("utf-8")).hexdigest()), allow_nan=False)


if __name__ == "__main__":
    sys.exit(main())
