"""The report: one static HTML file, made from RUN/manifest.json and the raw samples beside it, and nothing else."""

from .page import render, write

__all__ = ["render", "write"]
