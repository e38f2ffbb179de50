"""Whether teacher and student mean the same tokens by the same numbers, and what to do where they do not.

A teacher's logits say something about a student's only if column n stands for the same token in both. Three things may be in the
way: the models were given other tokenizers, their vocabularies were padded to other sizes, or the same tokens have other numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..errors import BadInput
from . import tokenizer as tokenizers

if TYPE_CHECKING:
    from torch import nn

Policy = Literal["refuse", "cut", "align"]

KEPT = "edgekd_vocabulary"
"""Key of a student's config.json: how many of its logits were learned, where the rest was cut."""


@dataclass(frozen=True)
class Vocabulary:
    """A model's tokenizer, and how many logits it gives: often more than there are tokens, for speed."""

    tokenizer: Any
    rows: int

    @property
    def tokens(self) -> dict[str, int]:
        """Token -> id, added tokens too."""
        return dict(self.tokenizer.get_vocab())


@dataclass(frozen=True)
class Agreement:
    """What makes logits comparable. kept: both models' logits are cut to the first so many, None: they stay whole.

    order: the student's id -> the teacher's, int64 (kept,), where they differ. why: for the user, empty where nothing was done.
    """

    kept: int | None = None
    order: np.ndarray | None = None
    why: str = ""


def fits(vocabulary: Vocabulary, role: str) -> None:
    """Raise BadInput where the tokenizer has ids that the model has no row for."""
    largest = max(vocabulary.tokens.values())
    if largest >= vocabulary.rows:
        raise BadInput(
            f"{role}: its tokenizer has ids up to {largest}, and the model's vocabulary has {vocabulary.rows} entries: name the "
            f"model's own tokenizer with {role}.tokenizer, or set {role}.arguments.vocab_size: {largest + 1}"
        )


def agree(teacher: Vocabulary, student: Vocabulary, policy: Policy) -> Agreement:
    """Return what has to be done so that logits match. Raises BadInput, with what differs and the ways out.

    cut: where one vocabulary begins with the other, padding at the end included, both models' logits are cut to the common part.
    align: where the teacher has all the student's tokens under other ids, the teacher's rows are put in the student's order.
    """
    theirs, mine = teacher.tokens, student.tokens
    rules = tokenizers.fingerprint(teacher.tokenizer) != tokenizers.fingerprint(student.tokenizer)
    if theirs == mine and not rules and teacher.rows == student.rows:
        return Agreement()
    common = min(max(theirs.values()), max(mine.values())) + 1
    begins = _first(theirs, common) == _first(mine, common)
    lacking = sorted(mine.keys() - theirs.keys(), key=mine.__getitem__)
    whole = sorted(mine.values()) == list(range(len(mine)))
    differs = _difference(theirs, mine, teacher.rows, student.rows, rules)
    if begins and policy == "cut":
        # the same tokens: padding alone is cut, and what is left is the same for both
        return Agreement(common, None, f"{differs}: both are cut to the first {common} tokens")
    if not lacking and whole and policy == "align":
        if theirs == mine:
            return Agreement(common, None, f"{differs}: both are cut to the first {common} tokens")
        order = np.array([theirs[token] for token in sorted(mine, key=mine.__getitem__)], np.int64)
        return Agreement(len(order), order, f"{differs}: the teacher's are put in the student's order")
    ways = []
    if begins:
        ways.append(f"`cut` keeps the first {common} tokens, which both have")
    if not lacking and whole and not begins:
        ways.append("`align` puts the teacher's tokens in the student's order")
    if ways:
        raise BadInput(
            f"distill.vocabulary: {policy}: {differs}. Set distill.vocabulary to another: {'; '.join(ways)}; or give the student "
            "the teacher's tokenizer and arguments.vocab_size"
        )
    told = ", ".join(repr(token) for token in lacking[:5])
    missing = f" (the teacher lacks {len(lacking)} of the student's tokens, such as {told})" if lacking else ""
    raise BadInput(
        f"distill.vocabulary: {policy}: {differs}{missing}. Neither `cut` nor `align` makes logits comparable here: give the student "
        "the teacher's tokenizer (student.tokenizer), or choose a teacher that has the student's"
    )


