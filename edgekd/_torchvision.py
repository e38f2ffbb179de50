"""Make torchvision importable where its compiled part does not fit the torch here (a CUDA build on a CPU torch).

timm and transformers import torchvision, which then dies with "operator torchvision::nms does not exist", though neither needs
that operator. Declaring the two operators that torchvision registers Python functions for is enough.
"""

from __future__ import annotations

import importlib.util
import sys
from typing import Any, Literal

_declared: list[Any] = []  # a torch Library undoes its declarations when it is collected


def ensure() -> Literal["absent", "native", "shimmed"]:
    """Import torchvision; call this before timm or transformers.

    Returns "absent" when it is not installed, "native" when it works as it is, "shimmed" when its operators had to be declared:
    then everything works but its compiled ones, such as `torchvision.ops.nms`.
    """
    if importlib.util.find_spec("torchvision") is None:
        return "absent"
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    else:
        return "shimmed" if _declared else "native"
    _forget("torchvision")
    from torch.library import Library

    library = Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)
    import torchvision  # noqa: F401

    return "shimmed"


def _forget(package: str) -> None:
    """Drop a half-imported package, so that the next import starts over."""
    for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
        del sys.modules[name]
