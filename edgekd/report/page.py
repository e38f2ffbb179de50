"""Read a run, render the page, write it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
    write_text(page, render(manifest, samples_of(run, manifest["measurements"])))
    return page


def render(manifest: Mapping[str, Any], samples: Mapping[str, np.ndarray]) -> str:
    """Return the page. samples: path as in the manifest -> seconds, (blocks, calls)."""
    from .view import view

    return filled("template.html.jinja", view(manifest, samples))


def filled(template: str, shown: Mapping[str, Any]) -> str:
    """Return a template filled in, with the style that all pages share."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    style = " ".join((HERE / "style.css").read_text(encoding="utf-8").split())
    return environment.get_template(template).render(style=style, **shown) + "\n"


def samples_of(home: Path, measurements: Iterable[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Read the raw samples that are there and whole: path as the measurement has it -> seconds, (blocks, calls).

    NaN is where a block has fewer calls than others. A path that leads out of `home` is not followed.
    """
    found = {}
    home = home.resolve()
    for measurement in measurements:
        name = measurement.get("samples")
        if not isinstance(name, str):
            continue
        path = (home / name).resolve()
        if not path.is_relative_to(home) or not path.is_file():
            continue
        try:
            samples = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            continue
        called = samples[~np.isnan(samples)] if samples.dtype == np.float64 else samples[:0]
        if called.size and np.isfinite(called).all() and (called > 0).all():
            found[name] = samples
    return found
