"""Targets: one TOML file a device class under targets/ (data, no code), or a file of your own.

>>> load_target("onnxruntime-cpu").backend
'onnxruntime'
"""

from __future__ import annotations

import fnmatch
import hashlib
import platform
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import backends, host
from .errors import BadInput
from .names import nearest
from .resources import listing, resource

_X86 = {"x86_64", "amd64", "i386", "i686"}
OPSET = 21
"""Of a target that names none: the first with integers of 4 bits, which runtimes have had since 2024."""

Kind = type | tuple[str, ...] | Callable[[Any], str | None]
"""What a key's value must be: a bool, str, dict, int (from 1 on) or list (of texts); one of these texts; or what a function says,
which returns None for a value that is right.
"""
_SCHEMES = ("stores", "accelerates", "prefer")
_KEYS: dict[str, Kind] = {
    "title": str,
    "backend": str,
    "device": str,
    **dict.fromkeys(_SCHEMES, list),
    "architecture": str,
    "vnni": bool,
    "precision": ("fp32", "fp16"),
    "quantizer": ("", "fused", "qnn", "tensorrt"),
    "limits": dict,
    "options": dict,
    "source": str,
}
_LIMITS: dict[str, Kind] = {"opset": int, "static": bool, "operators_refused": list}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Target:
    """A device class.

    name: of the file. backend: one of backends.names(). device: "local" when this machine may be one, else what it is, such as "phone".
    stores: scheme labels (`Scheme.label`, such as "fp32", "w8a8") that its runtime takes, or patterns of them: `w*` for weights of
    any bits, `w?g*` in groups (what follows an `a`, the activations, is never part of a pattern; a8d: scaled at each call). accelerates: those it has fast
    kernels for; prefer: the order to choose in when nothing was measured. limits: such as {"opset": 21}, the highest that its runtime takes.
    precision: of its arithmetic in floating point, fp32 or fp16. quantizer: the dialect of int8 files that its runtime needs
    (quantize/dialects), "" for the usual one; a file that names none gets its backend's. options: for its backend, such as
    {"soc_model": 57}.
    architecture, vnni (int8 products summed in 32 bits): of the device; None asks this machine, where device is "local".
    file: what `load_target` reads it from again: the name of a shipped one, or the absolute path of a .toml file.
    fingerprint: changes whenever the file does.
    """

    name: str
    title: str
    backend: str
    device: str = "local"
    stores: tuple[str, ...] = ("fp32",)
    accelerates: tuple[str, ...] = ("fp32",)
    prefer: tuple[str, ...] = ("fp32",)
    architecture: str | None = None
    vnni: bool | None = None
    precision: str = "fp32"
    quantizer: str = ""
    limits: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    file: str = ""
    fingerprint: str = field(default="", repr=False)

    @property
    def opset(self) -> int:
        """The highest ONNX opset that its runtime takes."""
        return int(self.limits.get("opset", OPSET))

    @property
    def static(self) -> bool:
        """Whether its runtime takes fixed shapes alone: one sample a call."""
        return bool(self.limits.get("static", False))

    def saturates(self) -> str | None:
        """Say why full-range int8 sums saturate on this device; None where they do not.

        x86 without VNNI adds pairs of products in 16 bits. ARM and the web sum in 32 bits.
        """
        architecture = (self.architecture or (platform.machine() if self.device == "local" else "")).lower()
        if architecture not in _X86:
            return None
        if self.vnni is None and self.device == "local":
            return None if host.vnni() else f"this CPU ({host.cpu_model()}) has no VNNI, so int8 sums saturate at 16 bits"
        return None if self.vnni else f"x86 without VNNI ({self.name}) saturates int8 sums at 16 bits"

    def lacks(self, label: str) -> str | None:
        """Say that a scheme is not among those that it stores; None when it is."""
        if covers(self.stores, label):
            return None
        advice = "Change the variant's bits or the target"
        if label.endswith("d") and "a" in label:
            advice = "What scales activations at each call is ONNX Runtime: use method ptq, or a target that stores w8a8d"
        return f"{self.title} cannot store {label}: it stores {', '.join(self.stores)}. {advice}"

    def elsewhere(self) -> str | None:
        """Say why this machine is not the device, for the clock above all; None when it can be."""
        if self.device != "local":
            return f"{self.title} is another device ({self.device}) and cannot be reached from here"
        here = platform.machine()
        if self.architecture and self.architecture.lower() != here.lower():
            return f"{self.title} is {self.architecture} and this machine {here}"
        if self.vnni is False and host.vnni():
            return f"{self.title} has no VNNI and this machine has"
        if self.vnni and host.vnni() is False:
            return f"{self.title} has VNNI and this machine has not"
        return None


