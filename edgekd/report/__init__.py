"""The report: one static HTML file, made from RUN/manifest.json (of a bench: FOLDER/bench.json) and the raw samples beside it."""

from .bench import write_bench
from .page import render, write

__all__ = ["render", "write", "write_bench"]
