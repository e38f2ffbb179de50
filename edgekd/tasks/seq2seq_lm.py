"""Text to text (translation, summaries): one text is read and another written; how near that comes to people's decides.

Models are encoder-decoders, or decoder-only ones that read the source and go on with the target; teacher and student may be of
different kinds. chrF: Popovic 2015, as sacrebleu computes it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.markup import escape

from ..data import Split, Splits
from ..data.sequences import SequenceSplit, padding, sequences, start
from ..errors import BadInput, Missing
from ..export.graph import Graph, Runner
from ..progress import say
from ..recipe import Recipe
from ..text import tokenizer as tokenizers
from ..text import vocabulary
from ..text.forced import last_step, target_logprob
from ..text.generate import Sampling, generate
from . import Evaluation, Metric
from .causal_lm import refuse_long_prompt

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from ..models import LoadedModel

NONE = -1
"""Stands where no token was written."""

TEMPERATURE, TOP_K = 0.9, 128
"""How a student's own targets are drawn (Return of the Encoder)."""


class Seq2SeqLM:
    """The task protocol (`edgekd.tasks.Task`) for models that read one text and write another."""

    name = "seq2seq-lm"
    metric = Metric("chrF", higher_is_better=True)
    outputs = ("logits",)
    unit = "texts"

    def splits(self, recipe: Recipe) -> Splits:
        """Load the pairs of texts, as tokens of the student."""
        _sacrebleu()
        return sequences(recipe.data, tokenizers.of(recipe.student, "student"), recipe.seed)

    def models(self, recipe: Recipe, splits: Splits) -> tuple[LoadedModel | None, LoadedModel]:
        """Load teacher (None without one) and student, and make their vocabularies agree. Raises BadInput."""
        if recipe.teacher is None:
            return None, self.model(recipe, splits, "student", need_weights=recipe.student_is_trained)
        teacher = self.model(recipe, splits, "teacher", need_weights=True)
        student = _load(recipe, splits, "student", recipe.student_is_trained, teacher)
        theirs, mine = (vocabulary.Vocabulary(m.tokenizer, vocabulary.logits_of(m.module)) for m in (teacher, student))
        agreed = vocabulary.agree(theirs, mine, recipe.teaching.vocabulary)
        if agreed.why:
            say(escape(agreed.why))
        vocabulary.apply(agreed, teacher.module, student.module)
        for split in (splits.train, splits.validation, splits.test):
            for rows in (split.inputs, split.outputs):
                vocabulary.refuse_beyond(split.name, rows.values, student.tokenizer, agreed.kept)
        return teacher, student

    def model(self, recipe: Recipe, splits: Splits, role: str, *, need_weights: bool) -> LoadedModel:
        """Load one model, teacher or student. Raises BadInput."""
        starts = role == "student" and recipe.student.teacher_layers is not None and recipe.student.weights is None
        teacher = self.model(recipe, splits, "teacher", need_weights=True) if recipe.teacher and starts else None
        return _load(recipe, splits, role, need_weights, teacher)

    def inputs(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Pick the source's tokens, which an encoder takes."""
        return {name: batch[name] for name in ("input_ids", "attention_mask")}

    def forward(self, module: torch.nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return {"logits": (P, vocabulary)}: of each token to be written, row by row.

        With targets that the student wrote (`drawn_ids`), these are of those; while training, `given_logits` are of the data's.
        """
        model: Any = module
        if "drawn_ids" not in batch:
            return {"logits": model.target_logits(batch)}
        drawn = {**batch, "output_ids": batch["drawn_ids"], "output_mask": batch["drawn_mask"]}
        made = {"logits": model.target_logits(drawn)}
        return {**made, "given_logits": model.target_logits(batch)} if module.training else made

    def loss(self, outputs: dict[str, torch.Tensor], batch: dict[str, torch.Tensor], smoothing: float = 0.0) -> torch.Tensor:
        """Return cross entropy with the data's targets, mean over tokens."""
        from torch.nn import functional

        logits = outputs.get("given_logits", outputs["logits"])
        targets = batch["output_ids"][batch["output_mask"].bool()]
        return functional.cross_entropy(logits.float(), targets, label_smoothing=smoothing)

    def drawn(self, model: LoadedModel, batch: dict[str, torch.Tensor], seed: Sequence[int]) -> dict[str, torch.Tensor]:
        """Return the batch with targets that the student draws itself beside the data's: `drawn_ids` and `drawn_mask`.

        Learning from its teacher on what it writes itself, a student meets its own mistakes (Agarwal et al. 2023,
        arXiv:2306.13649). seed: of the draws, several numbers.
        """
        import torch

        from ..export.graph import torch_runner
        from ..models.mode import evaluation
        from ..models.seq2seq_lm import graphs

        device = batch["input_ids"].device
        with evaluation(model.module):
            made = _write(
                torch_runner(graphs(model.module), str(device)),  # type: ignore[arg-type]
                {name: batch[name].cpu().numpy() for name in ("input_ids", "attention_mask")},
                batch["output_ids"].shape[1],
                model.tokenizer,
                Sampling(TEMPERATURE, TOP_K, seed=int(np.random.default_rng(list(seed)).integers(2**31))),
            )
        real = _written(made, model.tokenizer.eos_token_id)
        ids, mask = np.where(real, made, padding(model.tokenizer)), real.astype(np.int64)
        drawn = {"drawn_ids": torch.from_numpy(ids), "drawn_mask": torch.from_numpy(mask)}
        return {**batch, **{name: values.to(device) for name, values in drawn.items()}}

    def evaluate(
        self, run: Runner, split: Split, batch_size: int = 64, advance: Callable[[int], object] | None = None
    ) -> Evaluation:
        """Return chrF / 100 of greedy generations. advance(n): called after n more pairs.

        outputs: target_logprob float32 (samples, longest target), of each token of the data's targets, 0 at padding; tokens, the
        generated ids (samples, longest allowed), NONE after a text's end.
        """
        assert isinstance(split, SequenceSplit)
        known, tokens = [], []
        for first in range(0, len(split), batch_size):
            batch = split.take(np.arange(first, min(first + batch_size, len(split))))
            forced_on = target_logprob(run, batch, start=split.start, pad=split.pad)
            known.append(_padded(forced_on, int(split.outputs.lengths.max()), 0.0))
            made = _write(run, batch, split.longest, split.tokenizer)
            tokens.append(_padded(np.where(_written(made, split.end), made, NONE), split.longest, NONE))
            if advance is not None:
                advance(len(batch["index"]))
        outputs = {"target_logprob": np.concatenate(known), "tokens": np.concatenate(tokens)}
        return self.score(outputs, split)

    def score(self, outputs: dict[str, np.ndarray], split: Split) -> Evaluation:
        """Return chrF / 100 of the generated tokens over all texts; each text's own chrF / 100 beside it."""
        assert isinstance(split, SequenceSplit)
        chrf = _sacrebleu().CHRF()
        written = texts_of(outputs["tokens"], split)
        each = [chrf.sentence_score(text, [wanted]).score / 100 for text, wanted in zip(written, split.references, strict=True)]
        whole = chrf.corpus_score(written, [list(split.references)]).score / 100
        return Evaluation(whole, np.array(each), outputs)

    def facts(self, made: Evaluation, split: Split) -> dict[str, float]:
        """Return what is told beside the score: BLEU, 0-100, and the perplexity of the data's targets."""
        assert isinstance(split, SequenceSplit)
        bleu = _sacrebleu().BLEU().corpus_score(texts_of(made.outputs["tokens"], split), [list(split.references)])
        return {"BLEU": float(bleu.score), "perplexity": float(np.exp(min(self.validation_loss(made, split), 700.0)))}

    def validation_loss(self, made: Evaluation, split: Split) -> float:
        """Return the cross entropy of the data's targets, mean over tokens. NaN where a log-probability is no number."""
        assert isinstance(split, SequenceSplit)
        return float(-made.outputs["target_logprob"].sum(dtype=np.float64) / split.outputs.lengths.sum())

    def graphs(self, model: LoadedModel, splits: Splits) -> list[Graph]:
        """Return `encoder` and `decoder`, or the one `decoder` of a decoder-only model."""
        from ..models.seq2seq_lm import graphs

        return graphs(model.module)  # type: ignore[arg-type]

    def golden(self, run: Runner, split: Split, positions: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
        """Return the sources at those positions for the encoder, and for the decoder a step on a cache that holds tokens already."""
        assert isinstance(split, SequenceSplit)
        return last_step(run, split.take(positions), start=split.start, pad=split.pad)

    def preprocessing(self, model: LoadedModel, split: Split, folder: Path) -> dict[str, Any]:
        """Write tokenizer.json into `folder`; return what to do with it, and how to generate."""
        assert isinstance(split, SequenceSplit)
        file = tokenizers.ship(split.tokenizer, folder)
        config: Any = model.module.net.config
        encodes = bool(config.is_encoder_decoder)
        begin = {"start": split.start} if encodes else {}
        writes = getattr(config, "decoder", None) if encodes else config
        context = getattr(writes, "max_position_embeddings", None)
        return {
            "host": [
                {"step": "tokenize", "file": file.name, "end": split.end, "longest": split.longest},
                {"step": "pad", "to": "the longest of the batch", "with": split.pad, "side": "right" if encodes else "left"},
                {"step": "generate", **begin, "end": split.end, "longest": split.longest, "context": context},
            ],
            "graph": [],
        }


def texts_of(tokens: np.ndarray, split: SequenceSplit) -> list[str]:
    """Return what generated tokens, (n, longest), say: up to the end-of-text token, without special tokens."""
    real = _written(tokens, split.end) & (tokens != NONE)
    rows = [row[kept].tolist() for row, kept in zip(tokens, real, strict=True)]
    return [text.strip() for text in split.tokenizer.batch_decode(rows, skip_special_tokens=True)]


def _load(recipe: Recipe, splits: Splits, role: str, need_weights: bool, teacher: LoadedModel | None) -> LoadedModel:
    from ..models.footprint import in_memory
    from ..models.seq2seq_lm import check_lengths, seq2seq_lm

    config = recipe.student if role == "student" else recipe.teacher
    if config is None:
        raise BadInput("the recipe has no teacher: add `teacher: {model: ...}`")
    with in_memory(config, role):
        made = seq2seq_lm(config, role=role, seed=recipe.seed, need_weights=need_weights, teacher=teacher)
    longest = max(int(split.inputs.lengths.max()) for split in (splits.train, splits.validation, splits.test))
    check_lengths(made, longest, recipe.data.max_tokens)
    if role == "student" and not made.module.net.config.is_encoder_decoder:  # type: ignore[union-attr]
        refuse_long_prompt(made, recipe)
    return made


def _write(
    run: Runner, batch: dict[str, np.ndarray], longest: int, tokenizer: Any, sampling: Sampling | None = None
) -> np.ndarray:
    """Return what the model writes after reading a batch's sources, int64 (n, at most longest)."""
    return generate(
        run, batch["input_ids"], batch["attention_mask"], max_new=longest, eos=tokenizer.eos_token_id, pad=padding(tokenizer),
        start=start(tokenizer), sampling=sampling,
    )  # fmt: skip


def _written(tokens: np.ndarray, end: int) -> np.ndarray:
    """Return where generated tokens, (n, longest), belong to the text: up to its end-of-text token, which is the last."""
    ends = tokens == end
    return np.cumsum(ends, axis=1) - ends == 0


def _padded(values: np.ndarray, length: int, fill: float) -> np.ndarray:
    return np.pad(values, ((0, 0), (0, length - values.shape[1])), constant_values=fill)


def _sacrebleu() -> Any:
    """Return the package's metrics. Raises Missing."""
    try:
        from sacrebleu import metrics
    except ImportError:
        raise Missing("seq2seq-lm is scored with sacrebleu: pip install sacrebleu") from None
    return metrics


TASK = Seq2SeqLM()
