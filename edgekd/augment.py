"""Random changes to training pictures that depend on (seed, view, sample) alone: the same in any batch, order or process.

The teacher's outputs are cached for a number of views, and a student must later meet the very same pictures.
"""

from __future__ import annotations

import math

import torch

from .recipe import Augment

_GOLDEN = 0x9E3779B97F4A7C15
_MIX = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_AREA = (0.02, 0.33)
_ASPECT = (0.3, 1 / 0.3)


def augment(images: torch.Tensor, index: torch.Tensor, config: Augment, seed: int, view: int) -> torch.Tensor:
    """Return changed pictures: uint8 (n, H, W, C), as `images`.

    index: int64 (n,), each sample's place in its split. view: which of a sample's variations (the epoch, or a cached view).
    Crop: shifted by up to `config.crop` pixels, black moving in. Flip: mirrored, one time in two. Erase: a rectangle of 2 to 33 %
    of the area, of aspect 0.3 to 3.3, is made black (Zhong et al. 2020, Random Erasing); its parts beyond the edge are lost.
    """
    if not (config.crop or config.flip or config.erase):
        return images
    count, height, width = images.shape[:3]
    draw = _Draws(index, seed, view)
    rows = torch.arange(height, device=images.device).expand(count, -1)
    columns = torch.arange(width, device=images.device).expand(count, -1)
    if config.flip:
        columns = torch.where((draw(0) < 0.5)[:, None], width - 1 - columns, columns)
    if config.crop:
        span = 2 * config.crop + 1
        rows = rows + ((draw(1) * span).long() - config.crop)[:, None]
        columns = columns + ((draw(2) * span).long() - config.crop)[:, None]
    made = _gathered(images, rows, columns)
    if config.erase:
        made = made.masked_fill_(_rectangles(draw, config.erase, height, width)[..., None], 0)
    return made


def _gathered(images: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Return images[i, rows[i, y], columns[i, x]], black where a row or column lies outside. Always a new tensor."""
    count, height, width, channels = images.shape
    inside_rows, inside_columns = (rows >= 0) & (rows < height), (columns >= 0) & (columns < width)
    first = torch.arange(count, device=images.device)[:, None] * height
    by_row = images.reshape(count * height, width * channels)[(first + rows.clamp(0, height - 1)).flatten()]
    by_row = by_row.view(count, height, width, channels)
    places = columns.clamp(0, width - 1)[:, None, :, None].expand(count, height, width, channels)
    made = by_row.gather(2, places)
    return made.mul_((inside_rows[:, :, None] & inside_columns[:, None, :])[..., None])


def _rectangles(draw: _Draws, chance: float, height: int, width: int) -> torch.Tensor:
    """Return bool (n, H, W): the places to erase."""
    area = (_AREA[0] + draw(4) * (_AREA[1] - _AREA[0])) * height * width
    aspect = torch.exp(math.log(_ASPECT[0]) + draw(5) * math.log(_ASPECT[1] / _ASPECT[0]))
    masks = []
    for length, side, centre in ((height, (area * aspect).sqrt(), draw(6)), (width, (area / aspect).sqrt(), draw(7))):
        place = torch.arange(length, device=area.device) + 0.5
        masks.append((place - centre[:, None] * length).abs() < side[:, None] / 2)
    chosen = draw(3) < chance
    return chosen[:, None, None] & masks[0][:, :, None] & masks[1][:, None, :]


class _Draws:
    """Uniform numbers in 0-1 from a counter-based generator: number k of a sample is a hash of (seed, view, sample, k).

    The hash is splitmix64 (Steele, Lea and Flood 2014) of each part in turn.
    """

    def __init__(self, index: torch.Tensor, seed: int, view: int) -> None:
        start = _hash(_hash(torch.zeros(1, dtype=torch.int64) + seed) + view)
        self.state = _hash(start.to(index.device) + index.long())

    def __call__(self, number: int) -> torch.Tensor:
        """Return float64 (n,)."""
        return _shifted(_hash(self.state + number), 11).double() * 2.0**-53


def _hash(x: torch.Tensor) -> torch.Tensor:
    x = x + _signed(_GOLDEN)
    x = (x ^ _shifted(x, 30)) * _signed(_MIX[0])
    x = (x ^ _shifted(x, 27)) * _signed(_MIX[1])
    return x ^ _shifted(x, 31)


def _shifted(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Shift right as if int64 were unsigned."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(x: int) -> int:
    return x - (1 << 64) if x >= 1 << 63 else x
