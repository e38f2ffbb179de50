"""timm:NAME: a network of PyTorch Image Models. NAME.TAG names trained weights too: timm:resnet18.a1_in1k."""

from __future__ import annotations

from typing import Any

from ..errors import BadInput, Missing, first_line
from ..hub_access import prefer_cache_when_unreachable
from ..names import nearest
from ..recipe import Preprocess
from .loaded import Made


def make(
    name: str,
    arguments: dict[str, Any],
    num_classes: int,
    channels: int,
    size: tuple[int, int] | None,
    trained: bool,
    role: str,
) -> Made:
    """Make the network.

    trained: fetch timm's trained weights for it. A teacher keeps its own classifier then, a student gets a new one.
    size: (height, width), passed on to networks made for one size. Raises BadInput for an unknown name, refused arguments,
    and weights that can be had neither from the local cache nor from the hub.
    """
    timm = _timm()
    known = _check(name)
    called_with = {"in_chans": channels, **arguments}
    if not (trained and role == "teacher"):
        called_with.setdefault("num_classes", num_classes)
    config = timm.get_pretrained_cfg(name)
    if config is not None and config.fixed_input_size and size is not None and size != tuple(config.input_size[1:]):
        called_with.setdefault("img_size", size)
    if trained and (config is None or not config.has_weights):
        raise BadInput(
            f"timm:{name}: timm has no trained weights for it; give `weights: FILE`, or choose one of {_tags(known)}"
        )
    if trained:
        prefer_cache_when_unreachable()
    try:
        net = timm.create_model(name, pretrained=trained, **called_with)
    except TypeError as error:
        raise BadInput(f"timm:{name}: does not take these arguments ({error}); see `arguments` in the recipe") from None
    except Exception as error:  # what the hub's client raises depends on its version and on the network
        if not trained:
            raise BadInput(f"timm:{name}: cannot be made so ({type(error).__name__}: {_first(error)})") from None
        raise BadInput(
            f"timm:{name}: its trained weights are neither in the local cache nor to be had from the hub ({_first(error)}); "
            "get the file some other way and give it as `weights: FILE`"
        ) from None
    return Made(net, trained=trained, arguments={**called_with, "num_classes": net.num_classes})


def preprocess(name: str) -> Preprocess | None:
    """Return what the network was trained with; None when timm does not know."""
    timm = _timm()
    _check(name)
    config = timm.get_pretrained_cfg(name)
    if config is None:
        return None
    interpolation = config.interpolation if config.interpolation in ("bilinear", "bicubic", "nearest") else "bicubic"
    size = (config.input_size[1], config.input_size[2])
    return Preprocess(size=size, mean=config.mean, std=config.std, crop=config.crop_pct, interpolation=interpolation)


def names_weights(name: str) -> bool:
    """Say whether a name has a tag, and so means trained weights."""
    return "." in name


def _check(name: str) -> str:
    """Return the architecture's name. Raises BadInput when timm does not know it or its tag."""
    timm = _timm()
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise BadInput(
            f"timm:{name}: timm {timm.__version__} has no model `{architecture}`{nearest(architecture, timm.list_models())}"
        )
    if tag and name not in timm.list_pretrained(f"{architecture}.*"):
        raise BadInput(f"timm:{name}: no weights `{tag}` for {architecture}; there are {_tags(architecture)}")
    return architecture


def _tags(architecture: str) -> str:
    return ", ".join(_timm().list_pretrained(f"{architecture}.*")) or "none"


def _timm() -> Any:
    from .._torchvision import ensure

    ensure()
    try:
        import timm
    except ImportError:
        raise Missing("timm:NAME needs timm: pip install 'edgekd[timm]'") from None
    return timm


def _first(error: Exception) -> str:
    return first_line(error)[:200]