def covers(patterns: Iterable[str], label: str) -> bool:
    """Say whether a scheme's label is among a target's patterns.

    >>> covers(["w*"], "w4g256"), covers(["w*"], "w8a8")
    (True, False)
    """
    weights, _, activations = label.partition("a")
    parts = [pattern.partition("a") for pattern in patterns]
    return any(fnmatch.fnmatchcase(weights, w) and a == activations for w, _, a in parts)


def target_names() -> list[str]:
    """Return the names of the shipped targets."""
    return sorted(file.stem for file in listing("targets", "*.toml"))


def name_of(target: str) -> str:
    """Return what a target is called that is given by name or by path.

    >>> name_of("browser"), name_of("own/board.toml")
    ('browser', 'board')
    """
    return Path(target).stem if target.endswith(".toml") else target


def all_targets() -> list[Target]:
    """Return the shipped targets."""
    return [load_target(name) for name in target_names()]


def load_target(name: str) -> Target:
    """Read a shipped target by name, or a .toml file by path. Raises BadInput for what is missing, unknown, misspelt or mistyped."""
    own, known = name.endswith(".toml"), target_names()
    file = Path(name) if own else resource(f"targets/{name}.toml")
    if not file.is_file() or not (own or name in known):
        raise BadInput(
            f"no target `{name}`{nearest(name, known)}; there are {', '.join(known)} (`--target all` takes them all), "
            "or give the path of a .toml file"
        )
    if not _NAME.fullmatch(name_of(name)):
        raise BadInput(f"{file}: its name names a folder: call it by letters, digits, `.`, `_` and `-`, such as board.toml")
    content = file.read_bytes()
    try:
        told = tomllib.loads(content.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{file}: not valid TOML: {error}") from None
    _check(file, "", told, _KEYS)
    for key in ("title", "backend"):
        if key not in told:
            raise BadInput(f"{file}: needs `{key}` (a text)")
    if (backend := told["backend"]) not in (known := backends.names()):
        raise BadInput(f"{file}: no backend `{backend}`{nearest(backend, known)}; there are {', '.join(known)}")
    _check(file, "limits.", told.get("limits", {}), _LIMITS)
    if (options := getattr(backends.backend_of(backend), "OPTIONS", None)) is not None:
        _check(file, "options.", told.get("options", {}), options)
    told.setdefault("quantizer", getattr(backends.backend_of(backend), "QUANTIZER", ""))
    for key in _SCHEMES:
        told[key] = tuple(told.get(key, ("fp32",)))
    return Target(
        name=file.stem, file=str(file.resolve()) if own else name, fingerprint=hashlib.sha256(content).hexdigest(), **told
    )


def _check(file: Path, part: str, told: Mapping[str, Any], kinds: Mapping[str, Kind]) -> None:
    """Check the keys and values of a table of a target file. Raises BadInput."""
    for key, value in told.items():
        if key not in kinds:
            raise BadInput(f"{file}: unknown key `{part}{key}`{nearest(key, kinds)}; known here: {', '.join(kinds) or 'none'}")
        if must := _must(kinds[key], value):
            raise BadInput(f"{file}: `{part}{key}` must be {must}, not {value!r}")


def _must(kind: Kind, value: Any) -> str | None:
    """Say what a value must be; None when it is that."""
    if isinstance(kind, tuple):
        return None if value in kind else f"one of {', '.join(map(repr, kind))}"
    if kind is int:
        return None if type(value) is int and value > 0 else "a whole number from 1 on"
    if kind is list:
        right = isinstance(value, list) and all(isinstance(item, str) for item in value)
        return None if right else 'a list of texts, such as ["fp32", "w8a8"]'
    if isinstance(kind, type):
        words = {str: "a text", bool: "true or false", dict: "a table, such as {opset = 20}"}
        return None if isinstance(value, kind) else words.get(kind, kind.__name__)
    return kind(value)
