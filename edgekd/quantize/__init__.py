"""Quantization methods, one file each; a new one is a file plus a line here (or an entry point `edgekd.methods`)."""

from __future__ import annotations

METHODS = {
    "none": "edgekd.quantize.full_precision",
    "ptq": "edgekd.quantize.post_training",
}