def apply(agreed: Agreement, teacher: Any, student: Any) -> None:
    """Make two wrapped models (`.net`, `.vocabulary`) agree, in place: the teacher's rows reordered, logits cut.

    The teacher then reads and writes the student's ids. The student's configuration keeps what was cut: logits that nothing was taught
    must not come back when it is loaded without its teacher.
    """
    if agreed.order is not None:
        reorder(teacher.net, agreed.order)
    if agreed.kept is not None:
        teacher.vocabulary = student.vocabulary = agreed.kept
        setattr(student.net.config, KEPT, agreed.kept)


def reorder(net: Any, order: np.ndarray) -> None:
    """Put a transformers model's embedding and output rows in another order, in place: new row n is old row order[n].

    Layers that share their weights go on sharing them.
    """
    import torch
    from torch import nn

    layers: list[nn.Module | None] = [net.get_input_embeddings(), net.get_output_embeddings()]
    if net.config.is_encoder_decoder:
        layers += [stack.get_input_embeddings() for stack in (net.get_encoder(), net.get_decoder())]
    at = torch.from_numpy(order)
    made: dict[int, nn.Parameter] = {}
    for layer in dict.fromkeys(layer for layer in layers if layer is not None):
        for name in ("weight", "bias"):
            old = layer._parameters.get(name)
            if old is not None and not any(old is new for new in made.values()):
                new = made.setdefault(id(old), nn.Parameter(old.detach()[at], requires_grad=old.requires_grad))
                setattr(layer, name, new)
        for name, value in (("num_embeddings", len(order)), ("out_features", len(order)), ("padding_idx", None)):
            if hasattr(layer, name):
                setattr(layer, name, value)
    net.config.vocab_size = len(order)


def refuse_beyond(name: str, ids: np.ndarray, tokenizer: Any, kept: int | None) -> None:
    """Raise BadInput where texts have tokens that were cut off. name: of the split; ids: of its tokens, of any shape."""
    if kept is not None and ids.size and (largest := int(ids.max())) >= kept:
        token = tokenizer.convert_ids_to_tokens(largest)
        raise BadInput(
            f"distill.vocabulary: cut: the {name} texts have the token {token!r} ({largest}), which the common part of {kept} tokens "
            "lacks: give the student the teacher's tokenizer (student.tokenizer)"
        )


def embeddings_of(net: Any) -> int | None:
    """Return how many tokens a network has embeddings for; None where it does not tell."""
    table = net.get_input_embeddings() if hasattr(net, "get_input_embeddings") else None
    weight = next(table.parameters(), None) if table is not None else None  # of a factorised one, the first has the tokens
    return None if weight is None else int(weight.shape[0])


def logits_of(model: Any) -> int:
    """Return how many logits a wrapped model gives, as cut when it was taught."""
    return int(model.vocabulary or rows_of(model.net))


def rows_of(net: nn.Module) -> int:
    """Return how many logits a transformers language model gives."""
    head: Any = net.get_output_embeddings()  # type: ignore[operator]
    return int(head.weight.shape[0])


def _first(tokens: dict[str, int], count: int) -> dict[str, int]:
    return {token: place for token, place in tokens.items() if place < count}


def _difference(theirs: dict[str, int], mine: dict[str, int], their_rows: int, my_rows: int, rules: bool) -> str:
    """Say how two vocabularies differ."""
    if theirs != mine:
        if theirs.keys() == mine.keys():
            moved = [token for token in mine if mine[token] != theirs[token]]
            token = min(moved, key=mine.__getitem__)
            return (
                f"teacher and student have the same {len(mine)} tokens with other ids, such as {token!r}: {theirs[token]} of the "
                f"teacher, {mine[token]} of the student"
            )
        return (
            f"teacher and student have different tokenizers, of {len(theirs)} and {len(mine)} tokens, "
            f"{len(theirs.keys() & mine.keys())} of them in both"
        )
    if their_rows != my_rows:
        return f"teacher and student have the same {len(mine)} tokens, padded to vocabularies of {their_rows} and {my_rows} entries"
    assert rules
    return (
        f"teacher and student have the same {len(mine)} tokens, but their tokenizers cut text into them differently (normalizer, "
        "merges or what they put around a text); the student's is the one that is used"
    )
