"""A run folder as a model: what an earlier `edgekd train` or `edgekd distill` left there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import BadInput
from ..recipe import Model, Preprocess
from .loaded import LoadedModel
from .saving import CARD, CODE, WEIGHTS

_PLACES = (".", "student", "model")


def folder_of(reference: str) -> Path | None:
    """Return the folder with the finished model: the one named, or its student/ or model/."""
    return next((Path(reference) / place for place in _PLACES if (Path(reference) / place / CARD).is_file()), None)


def preprocess(reference: str) -> Preprocess:
    """Return what the model was trained with."""
    return Preprocess(**(card_of(reference)["preprocess"] or {}))


def load(
    config: Model, reference: str, preprocess: Preprocess, *, role: str, num_classes: int, image_shape: tuple[int, int, int]
) -> LoadedModel:
    """Make the network that the folder's card describes and give it the folder's weights, or `config.weights`."""
    from . import loading

    folder, card = folder_of(reference), card_of(reference)
    assert folder is not None
    again = Model(
        model=reference_of(folder, card["reference"]),
        weights=config.weights or folder / WEIGHTS,
        adapter=config.adapter,
        preprocess=preprocess,
        classes=config.classes or (tuple(card["classes"]) if card["classes"] else None),
        arguments={**card["arguments"], **config.arguments},
    )
    if loading.split(again.model, role)[0] == "folder":
        raise BadInput(
            f"{folder / CARD}: its model is another run folder, {again.model}, which it should not be; train it again"
        )
    return loading.load(
        again, role=role, num_classes=num_classes, image_shape=image_shape, shared=None, seed=0, need_weights=True
    )


def reference_of(folder: Path, reference: str) -> str:
    """Return where to make the network from today: the original file while it is unchanged (it may import its neighbours),
    else the copy in the folder."""
    kind, _, rest = reference.partition(":")
    if kind == "hf":
        return f"hf:{folder}"
    if kind == "py":
        file, _, function = rest.rpartition(":")
        copied = folder / CODE
        unchanged = Path(file).is_file() and (not copied.is_file() or Path(file).read_bytes() == copied.read_bytes())
        return reference if unchanged else f"py:{copied}:{function}"
    return reference


def card_of(reference: str) -> dict[str, Any]:
    """Return what a run folder's model.json says. Raises BadInput for a damaged one."""
    folder = folder_of(reference)
    assert folder is not None
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
        missing = {"reference", "arguments", "preprocess", "classes"} - card.keys()
    except (ValueError, AttributeError, OSError) as error:
        raise BadInput(f"{folder / CARD}: damaged ({error}); train the model again") from None
    if missing:
        raise BadInput(f"{folder / CARD}: damaged (no {', '.join(sorted(missing))}); train the model again")
    return card
