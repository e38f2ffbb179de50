"""py:FILE.py:FUNCTION: a network that the user's own function makes."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import BadInput
from ..names import nearest
from .loaded import Made

PREFIX = "py:"


def make(rest: str, arguments: dict[str, Any], num_classes: int, channels: int) -> Made:
    """Call FUNCTION of FILE.py; it gets num_classes and in_channels where its signature takes them, and `arguments`.

    rest: FILE.py:FUNCTION. Raises BadInput when there is no such file or function, and for whatever the function raises.
    """
    file, function = split(rest)
    maker = _function(file, function)
    called_with = {**_offered(maker, {"num_classes": num_classes, "in_channels": channels}), **arguments}
    _check_arguments(maker, called_with, f"{file}:{function}")
    with _users_mistakes(file, f"{function}()"):
        net = maker(**called_with)
    if not isinstance(net, nn.Module):
        raise BadInput(f"{PREFIX}{rest}: {function}() returned {type(net).__name__}, not a torch.nn.Module")
    return Made(net, arguments=called_with)


def split(rest: str) -> tuple[Path, str]:
    """Return (file, function) of FILE.py:FUNCTION. Raises BadInput."""
    file, _, function = rest.rpartition(":")
    if not file.endswith(".py") or not function.isidentifier():
        raise BadInput(f"{PREFIX}{rest}: write py:FILE.py:FUNCTION, such as py:model.py:student")
    return Path(file), function


def _function(file: Path, function: str) -> Callable[..., Any]:
    if not file.is_file():
        raise BadInput(f"no file {file}; write py:FILE.py:FUNCTION, the file relative to the recipe")
    name = "edgekd_user_" + hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:12]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None  # the name ends in .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and torch.export look their module up
    with _users_mistakes(file, "importing it"), _neighbours_importable(file.parent):
        spec.loader.exec_module(module)
    found = getattr(module, function, None)
    if not callable(found):
        functions = [
            n
            for n, v in vars(module).items()
            if callable(v) and not n.startswith("_") and getattr(v, "__module__", None) == name
        ]
        there = f"there: {', '.join(functions)}" if functions else "it defines none"
        raise BadInput(f"{file}: no function `{function}`{nearest(function, functions)}; {there}")
    return found


def _offered(maker: Callable[..., Any], values: dict[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(maker).parameters
    return {name: value for name, value in values.items() if name in parameters}


def _check_arguments(maker: Callable[..., Any], called_with: dict[str, Any], who: str) -> None:
    signature = inspect.signature(maker)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    for name in called_with:
        if name not in signature.parameters and not takes_any:
            raise BadInput(
                f"{who}: takes no argument `{name}`{nearest(name, signature.parameters)}; it takes {', '.join(signature.parameters)}"
            )
    try:
        signature.bind(**called_with)
    except TypeError as error:
        raise BadInput(f"{who}: {error}; give it under `arguments` in the recipe") from None


@contextmanager
def _users_mistakes(file: Path, doing: str) -> Iterator[None]:
    """Turn whatever the user's code raises into one message with its file and line."""
    try:
        yield
    except Exception as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).resolve() == file.resolve()]
        line = getattr(error, "lineno", None) if isinstance(error, SyntaxError) else (frames[-1].lineno if frames else None)
        where = f"{file}, line {line}" if line else str(file)
        raise BadInput(f"{where}: {doing} raised {type(error).__name__}: {error}") from error


@contextmanager
def _neighbours_importable(folder: Path) -> Iterator[None]:
    """Let the user's file import the files beside it."""
    entry = str(folder.resolve())
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        if entry in sys.path:
            sys.path.remove(entry)
