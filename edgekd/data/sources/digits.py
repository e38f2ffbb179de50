"""The built-in `digits`: 1,797 handwritten digits of 8 x 8 pixels, for trying edgekd without any download.

Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak, UCI Machine Learning Repository, CC BY 4.0,
https://doi.org/10.24432/C50P49. tools/make_digits_data.py makes the file.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...recipe import Data
from ..records import Records, Source

_FILE = Path(__file__).parents[2] / "_digits.npz"


def knows(source: str) -> bool:
    return source == "digits"


def files(data: Data) -> list[Path]:
    return [_FILE]


def read(data: Data) -> Source:
    """Read the digits; their test and validation splits are cut as the recipe says."""
    with np.load(_FILE) as stored:
        images, labels = stored["images"], stored["labels"]
    records = Records(labels.astype(np.int64), lambda i: images[i], lambda i: f"digits, sample {i}", images)
    return Source({"train": records}, tuple("0123456789"))
