"""What a QNN context binary says of itself, and the Snapdragons that edgekd knows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BadInput, first_line

SOCS = {
    36: ("SM8450", 69),  # Snapdragon 8 Gen 1
    43: ("SM8550", 73),  # Snapdragon 8 Gen 2
    57: ("SM8650", 75),  # Snapdragon 8 Gen 3
    60: ("SC8380XP", 73),  # Snapdragon X Elite
    66: ("QCS8550", 73),
    69: ("SM8750", 79),  # Snapdragon 8 Elite
    77: ("QCS9100", 73),
    82: ("QCS8300", 75),
    87: ("SM8850", 81),  # Snapdragon 8 Elite Gen 5
    88: ("SC8480XP", 81),  # Snapdragon X2 Elite
}
"""QNN's soc_model -> (name, HTP architecture), as the compiler of QAIRT 2.51 writes them into its binaries."""

_MADE_FOR = re.compile(rb"soc_type=([A-Za-z0-9_]+);arch=(\d+);")


@dataclass(frozen=True)
class Soc:
    """A Snapdragon: QNN's number of it, its name, and the version of its HTP."""

    model: int
    name: str
    arch: int


def soc_of(options: Mapping[str, Any]) -> Soc | str:
    """Return the Snapdragon that a target's options name; a sentence instead, when there is no such one.

    QNN itself takes any number, and then computes on the CPU without a word.
    """
    model, arch = options.get("soc_model"), options.get("htp_arch")
    known = ", ".join(f"{number} ({name}, v{version})" for number, (name, version) in SOCS.items())
    if model is None:
        return f"its target file needs options.soc_model; known are {known}"
    if model not in SOCS:
        return f"soc_model {model!r} is unknown; known are {known}"
    name, version = SOCS[model]
    if arch is not None and arch != version:
        return f"htp_arch {arch!r} does not exist on soc_model {model} ({name}), which is v{version}; leave htp_arch out"
    return Soc(model, name, version)


@dataclass(frozen=True)
class Context:
    """A file that holds compiled graphs. made_for: each binary's (SoC, HTP architecture); others: operators beside them."""

    made_for: tuple[tuple[str, int], ...]
    nodes: int
    others: tuple[str, ...]


def inspect(file: Path) -> Context:
    """Read a context file. Raises BadInput for what is no ONNX file."""
    import onnx

    try:
        model = onnx.load(str(file), load_external_data=False)
    except Exception as error:  # protobuf raises its own types
        reason = first_line(error)
        raise BadInput(f"{file}: cannot be read as ONNX ({reason})") from None
    made_for = []
    for node in model.graph.node:
        attributes = {a.name: a for a in node.attribute}
        if node.op_type != "EPContext" or "ep_cache_context" not in attributes:
            continue
        cache = attributes["ep_cache_context"].s
        embedded = "embed_mode" not in attributes or attributes["embed_mode"].i == 1
        binary = cache if embedded else _beside(file, cache.decode(errors="replace"))
        found = _MADE_FOR.search(binary)
        made_for.append((found[1].decode(), int(found[2])) if found else ("unknown", 0))
    told = {entry.key: entry.value for entry in model.metadata_props}
    others = tuple(sorted({node.op_type for node in model.graph.node if node.op_type != "EPContext"}))
    return Context(tuple(made_for), int(told.get("edgekd.nodes", len(made_for))), others)


def _beside(file: Path, name: str) -> bytes:
    if Path(name).name != name or not (file.parent / name).is_file():
        raise BadInput(f"{file}: its context binary `{name}` is not beside it; copy the artifact's folder again")
    return (file.parent / name).read_bytes()
