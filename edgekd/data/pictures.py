"""The host's part of preprocessing: decode, RGB or gray, resize, centre crop. A device's host program does just this."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from ..errors import BadInput

if TYPE_CHECKING:
    from PIL.Image import Image

Interpolation = Literal["bilinear", "bicubic", "nearest"]
Size = tuple[int, int]

_GRAY_MODES = {"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N"}
_SIXTEEN_BITS_AS_32 = {"PPM"}
"""Formats that Pillow gives as 32-bit integers, which cover 0-65535."""


def decode(stored: Path | bytes, where: str) -> Image:
    """Decode a picture file or its bytes, turned upright as its EXIF tag says.

    Raises BadInput, with `where`, when it is unreadable, or its values are floats or 32-bit integers: what is white in them
    is not known.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        picture = Image.open(io.BytesIO(stored) if isinstance(stored, bytes) else stored)
        picture.load()
        wide = picture.mode == "F" or (picture.mode == "I" and picture.format not in _SIXTEEN_BITS_AS_32)
        upright = ImageOps.exif_transpose(picture)
    except FileNotFoundError:
        raise BadInput(f"{where}: no such picture file; correct the path or leave the row out") from None
    except Exception as error:  # damaged bytes bring out anything: OSError, SyntaxError, struct.error, IndexError, ...
        reason = str(error).strip() or type(error).__name__
        reason = "not a picture format that Pillow knows" if isinstance(error, UnidentifiedImageError) else reason
        raise BadInput(f"{where}: unreadable picture ({reason}); repair it or leave it out") from None
    if wide:
        kind = "floats" if picture.mode == "F" else "32-bit integers"
        raise BadInput(f"{where}: a picture of {kind}, whose black and white are not known; save it with 8 bits, 0-255")
    return upright


def is_gray(picture: Image | np.ndarray) -> bool:
    """Say whether a picture as stored has one channel (alpha aside)."""
    if isinstance(picture, np.ndarray):
        return picture.ndim == 2 or picture.shape[2] == 1
    return picture.mode in _GRAY_MODES


def fitted_size(stored: Size, size: Size | None, crop: float) -> Size:
    """Return (height, width) of what `fit` makes of a picture stored at (height, width)."""
    return size or (max(1, round(stored[0] * crop)), max(1, round(stored[1] * crop)))


def fit(
    picture: Image | np.ndarray,
    size: Size | None,
    channels: int,
    crop: float = 1.0,
    interpolation: Interpolation = "bilinear",
) -> np.ndarray:
    """Return the picture as uint8 (H, W, channels): converted, resized (antialiased) to cover size / crop, cut from the centre.

    size: (height, width), None: the picture's own. channels: 1 (gray) or 3 (RGB). crop: the share kept of what was resized.
    """
    from PIL import Image

    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture[:, :, 0] if picture.ndim == 3 and picture.shape[2] == 1 else picture)
    picture = _convert(picture, channels)
    height, width = fitted_size((picture.height, picture.width), size, crop)
    if size is not None:
        scale = max(height / picture.height, width / picture.width) / crop
        covering = (max(width, round(picture.width * scale)), max(height, round(picture.height * scale)))
        if covering != picture.size:
            picture = picture.resize(covering, Image.Resampling[interpolation.upper()])
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    made = np.asarray(picture, dtype=np.uint8)[top : top + height, left : left + width]
    return made[:, :, None] if made.ndim == 2 else made


def _convert(picture: Image, channels: int) -> Image:
    """Return the picture in mode L or RGB. 16-bit values keep their upper byte: Pillow itself would clip them to white."""
    from PIL import Image

    if picture.mode.startswith("I"):
        picture = Image.fromarray((np.asarray(picture).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8))
    mode = "L" if channels == 1 else "RGB"
    return picture if picture.mode == mode else picture.convert(mode)
