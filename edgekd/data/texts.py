"""Splits of text, as token ids: single texts to learn from, scored pairs to be judged by."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np

from ..errors import BadInput
from ..progress import say
from ..recipe import Data
from ..text import tokenizer as tokenizers
from ..text.ragged import Ragged
from . import text_rows
from .cut import cut
from .split import fingerprint_at

_SEED = 20_201
"""Which pairs are tested on does not change with the recipe's seed."""
_FEWEST = 3
"""Pairs that have an order worth the name."""


@dataclass(frozen=True)
class Reading:
    """How a model reads text. prefix: of the names of its arrays in a batch ("teacher_" where it has tokens of its own)."""

    tokenizer: Any
    prefix: str = ""

    @property
    def pad(self) -> int:
        return self.tokenizer.pad_token_id or 0


@dataclass(frozen=True)
class TextSplit:
    """Texts as token ids.

    fingerprint: changes with any text, and with where it is cut; what turned it into tokens is told apart by each model's own.
    columns: array name -> (rows, id that pads them): `input_ids` comes with `attention_mask`, `teacher_input_ids` with
    `teacher_attention_mask`. max_tokens: what longer texts were cut to. scores: float64 (N,), of pairs.
    """

    name: str
    fingerprint: str
    columns: Mapping[str, tuple[Ragged, int]] = field(repr=False)
    max_tokens: int
    scores: np.ndarray | None = field(default=None, repr=False)
    classes: tuple[str, ...] = ()

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each sample, all columns together."""
        return np.sum([rows.lengths for rows, _ in self.columns.values()], axis=0)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()))[0])

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Return samples: for each column its ids, int64 (n, longest of these), its mask (1: a token), and index int64 (n,)."""
        indices = np.asarray(indices, dtype=np.int64)
        taken = {"index": indices}
        for name, (rows, pad) in self.columns.items():
            taken[name], taken[name.replace("input_ids", "attention_mask")] = rows.padded(indices, pad)
        return taken

    def at(self, indices: np.ndarray) -> Self:
        """Return the split of these samples alone, in this order."""
        indices = np.asarray(indices, dtype=np.int64)
        return replace(
            self,
            fingerprint=fingerprint_at(self, indices),
            columns={name: (rows.at(indices), pad) for name, (rows, pad) in self.columns.items()},
            scores=None if self.scores is None else self.scores[indices],
        )


def texts(data: Data, readings: Mapping[str, Reading], judged: Collection[str] = ()) -> TextSplit:
    """Return the texts to learn from, as each model reads them: role -> Reading. Raises BadInput.

    judged: texts that the result is judged by, of which none is learned from.
    """
    rows = text_rows.read(data, ["text"], ["train"])
    if "train" not in rows:
        raise BadInput(f"data.train: {data.source} has no training split; name it")
    found = checked(rows["train"]["text"], data.source, "text")
    known = frozenset(judged)
    others = [text for text in found if text not in known]
    kept, out = others[: data.limit], len(found) - len(others)
    if len(kept) < 2:
        raise BadInput(
            f"{data.source}: {len(kept)} of its {len(found)} texts to learn from ({out} stand in the pairs to be judged by); 2 at least "
            "are needed"
        )
    if out:
        say(f"data (train): {out} of {len(found)} texts stand in the pairs to be judged by, and were left out")
    return _split("train", {"": kept}, data.source, data, readings)


