"""Make the teacher weights of a shipped pair again: `edgekd train` on its recipe, then the weights beside the recipe.

    python tools/train_teacher.py models/digits
    python tools/train_teacher.py models/fashion-mnist --set data.source=/usr/share/datasets/fashion-mnist

The same bytes come out on the same processor, thread count and versions (requirements.lock).
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from edgekd import verbs


def main() -> None:
    """Train, copy, and say what the teacher scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pair", type=Path, help="folder of the pair, such as models/digits")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("-o", "--out", type=Path, help="run folder (default: runs/NAME-teacher)")
    options = parser.parse_args()
    out = options.out or Path("runs") / f"{options.pair.name}-teacher"
    manifest = verbs.train(options.pair, out, "teacher", options.settings)
    weights = options.pair / "teacher.safetensors"
    shutil.copyfile(out / "model" / "model.safetensors", weights)
    print(
        f"{weights}: {weights.stat().st_size} bytes, {manifest['metric']['name']} {manifest['scores']['teacher']:.4f} on the test samples"
    )


if __name__ == "__main__":
    main()
