"""What a transformers model's files tell before they are loaded: whether their weights are quantized, and whether memory holds them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ..errors import BadInput


def refuse_quantized(config: Any, name: str, role: str, *, adapter: bool = False) -> None:
    """Raise BadInput for a model whose configuration says that its weights are stored quantized. adapter: one was to be merged."""
    from ..quantize.adapter_base import WHY

    told = getattr(config, "quantization_config", None)
    if not told:
        return
    method = told.get("quant_method") if isinstance(told, dict) else getattr(told, "quant_method", None)
    reason = (
        f"adapters are not merged into those: {WHY}"
        if adapter
        else "training, quantizing and exporting start from full precision"
    )
    raise BadInput(
        f"{role}: hf:{name} stores its weights quantized ({method or 'quantization_config'}), and {reason}. Give the model that it was "
        "made from"
    )


def refuse_too_large(name: str, role: str) -> None:
    """Raise BadInput where a local folder's weights, in float32, are more than this machine's free memory and swap hold."""
    import psutil

    count = _weights_in(Path(name))
    free = psutil.virtual_memory().available + psutil.swap_memory().free
    if 4 * count > free:
        raise BadInput(
            f"{role}: hf:{name} has {count / 1e9:.2f} billion weights, {4 * count / 1e9:.1f} GB in float32, and {free / 1e9:.1f} GB of "
            f"memory are free here: give a smaller {role}, or run this where there is more"
        )


def _weights_in(folder: Path) -> int:
    """Return how many weights a folder's safetensors hold; 0 for a hub id, and for files that do not tell."""
    from safetensors import SafetensorError, safe_open

    whole = folder / "model.safetensors"
    count = 0
    for file in [whole] if whole.is_file() else sorted(folder.glob("model-*-of-*.safetensors")):
        try:
            with safe_open(file, framework="np") as opened:
                count += sum(math.prod(opened.get_slice(name).get_shape()) for name in opened.keys())  # noqa: SIM118 (no mapping)
        except (OSError, SafetensorError):
            return 0  # told by whoever reads it
    return count
