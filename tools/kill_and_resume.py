"""Kill `edgekd compress` with SIGKILL at random instants, resume it, and compare every artifact with an uninterrupted run.

    python tools/kill_and_resume.py --kills 25                    # one run, killed 25 times on its way
    python tools/kill_and_resume.py --recipe my/recipe.yaml --kills 5 --set distill.epochs=3

Exit 0 when every byte of every artifact is the same, 1 when not.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def command(recipe: str, out: Path, settings: list[str]) -> list[str]:
    """Return the command line of one run."""
    return [sys.executable, "-m", "edgekd", "compress", recipe, "-o", str(out), *(w for s in settings for w in ("--set", s))]


def artifacts(run: Path) -> dict[str, str]:
    """Return relative path -> SHA-256 of all that is shipped or trained: artifacts, variants, student."""
    names = ("targets", "variants", "student", "graphs")
    files = [f for name in names for f in sorted((run / name).rglob("*")) if f.is_file() and f.name != ".stage.json"]
    return {str(f.relative_to(run)): hashlib.sha256(stable(f)).hexdigest() for f in files}


def stable(file: Path) -> bytes:
    """Return a file's content; of the training history without the seconds that it took."""
    if file.name != "history.json":
        return file.read_bytes()
    history = json.loads(file.read_text())
    history.pop("images_per_second", None)
    for epoch in history["epochs"]:
        epoch.pop("seconds", None)
    return json.dumps(history, sort_keys=True).encode()


def main() -> int:
    """Run once without interruption, once with; compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="models/digits")
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0, help="of the instants")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    instants = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder) / "whole", Path(folder) / "killed"
        start = time.monotonic()
        subprocess.run(
            command(options.recipe, whole, options.settings), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        seconds = time.monotonic() - start
        print(f"uninterrupted: {seconds:.1f} s, {len(artifacts(whole))} files", flush=True)
        done = 0
        while done < options.kills:
            # up to half of a whole run: early kills hit training, and as stages finish later ones are hit too
            wait = instants.uniform(0.2, seconds / 2)
            process = subprocess.Popen(
                command(options.recipe, killed, options.settings), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
            )
            try:
                process.wait(wait)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.communicate()
                done += 1
                stages = sorted(
                    str(p.parent.relative_to(killed)) for p in killed.rglob(".stage.json") if ".partial" not in p.parts
                )
                print(f"kill {done:>2} after {wait:5.1f} s: {len(stages)} stages finished", flush=True)
                continue
            _, told = process.communicate()
            if process.returncode:
                print(f"a resumed run failed with exit {process.returncode}:\n{told}")
                return 1
            compared = compare(whole, killed)
            if compared:
                return compared
            print("reached the end; starting a new one for the kills that are left", flush=True)
            subprocess.run(["rm", "-rf", str(killed)], check=True)
        subprocess.run(
            command(options.recipe, killed, options.settings), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        return compare(whole, killed)


def compare(whole: Path, killed: Path) -> int:
    """Print whether two runs hold the same artifacts; return 0 or 1."""
    a, b = artifacts(whole), artifacts(killed)
    differing = sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))
    print(
        f"{len(a) - len(differing)} of {len(a)} files are the same, byte for byte"
        + "".join(f"\n  differs: {n}" for n in differing),
        flush=True,
    )
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
