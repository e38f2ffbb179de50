"""Causal language models: text in, the next token out; how often it is the text's own decides."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.markup import escape

from ..data import Splits
from ..data.blocks import Blocks, blocks, front
from ..errors import BadInput
from ..export.graph import Graph, Runner
from ..progress import say
from ..recipe import Model, Recipe
from ..text import forced
from ..text import tokenizer as tokenizers
from . import Evaluation, Metric

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from ..models import LoadedModel

GRAPH = "decoder"
_GOLDEN = (16, 8)
"""Tokens in the cache, and tokens read beside it, of a golden input."""
_OFFSET = 2
"""Rows that a table of positions may have beyond the context (OPT counts from the third)."""


class CausalLM:
    """The task protocol (`edgekd.tasks.Task`) for models that write a text on, token by token."""

    name = "causal-lm"
    metric = Metric("accuracy", higher_is_better=True)
    outputs = ("logits",)
    unit = "blocks"

    def splits(self, recipe: Recipe) -> Splits[Blocks]:
        """Load the text as blocks of the student's tokens, which the teacher reads too."""
        return blocks(recipe.data, tokenizers.of(recipe.student, "student"))

    def models(self, recipe: Recipe, splits: Splits[Blocks]) -> tuple[LoadedModel | None, LoadedModel]:
        """Load teacher (None without one) and student and make their vocabularies agree. Raises BadInput.

        A student that is not distilled must bring weights.
        """
        from ..text import vocabulary

        teacher = self.model(recipe, splits, "teacher", need_weights=True) if recipe.teacher else None
        student = _loaded(recipe.student, recipe, splits, "student", teacher, recipe.student_is_trained)
        if teacher is not None:
            theirs, mine = (vocabulary.Vocabulary(m.tokenizer, vocabulary.logits_of(m.module)) for m in (teacher, student))
            agreed = vocabulary.agree(theirs, mine, recipe.teaching.vocabulary)
            if agreed.why:
                say(escape(agreed.why))
            vocabulary.apply(agreed, teacher.module, student.module)
            for split in (splits.train, splits.validation, splits.test):
                vocabulary.refuse_beyond(split.name, split.ids, student.tokenizer, agreed.kept)
        return teacher, student

    def model(self, recipe: Recipe, splits: Splits[Blocks], role: str, *, need_weights: bool) -> LoadedModel:
        """Load one model, teacher or student. Raises BadInput."""
        if role == "student":
            starts = recipe.student.teacher_layers is not None and recipe.student.weights is None
            teacher = self.model(recipe, splits, "teacher", need_weights=True) if recipe.teacher and starts else None
            return _loaded(recipe.student, recipe, splits, "student", teacher, need_weights)
        config: Model | None = recipe.teacher
        if config is None:
            raise BadInput("the recipe has no teacher: add `teacher: {model: ...}`")
        return _loaded(config, recipe, splits, role, None, need_weights)

    def inputs(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Pick the tokens; the graph's cache is not in a batch (see `golden`)."""
        return {name: batch[name] for name in ("input_ids", "attention_mask")}

    def forward(self, module: torch.nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return {"logits": (P, vocabulary)}: the scores of every token of the batch but each block's first, block by block."""
        return {"logits": module.target_logits(batch)}  # type: ignore[operator]

    def loss(self, outputs: dict[str, torch.Tensor], batch: dict[str, torch.Tensor], smoothing: float = 0.0) -> torch.Tensor:
        """Return the cross entropy, natural logarithm, mean over tokens. smoothing: label smoothing (Szegedy et al. 2016), 0-1."""
        from torch.nn import functional

        targets = batch["input_ids"][:, 1:][batch["attention_mask"][:, 1:].bool()]
        return functional.cross_entropy(outputs["logits"].float(), targets, label_smoothing=smoothing)

    def evaluate(
        self, run: Runner, split: Blocks, batch_size: int = 16, advance: Callable[[int], object] | None = None
    ) -> Evaluation:
        """Return the share of tokens, 0-1, that the model holds for likeliest given the text before them, in its block.

        Outputs, int32 and float32 (blocks, tokens - 1): `tokens`, those likeliest ones, and `target_logprob`, the natural logarithm of
        the probability that the text's own got. advance(n): called after n more blocks.
        """
        parts: dict[str, list[np.ndarray]] = {"target_logprob": [], "tokens": []}
        start, rows = 0, 1  # one block first, for the size of the vocabulary
        while start < len(split):
            batch = split.take(np.arange(start, min(start + rows, len(split))))
            ids = batch["input_ids"]
            logits = forced.scores_at(run, ids, batch["attention_mask"], np.arange(ids.shape[1] - 1))
            for name, made in zip(parts, forced.judged(logits, ids[:, 1:]), strict=True):
                parts[name].append(made)
            start += len(ids)
            rows = max(1, min(batch_size, forced.SCORES // logits[0].size))
            if advance is not None:
                advance(len(ids))
        return self.score({name: np.concatenate(made) for name, made in parts.items()}, split)

    def score(self, outputs: dict[str, np.ndarray], split: Blocks) -> Evaluation:
        """Return the accuracy of the next token; a block's part in it is its own. A token of unknown probability counts as wrong."""
        right = (outputs["tokens"] == split.ids[:, 1:]) & np.isfinite(outputs["target_logprob"])
        each = right.mean(axis=1).astype(np.float32)
        return Evaluation(float(right.mean()), each, outputs)

    def facts(self, made: Evaluation, split: Blocks) -> dict[str, float]:
        """Return the perplexity: the exponential of the cross entropy, mean over tokens."""
        return {"perplexity": float(np.exp(min(self.validation_loss(made, split), 700.0)))}

    def validation_loss(self, made: Evaluation, split: Blocks) -> float:
        """Return the cross entropy, natural logarithm, mean over tokens: its exponential is the perplexity."""
        return -float(made.outputs["target_logprob"].mean(dtype=np.float64))

    def graphs(self, model: LoadedModel, splits: Splits[Blocks]) -> list[Graph]:
        """Return the one graph, which reads a prompt, and token by token what follows it; see `edgekd.models.causal_lm.decoder_graph`."""
        from ..models.causal_lm import decoder_graph

        return [decoder_graph(model.module, GRAPH)]  # type: ignore[arg-type]

    def golden(self, run: Runner, split: Blocks, positions: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
        """Return the inputs of a call in the middle of those blocks: the first tokens are in the cache, the next ones are read."""
        batch = split.take(positions)
        ids, mask = (batch[name][:, : sum(_GOLDEN)] for name in ("input_ids", "attention_mask"))
        return forced.halfway(run, ids, mask, max(1, ids.shape[1] * _GOLDEN[0] // sum(_GOLDEN)))

    def preprocessing(self, model: LoadedModel, split: Blocks, folder: Path) -> dict[str, Any]:
        """Write tokenizer.json into `folder`; return what to do with it: how to generate."""
        from ..models.causal_lm import context_of

        file = tokenizers.ship(model.tokenizer, folder)
        end = model.tokenizer.eos_token_id
        pad = model.tokenizer.pad_token_id
        return {
            "host": [
                {"step": "tokenize", "file": file.name, "special_tokens": False, "begin": front(model.tokenizer)},
                {"step": "pad", "to": "the longest of the batch, before the text", "with": end if pad is None else pad},
                {"step": "generate", "end": end, "context": context_of(model.module.net)},
            ],
            "graph": [],
        }


def _loaded(
    config: Model, recipe: Recipe, splits: Splits[Blocks], role: str, teacher: LoadedModel | None, need_weights: bool
) -> LoadedModel:
    """Load a model. Raises BadInput, also where it does not know all tokens of its tokenizer, or cannot hold a block."""
    from .. import models
    from ..models.causal_lm import context_of
    from ..models.footprint import in_memory
    from ..text import vocabulary

    with in_memory(config, role):
        made = models.causal_lm(config, role=role, seed=recipe.seed, need_weights=need_weights, teacher=teacher)
    vocabulary.fits(vocabulary.Vocabulary(made.tokenizer, vocabulary.logits_of(made.module)), made.role)
    context, length = context_of(made.module.net), splits.train.ids.shape[1]
    if context is not None and length > context:
        raise BadInput(
            f"data.max_tokens: blocks of {length} tokens are longer than the {made.role}'s context of {context} "
            f"(max_position_embeddings): set data.max_tokens to {context} or less"
        )
    if role == "student":
        refuse_long_prompt(made, recipe)
    return made


def refuse_long_prompt(student: LoadedModel, recipe: Recipe) -> None:
    """Raise BadInput where the prompt that is timed does not fit a decoder which has a table of positions, and fails beyond it."""
    from torch import nn

    from ..models.causal_lm import context_of

    net: Any = student.module.net
    context, timed = context_of(net), recipe.bench.prompt_tokens + recipe.bench.new_tokens
    tables = [one for one in net.modules() if isinstance(one, nn.Embedding) and one is not net.get_input_embeddings()]
    if context is not None and timed > context and any(0 <= one.num_embeddings - context <= _OFFSET for one in tables):
        raise BadInput(
            f"bench.prompt_tokens: {recipe.bench.prompt_tokens} and {recipe.bench.new_tokens} new ones do not fit the student's context "
            f"of {context} tokens: set bench.prompt_tokens and bench.new_tokens to {context} together, or less"
        )


TASK = CausalLM()
