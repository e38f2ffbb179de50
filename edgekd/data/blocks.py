"""Plain text for a language model: all of it joined, the end-of-text token after each row, and cut into blocks of one length."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
from rich.markup import escape

from ..errors import BadInput
from ..progress import say
from ..recipe import Data
from ..text import tokenizer as tokenizers
from . import text_rows
from .split import Splits, fingerprint_at
from .texts import wrong

_PIECE = 100_000
"""Characters that are tokenized at once: a long text is taken apart between two lines."""
_WHOLE = 2**31 - 1


@dataclass(frozen=True)
class Blocks:
    """Blocks of text as token ids, all of one length (so `lengths`, which sorts batches, is None). ids: int32 (N, tokens)."""

    name: str
    fingerprint: str
    ids: np.ndarray = field(repr=False)
    classes: tuple[str, ...] = ()
    lengths: None = None

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Return blocks: input_ids int64 (n, tokens), attention_mask int64 of ones, index int64 (n,)."""
        indices = np.asarray(indices, dtype=np.int64)
        ids = self.ids[indices].astype(np.int64)
        return {"input_ids": ids, "attention_mask": np.ones_like(ids), "index": indices}

    def at(self, indices: np.ndarray) -> Self:
        """Return the split of these blocks alone, in this order."""
        return replace(self, fingerprint=fingerprint_at(self, indices), ids=self.ids[indices])


def blocks(data: Data, tokenizer: Any) -> Splits[Blocks]:
    """Return training, validation and test blocks of data.max_tokens tokens each; what is left at the end is too short and left out.

    Where the source has no validation or test split, the last blocks of the training text are put aside, as many as the recipe says.
    A text shorter than a block is one short block. Raises BadInput.
    """
    end = tokenizer.eos_token_id
    if end is None:
        raise BadInput(
            "data: the tokenizer has no end-of-text token (eos_token), which stands between two texts and ends a generation: "
            "add `eos_token` to its tokenizer_config.json, or name another tokenizer (student.tokenizer)"
        )
    rows = text_rows.read(data, ["text"], whole=True)
    if "train" not in rows:
        raise BadInput(f"data.train: {data.source} has no training split; there: {', '.join(rows)}; name it")
    begin = front(tokenizer)
    if data.max_tokens <= len(begin) + 1:
        raise BadInput(f"data.max_tokens: {data.max_tokens}; a block needs {len(begin) + 2} tokens at least")
    made = {
        role: _cut(_tokens(tokenizer, texts["text"], end, data.source), begin, data.max_tokens, data.source)
        for role, texts in rows.items()
    }
    for role, share in (("test", data.test_fraction), ("validation", data.validation_fraction)):
        if role not in made:
            count = max(1, round(share * len(made["train"])))
            if count >= len(made["train"]):
                raise BadInput(
                    f"data: {data.source} makes {len(made['train'])} block(s) of {data.max_tokens} tokens, too few to learn from and to be "
                    f"judged by: more text, a lower data.max_tokens, or a {role} split of its own is needed"
                )
            made["train"], made[role] = made["train"][:-count], made["train"][-count:]
    if data.limit is not None:
        made = {role: found[: data.limit] for role, found in made.items()}
    if len(made["train"]) < 2:
        raise BadInput(
            f"data: {data.source}: {len(made['train'])} block of {data.max_tokens} tokens to learn from; 2 at least are needed: more text, "
            "a lower data.max_tokens, or a higher data.limit"
        )
    return Splits(*(_split(role, made[role]) for role in ("train", "validation", "test")))


def front(tokenizer: Any) -> list[int]:
    """Return what the tokenizer puts in front of every text, [] for most: a block begins with it, as the model is used to."""
    bos = tokenizer.bos_token_id
    ids = tokenizers.encode(tokenizer, ["a"], _WHOLE)[0].row(0)
    return [bos] if bos is not None and len(ids) and ids[0] == bos else []


def _tokens(tokenizer: Any, texts: Sequence[Any], end: int, source: str) -> np.ndarray:
    """Return the ids of all texts, int32, each with `end` behind it. Raises BadInput where there is no text."""
    pieces: list[str] = []
    ends: list[int] = []  # after which pieces a text is over
    for number, text in enumerate(texts, 1):
        if text is None or (isinstance(text, str) and not text.strip()):
            continue
        if reason := wrong(text):
            raise BadInput(
                f"{source}, row {number}: `text` is {reason}; name the column of text with data.text, or mend the row"
            )
        pieces += _pieces(text)
        ends.append(len(pieces))
    if not ends:
        raise BadInput(f"{source}: there is no text in it, {len(texts)} empty row(s) alone; check data.source and data.text")
    if empty := len(texts) - len(ends):
        say(f"[yellow]data: {empty} of {len(texts)} rows of {escape(source)} are empty and were left out[/]")
    ids, _ = tokenizers.encode(tokenizer, pieces, _WHOLE, special=False)
    return np.insert(ids.values, ids.ends[ends], end)


def _pieces(text: str) -> Iterator[str]:
    """Yield a text in pieces of about _PIECE characters, whole lines where it has any: a tokenizer's time grows with the length."""
    begin = 0
    while begin < len(text):
        end = begin + _PIECE
        if end < len(text):
            end = text.rfind("\n", begin, end) + 1 or end
        yield text[begin : max(end, begin + 1)]
        begin = max(end, begin + 1)


def _cut(tokens: np.ndarray, front: list[int], length: int, source: str) -> np.ndarray:
    """Return the blocks, int32 (blocks, length)."""
    own = length - len(front)
    count = max(1, len(tokens) // own)
    found = tokens[: count * own].reshape(count, -1)
    if found.shape[1] < 2:
        raise BadInput(f"{source}: there is a single token of text in it; check data.source and data.text")
    return np.concatenate([np.broadcast_to(np.array(front, np.int32), (count, len(front))), found], axis=1)


def _split(role: str, found: np.ndarray) -> Blocks:
    digest = hashlib.sha256(f"{role} {found.shape}".encode() + found.tobytes()).hexdigest()[:32]
    return Blocks(role, digest, found)
