"""Splits of pairs of texts, as token ids: what a model reads, and what it is to write."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
from rich.markup import escape

from ..errors import BadInput
from ..progress import say
from ..recipe import Data
from ..text import tokenizer as tokenizers
from ..text.ragged import Ragged
from . import text_rows
from .cut import cut
from .split import Splits, fingerprint_at
from .texts import checked

_KINDS = ("input", "output")
_TEST_SEED = 20_201
"""The test pairs are the same whatever the recipe's seed."""


@dataclass(frozen=True)
class SequenceSplit:
    """Pairs of texts. inputs, outputs: token ids, one row a pair, each with the end-of-text token at its end.

    references: what was to be written, as text. tokenizer: reads and writes both. longest: how many tokens a text may have.
    """

    name: str
    fingerprint: str
    inputs: Ragged = field(repr=False)
    outputs: Ragged = field(repr=False)
    references: tuple[str, ...] = field(repr=False)
    tokenizer: Any = field(repr=False, compare=False)
    longest: int
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def lengths(self) -> np.ndarray:
        """How many tokens each pair has, int64 (N,)."""
        return self.inputs.lengths + self.outputs.lengths

    @property
    def pad(self) -> int:
        return padding(self.tokenizer)

    @property
    def end(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def start(self) -> int:
        return start(self.tokenizer)

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Return samples: input_ids, output_ids int64 (n, longest of these), padded after the text, attention_mask and output_mask
        (1: a token), and index int64 (n,)."""
        indices = np.asarray(indices, dtype=np.int64)
        read, written = (rows.padded(indices, self.pad) for rows in (self.inputs, self.outputs))
        return {
            "index": indices, "input_ids": read[0], "attention_mask": read[1], "output_ids": written[0], "output_mask": written[1],
        }  # fmt: skip

    def at(self, indices: np.ndarray) -> Self:
        """Return the split of these samples alone, in this order."""
        indices = np.asarray(indices, dtype=np.int64)
        return replace(
            self,
            fingerprint=fingerprint_at(self, indices),
            inputs=self.inputs.at(indices),
            outputs=self.outputs.at(indices),
            references=tuple(self.references[i] for i in indices.tolist()),
        )


def sequences(data: Data, tokenizer: Any, seed: int) -> Splits[SequenceSplit]:
    """Return the pairs to learn from and to be judged by. Validation and test are cut from training where the source has none.

    seed: decides which training pairs become validation. Raises BadInput for missing columns and splits, and empty texts.
    """
    if tokenizer.eos_token_id is None:
        raise BadInput(
            "student.tokenizer: it has no end-of-text token, and a model must know when it has written all; add `eos_token` "
            "to its tokenizer_config.json"
        )
    rows = {role: _checked(found, data, role) for role, found in text_rows.read(data, _KINDS).items()}
    if "train" not in rows:
        raise BadInput(f"data.train: {data.source} has no training split; there: {', '.join(rows)}; name it")
    whole = len(rows["train"]["input"])
    for role, share, by in (("test", data.test_fraction, _TEST_SEED), ("validation", data.validation_fraction, seed)):
        if role not in rows:
            left = len(rows["train"]["input"])
            count = max(1, round(share * whole))
            if count >= left:
                raise BadInput(f"data.source {data.source}: {whole} training pairs are too few to cut {role} from")
            aside, kept = cut(np.zeros(left, np.int64), count, by)
            rows[role], rows["train"] = _put_aside(rows["train"], aside, kept, data.source, role)
    made = {}
    for role in ("train", "validation", "test"):
        limited = {kind: values[: data.limit] for kind, values in rows[role].items()}
        made[role] = _split(role, limited, data, tokenizer)
    if len(made["train"]) < 2:
        raise BadInput(f"data.source {data.source}: {len(made['train'])} pair to learn from; 2 at least are needed")
    return Splits(**made)


def padding(tokenizer: Any) -> int:
    """Return the id that pads texts; where it is a token too, masks tell the two apart."""
    return int(tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)


def start(tokenizer: Any) -> int:
    """Return the id that a decoder behind an encoder begins with: the beginning-of-text token (T5Gemma), else padding (T5)."""
    return padding(tokenizer) if tokenizer.bos_token_id is None else int(tokenizer.bos_token_id)


def _checked(found: text_rows.Columns, data: Data, role: str) -> dict[str, list[str]]:
    return {kind: checked(values, f"{data.source} ({role})", getattr(data, kind) or kind) for kind, values in found.items()}


def _put_aside(
    train: dict[str, list[str]], aside: np.ndarray, kept: np.ndarray, source: str, role: str
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Return the pairs to be judged by, and those to learn from: none that is one of the others again."""
    pairs = list(zip(train["input"], train["output"], strict=True))
    judged = {pairs[n] for n in aside.tolist()}
    other = np.array([n for n in kept.tolist() if pairs[n] not in judged], np.int64)
    if again := len(kept) - len(other):
        say(f"data (train): {again} of {len(kept)} pairs of {escape(source)} are in the {role} split too, and were left out")
    return _rows(train, aside), _rows(train, other)


def _rows(columns: dict[str, list[str]], positions: np.ndarray) -> dict[str, list[str]]:
    return {kind: [values[i] for i in positions.tolist()] for kind, values in columns.items()}


def _split(role: str, columns: dict[str, list[str]], data: Data, tokenizer: Any) -> SequenceSplit:
    inputs, cut_inputs = _ended(tokenizer, columns["input"], data.max_tokens, special=True)
    outputs, cut_outputs = _ended(tokenizer, columns["output"], data.max_tokens, special=False)
    for kind, count in (("inputs", cut_inputs), ("outputs", cut_outputs)):
        if count:
            say(
                f"[yellow]data ({role}): {count} of {len(inputs)} {kind} are longer than {data.max_tokens} tokens and were cut; "
                "raise data.max_tokens to keep them whole[/]"
            )
    digest = hashlib.sha256(f"{role} {data.max_tokens} {padding(tokenizer)} {start(tokenizer)}".encode())
    for rows in (inputs, outputs):
        digest.update(rows.values.tobytes() + rows.ends.tobytes())
    digest.update("\0".join(columns["output"]).encode())
    return SequenceSplit(role, digest.hexdigest()[:32], inputs, outputs, tuple(columns["output"]), tokenizer, data.max_tokens)


def _ended(tokenizer: Any, texts: list[str], longest: int, *, special: bool) -> tuple[Ragged, int]:
    """Return each text's ids with one end-of-text token at the end, and how many texts were cut.

    It also tells a decoder-only model where what it reads ends and what it writes begins.
    """
    end = tokenizer.eos_token_id
    ids, _ = tokenizers.encode(tokenizer, ["a"], longest, special)
    ends_itself = len(ids.values) and ids.values[-1] == end
    made, cuts = tokenizers.encode(tokenizer, texts, longest if ends_itself else longest - 1, special)
    if ends_itself:
        return made, cuts
    return Ragged.of([np.append(made.row(n), end) for n in range(len(made))]), cuts
