"""hf:ID-or-folder: an image classifier of Hugging Face transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import BadInput, Missing, first_line
from ..hub_access import prefer_cache_when_unreachable
from ..recipe import Preprocess
from .loaded import Made

_RESAMPLE = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # PIL's numbers


class Logits(nn.Module):
    """A transformers classifier (a PreTrainedModel) that returns its logits alone."""

    model: Any

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return (N, classes). pixel_values: (N, C, H, W), normalized."""
        return self.model(pixel_values=pixel_values).logits


def make(name: str, arguments: dict[str, Any], num_classes: int, channels: int, trained: bool, role: str) -> Made:
    """Make the classifier from its configuration, with its trained weights when `trained`.

    A teacher keeps its classes; a student gets `num_classes` outputs and, where that changes their number, a new classifier.
    arguments: overrides of the configuration. Raises BadInput for a model that is not there or is no image classifier.
    """
    transformers = transformers_here()
    config = config_of(name)
    refuse_quantized(config, name, role)
    if role == "student" and config.num_labels != num_classes:
        config.num_labels = num_classes
    if not trained and hasattr(config, "num_channels"):
        config.num_channels = channels
    for key, value in arguments.items():
        if not hasattr(config, key):
            raise BadInput(f"hf:{name}: its configuration has no `{key}`; see `arguments` in the recipe")
        setattr(config, key, value)
    maker = transformers.AutoModelForImageClassification
    try:
        if not trained:
            net = maker.from_config(config, trust_remote_code=False)
        else:
            changes = role == "student"  # a classifier for other classes is started anew; a teacher's must fit as it is
            net = maker.from_pretrained(name, config=config, ignore_mismatched_sizes=changes, trust_remote_code=False)
    except Exception as error:  # ValueError, OSError, RuntimeError or the hub client's own, by cause
        raise BadInput(f"hf:{name}: cannot be loaded as an image classifier ({_first(error)})") from None
    return Made(Logits(net.float()), _classes(config), trained, arguments)


def has_weights(name: str) -> bool:
    """Say whether a local folder holds trained weights; a hub id is taken to."""
    folder = Path(name)
    return not folder.is_dir() or any(folder.glob("*.safetensors")) or any(folder.glob("pytorch_model*.bin"))


def preprocess(name: str) -> Preprocess | None:
    """Return what the model's image processor does; None when it has none."""
    transformers = transformers_here()
    config_of(name)
    try:
        values, _ = transformers.ImageProcessingMixin.get_image_processor_dict(name)
    except Exception:  # a model without preprocessor_config.json: OSError, or the hub client's own errors
        return None
    size, crop = _size(values.get("size")), 1.0
    if values.get("do_center_crop") and values.get("crop_size"):
        resized, size = size, _size(values["crop_size"])
        crop = min(1.0, size[0] / resized[0]) if size and resized else 1.0
    crop = float(values.get("crop_pct") or crop)
    scale = float(values.get("rescale_factor", 1 / 255)) * 255 if values.get("do_rescale", True) else 255.0
    mean, std = [0.0], [1.0]
    if values.get("do_normalize", True):
        mean, std = values.get("image_mean") or mean, values.get("image_std") or std
    return Preprocess(
        size=size,
        mean=tuple(m / scale for m in mean),
        std=tuple(s / scale for s in std),
        crop=crop,
        interpolation=_RESAMPLE.get(values.get("resample", 2), "bilinear"),
    )


def _size(value: Any) -> tuple[int, int] | None:
    if isinstance(value, int):
        return value, value
    if isinstance(value, dict) and "shortest_edge" in value:
        return int(value["shortest_edge"]), int(value["shortest_edge"])
    if isinstance(value, dict) and "height" in value:
        return int(value["height"]), int(value["width"])
    return None


def _classes(config: Any) -> tuple[str, ...] | None:
    """Return the class names; None for the LABEL_0, LABEL_1, ... that transformers makes up."""
    names = tuple(str(config.id2label[number]) for number in sorted(config.id2label))
    return None if all(name == f"LABEL_{number}" for number, name in enumerate(names)) else names


def config_of(name: str) -> Any:
    """Return the configuration of a folder or hub id. Raises BadInput."""
    transformers = transformers_here()
    folder = Path(name)
    if folder.is_dir() and not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise BadInput(
                f"hf:{name} is an adapter: give the model that it belongs to as `model`, and this folder as `adapter`"
            )
        raise BadInput(f"hf:{name}: no config.json in this folder; give one that save_pretrained() wrote")
    if not folder.is_dir():
        prefer_cache_when_unreachable()
    try:
        return transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # ValueError, OSError or the hub client's own, by cause
        raise BadInput(
            f"hf:{name}: neither a folder with a config.json nor to be had from the hub or its cache ({_first(error)})"
        ) from None


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


def transformers_here() -> Any:
    """Return the package. Raises Missing."""
    from .._torchvision import ensure

    ensure()
    try:
        import transformers
    except ImportError:
        raise Missing("hf:ID needs transformers: pip install 'edgekd[transformers]'") from None
    return transformers


def _first(error: Exception) -> str:
    return first_line(error)[:200]
