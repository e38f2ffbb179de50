"""Keys: small JSON dicts that say what a file on disk was made from, and what differs between two of them."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def plain(value: Any) -> Any:
    """Return the value as JSON would give it back: tuples as lists, keys as strings."""
    return json.loads(json.dumps(value, sort_keys=True, default=str))


def differences(found: dict[str, Any], wanted: dict[str, Any], prefix: str = "") -> list[str]:
    """Return one line for each entry that differs.

    >>> differences({"seed": 0, "views": 1}, {"seed": 1, "views": 1})
    ['seed is 0, not 1']
    """
    lines: list[str] = []
    for name in sorted({*found, *wanted}):
        a, b = found.get(name), wanted.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += differences(a, b, f"{prefix}{name}.")
        elif a != b:
            lines.append(f"{prefix}{name} is {_short(a)}, not {_short(b)}")
    return lines


def weights_hash(module: torch.nn.Module) -> str:
    """Return the sha256 of a module's parameters and buffers: names, types, shapes and bytes."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _short(value: Any) -> str:
    text = "absent" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
