"""A language model as it ships: prompts in, text out, from an artifact's folder alone.

    python -m edgekd.text runs/slm/targets/onnxruntime-cpu/int8 "A man in a blue shirt is standing on a ladder."

>>> model = load("runs/slm/targets/onnxruntime-cpu/int8")  # doctest: +SKIP
>>> write(model, ["A man in a blue shirt is standing on a ladder."])  # doctest: +SKIP
['Ein Mann in einem blauen Hemd steht auf einer Leiter.']
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..backends import backend_of
from ..errors import BadInput, Missing
from ..export import artifact as artifacts
from ..export.graph import Arrays, Running
from ..targets import Target, load_target
from .generate import Sampling, generate
from .ragged import Ragged

NEW_TOKENS = 64
"""Written after a prompt where neither the call nor the artifact says how many, at most."""


@dataclass(frozen=True)
class Shipped:
    """An artifact that writes text. run: its graphs. reads, pads, writes: the host's steps in its artifact.json."""

    run: Running
    tokenizer: Any
    reads: Mapping[str, Any]
    pads: Mapping[str, Any]
    writes: Mapping[str, Any]


def load(folder: str | Path, threads: int | None = None) -> Shipped:
    """Open an artifact. threads: of the runtime, every core when None.

    Raises BadInput for a folder that is none, is damaged, or is of a model that writes no text, and Missing for a runtime that is
    not here.
    """
    home = Path(folder)
    made = _artifact(home)
    steps = {step["step"]: step for step in made.record["preprocess"]["host"]}
    if not {"tokenize", "pad", "generate"} <= steps.keys():
        raise BadInput(f"{home}: a {made.record['task']} model, which writes no text; `python check.py` there tries it")
    if reason := artifacts.damage(made):
        raise BadInput(f"{home}: {reason}; make it again with `edgekd export`")
    backend = backend_of(made.backend)
    if reason := backend.missing():
        raise Missing(reason)
    target = _target(made.target)
    sessions = {name: backend.load(file, target, threads) for name, file in made.graphs.items()}

    def run(name: str, inputs: Arrays) -> dict[str, np.ndarray]:
        session = sessions[name]
        assert session is not None  # None stands for exact arithmetic that a backend has not, which is not asked for
        return session.run(inputs)

    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise Missing("text needs tokenizers: pip install tokenizers") from None
    tokenizer = Tokenizer.from_file(str(home / steps["tokenize"]["file"]))
    return Shipped(Running(run, lambda: made.record["graphs"]), tokenizer, steps["tokenize"], steps["pad"], steps["generate"])


def write(model: Shipped, prompts: Sequence[str], max_new: int | None = None, sampling: Sampling | None = None) -> list[str]:
    """Return what the model writes after each prompt: the likeliest tokens, or drawn ones (sampling).

    max_new: tokens at most; as many as the model was made for when None. Raises BadInput for an empty prompt and one that is too long.
    """
    ids = [_ids(model, prompt) for prompt in prompts]
    if not ids:
        return []
    rows = Ragged.of(ids)
    padded, mask = rows.padded(np.arange(len(rows)), model.pads["with"])
    made = generate(
        model.run, padded, mask, max_new=_usual(model, padded.shape[1]) if max_new is None else max_new, eos=model.writes["end"],
        pad=model.pads["with"], start=model.writes.get("start", 0), context=model.writes.get("context"), sampling=sampling,
    )  # fmt: skip
    return [_said(model, read, new.tolist()) for read, new in zip(ids, made, strict=True)]


def _usual(model: Shipped, read: int) -> int:
    """Return how many tokens are written where nobody says: as many as the model was made for, else as fit behind the prompt."""
    if "longest" in model.writes:
        return int(model.writes["longest"])
    context = model.writes.get("context")
    return NEW_TOKENS if context is None else max(1, min(NEW_TOKENS, context - read))


def _artifact(home: Path) -> artifacts.Artifact:
    if not (home / "artifact.json").is_file() and (inside := sorted(home.glob("targets/*/*/artifact.json"))):
        there = ", ".join(str(file.parent) for file in inside)
        raise BadInput(f"{home}: a run folder; give one of its artifacts: {there}")
    return artifacts.load(home)


def _target(name: str) -> Target | None:
    """Return the target of that name; None for one of a file that edgekd does not ship."""
    try:
        return load_target(name)
    except BadInput:
        return None


def _ids(model: Shipped, prompt: str) -> list[int]:
    """Return a prompt's tokens, as the texts that the model learned from were read."""
    if not prompt.strip() and not model.reads.get("begin"):
        raise BadInput("the prompt is empty: give a text for the model to go on from")
    made = list(model.reads.get("begin", []))
    made += model.tokenizer.encode(prompt, add_special_tokens=model.reads.get("special_tokens", True)).ids
    end, longest = model.reads.get("end"), model.reads.get("longest")
    if end is not None and made[-1:] != [end]:
        made.append(end)
    if longest is not None and len(made) > longest:
        raise BadInput(
            f"a prompt of {len(made)} tokens, and the model was made for texts of {longest} (data.max_tokens): shorten it"
        )
    return made


def _said(model: Shipped, read: list[int], new: list[int]) -> str:
    """Return the text of new tokens up to the one that ends it. One that goes on from its prompt keeps the space between."""
    end = model.writes["end"]
    new = new[: new.index(end)] if end in new else new
    if "end" in model.reads:  # another text, not the same one further
        return str(model.tokenizer.decode(new)).strip()
    before, whole = (str(model.tokenizer.decode(ids)) for ids in (read, [*read, *new]))
    return whole.removeprefix(before)
