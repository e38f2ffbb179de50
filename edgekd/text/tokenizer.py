"""A model's tokenizer: from its folder or a hub id, as transformers has it."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BadInput, Missing, first_line
from ..hub_access import prefer_cache_when_unreachable
from ..recipe import Model
from .ragged import Ragged

FILE = "tokenizer.json"
"""What ships: the whole tokenizer, as the `tokenizers` library and its ports to other languages read it."""

_AT_ONCE = 16_384
"""Texts that are encoded together: what the library tells of each takes kilobytes, until the ids are taken out."""
_CHARACTERS = 4_000_000
"""Of texts that are encoded together, for the same reason: it tells some 100 bytes of each token."""
_REACH = 64
"""Characters a token, many times what one has: of a text that is cut, what lies beyond them is not read."""


def of(config: Model, role: str) -> Any:
    """Return the tokenizer of a model: the one that the recipe names, else the one where the model is. Raises BadInput."""
    if config.tokenizer:
        return load(config.tokenizer, f"{role}.tokenizer")
    from ..models import finished
    from ..models.loading import split

    kind, rest = split(config.model, role)
    if kind == "hf":
        return load(rest, f"{role}.model")
    if kind == "folder":
        return load(str(finished.folder_of(config.model)), f"{role}.model")
    if kind == "timm":
        raise BadInput(
            f"{role}.model: {config.model} reads pictures; a model for text is hf:ID-or-folder or py:FILE.py:FUNCTION"
        )
    raise BadInput(f"{role}: {config.model} brings no tokenizer: add `tokenizer: FOLDER-OR-HUB-ID` to the {role}")


@functools.lru_cache(maxsize=4)
def load(name: str, where: str) -> Any:
    """Load a tokenizer. where: the key of the recipe, for messages. Raises BadInput when there is none, or none of the fast kind."""
    transformers = _transformers()
    if Path(name).is_dir():
        if not any((Path(name) / file).is_file() for file in (FILE, "tokenizer_config.json", "vocab.txt", "spiece.model")):
            raise BadInput(f"{where}: no tokenizer in {name} ({FILE} is what to put there, or name another with `tokenizer`)")
    else:
        prefer_cache_when_unreachable()
    try:
        made = transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # OSError, ValueError or the hub client's own, by cause
        raise BadInput(
            f"{where}: no tokenizer to be had from {name}, neither as a folder nor from the hub or its cache ({first_line(error)[:200]})"
        ) from None
    if not made.is_fast:
        raise BadInput(
            f"{where}: {name} has a tokenizer written in Python alone, which no device can run; convert it to {FILE} "
            "(transformers.convert_slow_tokenizer)"
        )
    return made


def text_of(tokenizer: Any) -> str:
    """Return the whole tokenizer as text, the content of tokenizer.json, without cutting and padding: those are settings of a call."""
    from tokenizers import Tokenizer

    copied = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    copied.no_truncation()
    copied.no_padding()
    return str(copied.to_str(pretty=False))


@functools.lru_cache(maxsize=8)
def fingerprint(tokenizer: Any) -> str:
    """Return a hash of what the tokenizer does. Remembered: every checkpoint asks, and a large one takes a second to write out."""
    return hashlib.sha256(text_of(tokenizer).encode()).hexdigest()[:32]


def encode(tokenizer: Any, texts: Sequence[str], max_tokens: int, special: bool = True) -> tuple[Ragged, int]:
    """Return each text's token ids, cut to max_tokens, and how many texts were cut.

    special: with the tokens that the tokenizer puts around a text. Raises BadInput where those leave no room for it.
    """
    backend = tokenizer.backend_tokenizer
    around = backend.num_special_tokens_to_add(False) if special else 0
    if max_tokens <= around:  # the library then cuts nothing
        raise BadInput(
            f"data.max_tokens: it leaves {max_tokens} token(s) for a text, and the tokenizer puts {around} of its own around each: raise "
            f"it by {around + 1 - max_tokens} at least"
        )
    backend.no_padding()
    backend.enable_truncation(max_tokens)
    reach = _REACH * max_tokens
    try:
        made = list(_encoded(backend, [text[:reach] for text in texts], special))
        short = [
            n for n, (_, over) in enumerate(made) if not over and len(texts[n]) > reach
        ]  # of blanks, say: all of it is read
        for n, again in zip(short, _encoded(backend, [texts[n] for n in short], special), strict=True):
            made[n] = again
    finally:
        backend.no_truncation()
    return Ragged.of([ids for ids, _ in made]), sum(over for _, over in made)


def _encoded(backend: Any, texts: Sequence[str], special: bool) -> Iterator[tuple[np.ndarray, bool]]:
    """Yield each text's ids, and whether it was cut."""
    for some in _together(texts):
        for one in backend.encode_batch(some, add_special_tokens=special):
            yield np.asarray(one.ids, np.int32), bool(one.overflowing)


def _together(texts: Iterable[str]) -> Iterator[list[str]]:
    """Yield the texts in groups of so many, and so long, as are encoded together."""
    group: list[str] = []
    characters = 0
    for text in texts:
        if group and (len(group) == _AT_ONCE or characters + len(text) > _CHARACTERS):
            yield group
            group, characters = [], 0
        group.append(text)
        characters += len(text)
    if group:
        yield group


def ship(tokenizer: Any, folder: Path) -> Path:
    """Write tokenizer.json into a folder."""
    file = folder / FILE
    file.write_text(text_of(tokenizer), encoding="utf-8")
    return file


def _transformers() -> Any:
    from .._torchvision import ensure

    ensure()
    try:
        import transformers
    except ImportError:
        raise Missing("text needs transformers: pip install 'edgekd[transformers]'") from None
    return transformers
