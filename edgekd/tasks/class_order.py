"""Whether two lists of class names mean the same classes in the same order."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import BadInput


def check_classes(classes: Sequence[str], other: Sequence[str], role: str, whose: str, explicit: bool = False) -> None:
    """Raise BadInput when a model's classes contradict those of the data or of another model; spelling in capitals is no matter.

    Names with nothing in common (n01440764 and tench) say nothing of the order, and pass unless `explicit`: written in the recipe.
    """
    mine, others = [_plain(name) for name in classes], [_plain(name) for name in other]
    if mine == others or not (explicit or set(mine) & set(others)):
        return
    if sorted(mine) == sorted(others):
        first = next(number for number, (a, b) in enumerate(zip(mine, others, strict=True)) if a != b)
        raise BadInput(
            f"{role}: the same classes as {whose}, in a different order: output {first} is `{classes[first]}` for the {role} and "
            f"`{other[first]}` for {whose}; put `{role}.classes` (or the model's outputs) in the order {_few(other)}"
        )
    only = [name for name, plain in zip(classes, mine, strict=True) if plain not in others]
    lacking = [name for name, plain in zip(other, others, strict=True) if plain not in mine]
    raise BadInput(
        f"{role}: other classes than {whose}: only the {role} has {_few(only)}, only {whose} has {_few(lacking)}; "
        "use models and data with the same classes"
    )


def _plain(name: str) -> str:
    return name.strip().casefold()


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:5])
    return f"{shown}, ... ({len(names)} in all)" if len(names) > 5 else shown or "none"
