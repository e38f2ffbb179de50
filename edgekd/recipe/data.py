"""Where samples come from, and what a model is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from .strict import Strict, refuse_infinities


class Pairs(Strict):
    """Pairs of sentences with a score by people of how alike they are: what text embeddings are judged on."""

    source: str = Field(description="a hub id, a folder or a file (parquet, csv, jsonl)")
    config: str | None = Field(None, description="configuration name of a hub dataset")
    validation: str | None = Field(
        None, description="name of the split that picks the best epoch; cut from another when absent"
    )
    test: str | None = Field(None, description="name of the split the gate is measured on; found by its usual name when absent")
    sentence1: str | None = Field(None, description="column with the first sentence; the usual names are tried when absent")
    sentence2: str | None = Field(None, description="column with the second sentence; the usual names are tried when absent")
    score: str | None = Field(None, description="column with the score; the usual names are tried when absent")


class Data(Strict):
    """Where samples come from and how they are split."""

    source: str = Field(
        description="digits, a hub id, a folder (images, parquet, IDX, text) or a file (parquet, csv, jsonl, txt)"
    )
    config: str | None = Field(None, description="configuration name of a hub dataset")
    train: str | None = Field(None, description="name of the split to train on; found by its usual name when absent")
    validation: str | None = Field(None, description="name of the split that picks the best epoch; cut from train when absent")
    test: str | None = Field(None, description="name of the split the gate is measured on; cut from train when absent")
    image: str | None = Field(None, description="column with the picture; the usual names are tried when absent")
    label: str | None = Field(None, description="column with the class; the usual names are tried when absent")
    text: str | None = Field(None, description="column with the text; the usual names are tried when absent")
    input: str | None = Field(None, description="seq2seq-lm: column with what the model reads, such as `en`")
    output: str | None = Field(None, description="seq2seq-lm: column with what it is to write, such as `de`")
    pairs: Pairs | None = Field(None, description="text-embedding: scored pairs to judge by")
    max_tokens: int = Field(128, ge=2, description="text longer than this is cut, and counted")
    validation_fraction: float = Field(0.1, gt=0, lt=1, description="share cut from train when there is no validation split")
    test_fraction: float = Field(0.2, gt=0, lt=1, description="share cut from train when there is no test split")
    limit: int | None = Field(None, ge=1, description="use at most so many samples of each split")
    in_memory_gb: float = Field(2.0, ge=0, description="decode once and keep in memory up to this size, else decode per batch")


class Preprocess(Strict):
    """What happens to a raw picture (uint8, 0-255) before the network: resize on the host, the rest in the graph."""

    size: int | tuple[int, int] | None = Field(None, description="height and width in pixels; the data's own when absent")
    mean: tuple[float, ...] = Field((0.0,), description="per channel, of values scaled to 0-1")
    std: tuple[float, ...] = Field((1.0,), description="per channel, of values scaled to 0-1")
    crop: float = Field(1.0, gt=0, le=1, description="share of the shorter side kept by the centre crop")
    interpolation: Literal["bilinear", "bicubic", "nearest"] = "bilinear"

    @field_validator("size", mode="after")
    @classmethod
    def _has_pixels(cls, size: int | tuple[int, int] | None) -> int | tuple[int, int] | None:
        if size is not None and min(size if isinstance(size, tuple) else (size,)) < 1:
            raise ValueError(f"height and width must be at least 1, not {size}")
        return size

    @model_validator(mode="after")
    def _as_many_means_as_deviations(self) -> Self:
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} values and std {len(self.std)}: give one of each per channel")
        if any(s <= 0 for s in self.std):
            raise ValueError(f"std must be above 0, not {list(self.std)}")
        return self


class Model(Strict):
    """A teacher or a student."""

    model: str = Field(
        description="timm:NAME, hf:ID-or-folder, py:FILE.py:FUNCTION, or a run folder; student: `teacher` for one of its kind"
    )
    weights: Path | None = Field(None, description="safetensors, or a state dict saved with torch.save")
    adapter: Path | None = Field(
        None, description="folder with an adapter of peft (LoRA), merged into the weights when the model is loaded"
    )
    tokenizer: str | None = Field(None, description="text: hub id or folder; where the model is when absent")
    pooling: Literal["mean", "cls", "last"] | None = Field(
        None,
        description="text-embedding: which tokens the embedding is made of; what the model's folder says, or mean, when absent",
    )
    teacher_layers: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        None, min_length=1, description="student: start from these layers of the teacher, and from the rest of its weights"
    )
    preprocess: Preprocess | None = Field(None, description="this model's own; else the recipe's; else the model's default")
    classes: tuple[str, ...] | None = Field(None, description="class names in the order of the outputs")
    arguments: Annotated[dict[str, Any], AfterValidator(refuse_infinities)] = Field(
        default_factory=dict, description="keyword arguments for the model's maker"
    )
