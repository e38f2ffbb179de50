"""Read a run, render the page, write it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..run_folder import read_manifest, write_text

HERE = Path(__file__).parent


def write(run: Path) -> Path:
    """Write RUN/report.html from RUN/manifest.json and the raw samples beside it; return its path.

    The same manifest and samples give the same bytes. Samples that are missing or damaged leave out a plot, nothing more.
    Raises BadInput when the folder is no run.
    """
    run = Path(run)
    manifest = read_manifest(run)
    page = run / "report.html"
    write_text(page, render(manifest, _samples(run, manifest)))
    return page


def render(manifest: Mapping[str, Any], samples: Mapping[str, np.ndarray]) -> str:
    """Return the page. samples: path as in the manifest -> seconds, (blocks, calls)."""
    import jinja2

    from .view import view

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    style = " ".join((HERE / "style.css").read_text(encoding="utf-8").split())
    return environment.get_template("template.html.jinja").render(style=style, **view(manifest, samples)) + "\n"


def _samples(run: Path, manifest: Mapping[str, Any]) -> dict[str, np.ndarray]:
    found = {}
    home = run.resolve()
    for measurement in manifest["measurements"]:
        path = (home / measurement["samples"]).resolve()
        if not path.is_relative_to(home) or not path.is_file():
            continue
        try:
            samples = np.load(path, allow_pickle=False)
        except (OSError, ValueError):
            continue
        if samples.dtype == np.float64 and samples.size and np.isfinite(samples).all() and (samples > 0).all():
            found[measurement["samples"]] = samples
    return found
