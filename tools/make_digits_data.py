"""Make edgekd/_digits.npz from scikit-learn's copy of the UCI digits: python tools/make_digits_data.py path/to/digits.csv.gz

Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak, UCI Machine Learning Repository, CC BY 4.0,
https://doi.org/10.24432/C50P49. scikit-learn ships its test part as sklearn/datasets/data/digits.csv.gz: 64 pixels of
0-16 and the digit in each row. Values are scaled to 0-255 and rounded; nothing else is changed.
"""

import sys
from pathlib import Path

import numpy as np

table = np.loadtxt(sys.argv[1], delimiter=",", dtype=np.int64)
images = np.rint(table[:, :64] * 255 / 16).astype(np.uint8).reshape(-1, 8, 8)
labels = table[:, 64].astype(np.uint8)
target = Path(__file__).parents[1] / "edgekd" / "_digits.npz"
np.savez_compressed(target, images=images, labels=labels)
print(f"{target}: {len(images)} pictures, {target.stat().st_size:,} bytes")
