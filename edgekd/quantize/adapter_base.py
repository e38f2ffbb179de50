"""What adapters may be trained beside and merged into: weights in full precision. Imports no torch: the plan asks."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

from ..errors import BadInput, Missing
from ..recipe import Model

WHY = (
    "the merged weights would have to be rounded again, and the adapter learned around another rounding: take the student in full "
    "precision, and quantize what comes out"
)


def check(model: Model | None, where: str) -> None:
    """Check that peft is here and that a model's weights are no quantized ones. Raises Missing, BadInput.

    model: None for a student that has weights of its own by then, by distillation. where: in the recipe, for messages.
    """
    if importlib.util.find_spec("peft") is None:
        raise Missing(f"{where} needs peft: pip install 'edgekd[lora]'")
    if model and (found := quantized(model)):
        folder, label = found
        raise BadInput(
            f"{where}: {folder} holds a variant with quantized weights ({label}), and adapters are not merged into those: {WHY}"
        )


def quantized(model: Model) -> tuple[Path, str] | None:
    """Return the folder of the variant that a model's weights come from, and its scheme; None where they are no quantized ones."""
    for folder in (Path(model.model.removeprefix("hf:")), *([model.weights.parent] if model.weights else [])):
        try:
            scheme = json.loads((folder / "variant.json").read_text(encoding="utf-8"))["scheme"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if scheme.get("weights"):
            return folder, str(scheme.get("label"))
    return None
