"""Weights from a file into a network: safetensors, or a state dict that torch.load reads without running code."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import BadInput, first_line
from ..memory import available, ran_out

_WRAPPED_IN = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
_NAMED_AT_MOST = 4

State = dict[str, torch.Tensor]


def load_weights(net: nn.Module, file: Path, who: str) -> None:
    """Copy the weights in `file` into `net`.

    Prefixes that wrappers leave (module., _orig_mod., model., net.) are taken off, or put on, when that makes the names match.
    who: names the model in messages. Raises BadInput for a file that is missing, damaged or not a state dict, for missing and
    unexpected names, other shapes, and weights that are NaN or infinite.
    """
    state = read(file)
    wanted = net.state_dict()
    fitting = _fit_names(state, set(wanted))
    # Counters that only momentum-free BatchNorm uses; old checkpoints lack them.
    missing = [k for k in wanted if k not in fitting and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in fitting if k not in wanted]
    shapes = [
        f"{k} is {tuple(fitting[k].shape)} in the file and {tuple(wanted[k].shape)} in the network"
        for k in wanted
        if k in fitting and fitting[k].shape != wanted[k].shape
    ]
    if missing or unexpected or shapes:
        found = [_listed("missing", missing), _listed("unexpected", unexpected), _listed("of another shape", shapes)]
        raise BadInput(f"{who}: {file} does not fit the network: {'; '.join(f for f in found if f)}")
    try:
        broken = [k for k, v in fitting.items() if v.is_floating_point() and not torch.isfinite(v).all()]
        if not broken:
            net.load_state_dict(fitting, strict=False)
    except (RuntimeError, NotImplementedError, TypeError) as error:  # tensors of a kind that cannot be copied: sparse, float4
        if ran_out(error):
            raise
        raise BadInput(f"{who}: {file} holds tensors that cannot be used as weights ({_first(error)}); save it again") from None
    if broken:
        raise BadInput(f"{who}: {file} holds NaN or infinite weights: {_listed('in', broken)}; its training went wrong")


def read(file: Path) -> State:
    """Return the tensors in a safetensors or torch.save file, by name. Raises BadInput; never runs code from the file."""
    if not file.is_file():
        raise BadInput(f"no weights file {file}; correct the path")
    return _safetensors(file) if file.suffix == ".safetensors" else _torch_file(file)


def _safetensors(file: Path) -> State:
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except Exception as error:  # its own error, and whatever Python makes of a damaged header
        if _too_large(error, file):
            raise
        reason = _first(error)
    raise BadInput(f"{file}: damaged or not safetensors ({reason}); fetch or save it again")


def _torch_file(file: Path) -> State:
    if _is_torchscript(file):
        raise BadInput(f"{file}: a TorchScript program, not weights; save its state_dict() as safetensors and give that")
    damage: str | None = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a pickle protocol that it does not expect
            stored = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported operand" in str(error):
            raise BadInput(
                f"{file}: damaged, or saved with another pickle protocol than torch.save's own; save it again"
            ) from None
        if "weights_only" not in str(error) and "Unsupported" not in str(error):
            raise BadInput(f"{file}: damaged, or not saved with torch.save ({_first(error)}); save it again") from None
        raise BadInput(
            f"{file}: loading it would run code (it holds more than tensors), which edgekd never does; where you trust it, load it "
            "yourself and save its weights: safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')"
        ) from None
    except Exception as error:  # damaged bytes bring out anything: AssertionError, UnicodeDecodeError, struct.error, ...
        if _too_large(error, file):
            raise
        damage = _first(error)
    if damage is not None:
        raise BadInput(f"{file}: damaged, or not saved with torch.save ({damage}); save it again")
    for key in _WRAPPED_IN:
        if isinstance(stored, dict) and isinstance(stored.get(key), dict):
            stored = stored[key]
            break
    if not isinstance(stored, dict) or not stored or not all(isinstance(v, torch.Tensor) for v in stored.values()):
        raise BadInput(
            f"{file}: holds no state dict, neither by itself nor as {', '.join(_WRAPPED_IN)}; save model.state_dict()"
        )
    return {str(k): v for k, v in stored.items()}


def _fit_names(state: State, wanted: set[str]) -> State:
    """Return the state under the names that match most of `wanted`; as it is when no renaming helps."""
    best = state
    for renamed in _renamings(state):
        if len(wanted & renamed.keys()) > len(wanted & best.keys()):
            best = renamed
    return best


def _renamings(state: State) -> Iterable[State]:
    """Yield the state with up to three prefixes taken off every name, then with one put on."""
    bare = state
    for _ in range(3):
        prefix = next((p for p in _PREFIXES if all(k.startswith(p) for k in bare)), None)
        if prefix is None:
            break
        bare = {name.removeprefix(prefix): value for name, value in bare.items()}
        yield bare
    for prefix in _PREFIXES:
        yield {prefix + name: value for name, value in state.items()}


def _too_large(error: Exception, file: Path) -> bool:
    """Say whether a file could not be read for want of memory; damaged ones ask for memory too, and for more than they are long."""
    return ran_out(error) is not None and file.stat().st_size > available()


def _is_torchscript(file: Path) -> bool:
    try:
        with zipfile.ZipFile(file) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except Exception:  # not an archive, or a damaged one: torch.load says which
        return False


def _listed(what: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _NAMED_AT_MOST} more" if len(names) > _NAMED_AT_MOST else ""
    return f"{what} {', '.join(names[:_NAMED_AT_MOST])}{more}"


def _first(error: Any) -> str:
    return first_line(error)[:160]
