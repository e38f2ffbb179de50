"""Data: from whatever the user has (a hub id, folders, tables, IDX files, our digits) to arrays of uint8 pictures and labels.

>>> splits = load(Data(source="digits"), size=None, seed=0)
>>> splits.test.take(np.arange(2))["image"].shape
(2, 8, 8, 1)
"""

from .assemble import load
from .identity import fingerprint
from .split import PictureSplit, PictureSplits, Split, Splits

__all__ = ["PictureSplit", "PictureSplits", "Split", "Splits", "fingerprint", "load"]
