"""Where the names in a scatter plot go: beside their points, on no other name and on no point, as near as that allows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

Box = tuple[float, float, float, float]
"""left, top, right, bottom; y grows downwards."""

CHARACTER, TALL, DOT, AWAY = 6.2, 12.0, 6.0, 9.0
"""Of 11 px letters: width of one, height of a line. Radius of a point with its rim; from a point's centre to its name."""

SWEEPS = 8


@dataclass(frozen=True)
class Label:
    """A name's place: x is its beginning (anchor "start") or its end ("end"), y the middle of its line."""

    x: float
    y: float
    anchor: str
    box: Box


def width(words: str) -> float:
    """Return about how wide the words are."""
    return CHARACTER * len(words)


def place(points: Sequence[tuple[float, float]], names: Sequence[str], frame: Box, taken: Sequence[Box] = ()) -> list[Label]:
    """Return a place for each name, in order. frame: what they must lie in; taken: other words that they must keep off.

    Each takes its best place given the others', again and again until none moves.
    """
    choices = [list(_choices(point, name, frame)) for point, name in zip(points, names, strict=True)]
    dots = [(x - DOT, y - DOT, x + DOT, y + DOT) for x, y in points]
    placed = [offered[0][1] for offered in choices]
    for _ in range(SWEEPS):
        before = list(placed)
        for i, offered in enumerate(choices):
            others = [label.box for j, label in enumerate(placed) if j != i]
            in_the_way = [*others, *taken], [dot for j, dot in enumerate(dots) if j != i]
            placed[i] = min(offered, key=lambda choice: choice[0] + _cost(choice[1], points[i], *in_the_way))[1]
        if placed == before:
            break
    return placed


def _choices(point: tuple[float, float], name: str, frame: Box) -> Iterator[tuple[float, Label]]:
    """Yield (cost of its own, place) of the places there are: right and left of the point, and then up and down."""
    (x, y), wide = point, width(name)
    left, top, right, bottom = frame
    for side in ("start", "end"):
        begin = x + AWAY if side == "start" else x - AWAY - wide
        outside = max(0.0, left - begin) + max(0.0, begin + wide - right)
        for step in sorted(range(-24, 25), key=abs):
            middle = y + 4 * step
            if (top + TALL / 2 <= middle <= bottom - TALL / 2) or step == 0:
                box = (begin, middle - TALL / 2, begin + wide, middle + TALL / 2)
                anchor = x + (AWAY if side == "start" else -AWAY)
                yield 4.0 * abs(step) + 3.0 * (side == "end") + 1000.0 * outside, Label(anchor, middle, side, box)


def _cost(label: Label, point: tuple[float, float], boxes: Sequence[Box], dots: Sequence[Box]) -> float:
    """Return how much a place is in others' way: areas in common, and where the line to the point would cross a name."""
    cost = sum(100.0 * _common(label.box, box) for box in boxes) + sum(30.0 * _common(label.box, dot) for dot in dots)
    if abs(label.y - point[1]) > TALL / 2:
        middle = (point[0] + label.x) / 2, (point[1] + label.y) / 2
        cost += sum(40.0 for box in boxes if box[0] <= middle[0] <= box[2] and box[1] <= middle[1] <= box[3])
    return cost


def _common(a: Box, b: Box) -> float:
    """Return the area that two boxes have in common, square pixels."""
    across, down = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return across * down if across > 0 and down > 0 else 0.0