def pairs(data: Data, readings: Mapping[str, Reading]) -> tuple[TextSplit, TextSplit, set[str]]:
    """Return the scored pairs of validation and test, and all sentences in them. Raises BadInput.

    Where the source has no validation split, its training split is it; else a quarter of the test pairs is put aside for it.
    """
    if data.pairs is None:
        raise BadInput(
            "data.pairs: text embeddings are judged by pairs of sentences that people scored (STS-B is such a set): "
            "add `pairs: {source: ...}` to `data`"
        )
    kinds = ("sentence1", "sentence2", "score")
    rows = text_rows.read(data.pairs, kinds)
    test = rows.get("test") or rows.get("validation") or rows["train"]
    validation = next((rows[role] for role in ("validation", "train") if role in rows and rows[role] is not test), None)
    test = _whole(test, data.pairs.source)
    if validation is None:
        if len(test["score"]) < 4 * _FEWEST:
            raise BadInput(
                f"data.pairs: {data.pairs.source}: {len(test['score'])} scored pair(s); {4 * _FEWEST} at least are needed, of which a quarter "
                f"picks the epoch, or {_FEWEST} and a validation split beside them"
            )
        aside, kept = cut(np.zeros(len(test["score"]), np.int64), len(test["score"]) // 4, _SEED)
        validation, test = ({k: [v[i] for i in part.tolist()] for k, v in test.items()} for part in (aside, kept))
    else:
        validation = _whole(validation, data.pairs.source)
    made, sentences = [], set[str]()
    for name, part in (("validation", validation), ("test", test)):
        scores = _judging(part["score"][: data.limit], f"data.pairs: {data.pairs.source} ({name})")
        columns = {p: part[k][: data.limit] for p, k in (("first_", "sentence1"), ("second_", "sentence2"))}
        sentences.update(*columns.values())
        made.append(_split(name, columns, data.pairs.source, data, readings, scores))
    return made[0], made[1], sentences


def checked(found: list[Any], source: str, kind: str) -> list[str]:
    """Return the texts of a column. Raises BadInput for the first that is empty or no text."""
    if not found:
        raise BadInput(f"{source}: has no rows")
    for number, text in enumerate(found, 1):
        if reason := wrong(text):
            raise BadInput(f"{source}, row {number}: `{kind}` is {reason}; fill it in, or leave the row out")
    return found


def wrong(text: Any) -> str | None:
    """Say why a value is no text; None where it is."""
    if text is None or (isinstance(text, str) and not text.strip()):
        return "empty"
    if not isinstance(text, str):
        return f"{type(text).__name__}, no text"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"no text: it has half a character at {error.start}"
    return None


def _whole(part: text_rows.Columns, source: str) -> text_rows.Columns:
    """Return the columns of a split of pairs, its scores as numbers. Raises BadInput for the first row that lacks something."""
    scores = []
    for number, score in enumerate(part["score"], 1):
        try:
            scores.append(float(score))
        except (TypeError, ValueError):
            scores.append(float("nan"))
        if not np.isfinite(scores[-1]):
            raise BadInput(
                f"data.pairs: {source}, row {number}: {score!r} is no score; name the column with data.pairs.score, or leave the row out"
            )
    return {**{kind: checked(part[kind], source, kind) for kind in ("sentence1", "sentence2")}, "score": scores}


def _judging(found: list[float], where: str) -> np.ndarray:
    """Return scores that an order can be read off. Raises BadInput."""
    if len(found) < _FEWEST:
        raise BadInput(f"{where}: {len(found)} scored pair(s); {_FEWEST} at least are needed to judge by")
    if np.ptp(found) == 0:
        raise BadInput(
            f"{where}: the scores of all {len(found)} pairs are {found[0]:g}; scores that differ are needed to judge by"
        )
    return np.asarray(found)


def _split(
    name: str, columns: Mapping[str, list[str]], source: str, data: Data, readings: Mapping[str, Reading],
    scores: np.ndarray | None = None,
) -> TextSplit:  # fmt: skip
    digest = hashlib.sha256(f"{name} {data.max_tokens}".encode())
    made: dict[str, tuple[Ragged, int]] = {}
    for values in columns.values():
        digest.update("\0".join([str(len(values)), *values]).encode())
    for role, reading in readings.items():
        cuts = 0
        for column, values in columns.items():
            ids, were_cut = tokenizers.encode(reading.tokenizer, values, data.max_tokens)
            made[f"{column}{reading.prefix}input_ids"] = ids, reading.pad
            cuts += were_cut
            if len(nothing := np.flatnonzero(ids.lengths == 0)):
                text = values[nothing[0]]
                raise BadInput(f"{source}: the {role}'s tokenizer makes no token of `{text[:40]}`; leave such texts out")
        if cuts:
            of = sum(len(values) for values in columns.values())
            say(
                f"[yellow]data ({name}): {cuts} of {of} texts are longer than {data.max_tokens} tokens of the {role} and were cut[/]"
            )
    if scores is not None:
        digest.update(scores.tobytes())
    return TextSplit(name, digest.hexdigest()[:32], made, data.max_tokens, scores)
