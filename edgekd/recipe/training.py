"""How a network is fitted, and what it is fitted to."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from .strict import Strict, refuse_infinities


class Augment(Strict):
    """Random changes to training pictures, seeded per sample and epoch."""

    crop: int = Field(0, ge=0, description="pad by so many pixels and crop back at a random place")
    flip: bool = Field(False, description="mirror left-right half the time")
    erase: float = Field(0.0, ge=0, lt=1, description="chance to blank a random rectangle")


class Lora(Strict):
    """Freeze the weights, train low-rank adapters beside them: W + alpha / rank * B A. Merged in the end."""

    rank: int = Field(16, ge=1)
    alpha: float = Field(32, gt=0)
    dropout: float = Field(0.05, ge=0, lt=1, description="of what goes into an adapter, in training")
    targets: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="layers: names or ends of names such as q_proj, with * and ?, or modules around linear ones; when absent the "
        "linear layers of attention and MLP blocks",
    )
    train: tuple[str, ...] = Field(
        (), description="modules that are trained whole beside the adapters, such as a new classifier"
    )


class Training(Strict):
    """How a network is fitted."""

    epochs: int = Field(30, ge=1)
    batch_size: int = Field(128, ge=1, description="over all processes together")
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = Field(2e-3, gt=0, description="at its highest")
    momentum: float = Field(0.9, ge=0, lt=1, description="sgd only (Nesterov)")
    weight_decay: float = Field(0.01, ge=0)
    schedule: Literal["one-cycle", "cosine", "constant"] = "cosine"
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps spent rising to the highest rate")
    gradient_clip: float | None = Field(None, gt=0, description="largest 2-norm of the gradient")
    average: float | None = Field(None, gt=0, lt=1, description="decay of an exponential moving average of the weights")
    augment: Augment = Augment()
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    dropout: bool = Field(True, description="false: the network trains without its dropout, stochastic depth and the like")
    checkpoint_minutes: float = Field(1.0, ge=0, description="0: after every step")
    lora: Lora | None = Field(None, description="train adapters alone, and merge them in the end (needs peft)")


class Logits(Strict):
    """weight * T^2 * D(teacher || student) of softmax(z / T), mean over samples."""

    kind: Literal["logits"] = "logits"
    weight: float = Field(1.0, ge=0)
    divergence: Literal["kl", "reverse-kl", "js"] = "kl"
    temperature: float = Field(2.0, gt=0)


class TaskLoss(Strict):
    """weight * the task's own loss against the labels."""

    kind: Literal["task"] = "task"
    weight: float = Field(1.0, ge=0)


class Features(Strict):
    """weight * distance between a layer of the student and one of the teacher, over a linear projector where widths differ."""

    kind: Literal["features"] = "features"
    weight: float = Field(1.0, ge=0)
    student: str = Field(description="module name in the student, as in named_modules()")
    teacher: str = Field(description="module name in the teacher")
    distance: Literal["mse", "l1", "smooth-l1", "cosine"] = "mse"


class Embedding(Strict):
    """weight * distance between the student's and the teacher's embedding of the same text; over a linear projector where widths differ."""

    kind: Literal["embedding"] = "embedding"
    weight: float = Field(1.0, ge=0)
    distance: Literal["cosine", "mse"] = "cosine"


class Similarities(Strict):
    """weight * KL(teacher || student) of how alike each text of a batch is to the others: softmax(similarity / temperature)."""

    kind: Literal["similarities"] = "similarities"
    weight: float = Field(1.0, ge=0)
    temperature: float = Field(0.05, gt=0)


KINDS = ("logits", "task", "features", "embedding", "similarities")


class Installed(BaseModel):
    """An objective of another package, found by the entry point `edgekd.objectives`; its options are checked by itself."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    kind: str
    weight: float = Field(1.0, ge=0)

    @model_validator(mode="after")
    def _is_there(self) -> Self:
        from .. import plugins
        from ..names import nearest

        known = [*KINDS, *plugins.found(plugins.OBJECTIVES)]
        if self.kind not in known:
            raise ValueError(f"unknown kind `{self.kind}`{nearest(self.kind, known)}; there are {', '.join(known)}")
        refuse_infinities(self.model_extra)
        return self


def _whose_objective(value: Any) -> str | None:
    kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    return kind if kind in (*KINDS, None) else "installed"


Objective = Annotated[
    Annotated[Logits, Tag("logits")]
    | Annotated[TaskLoss, Tag("task")]
    | Annotated[Features, Tag("features")]
    | Annotated[Embedding, Tag("embedding")]
    | Annotated[Similarities, Tag("similarities")]
    | Annotated[Installed, Tag("installed")],
    Discriminator(_whose_objective),
]


OBJECTIVES: dict[str, tuple[Objective, ...]] = {
    "image-classification": (Logits(weight=0.7), TaskLoss(weight=0.3)),
    "text-embedding": (Embedding(), Similarities()),
    "causal-lm": (Logits(weight=0.9, temperature=1), TaskLoss(weight=0.1)),
    "seq2seq-lm": (Logits(weight=0.9, temperature=1), TaskLoss(weight=0.1)),
}
"""Task -> what a student is fitted to where the recipe does not say."""


class Distill(Training):
    """Fit the student to the teacher."""

    objectives: tuple[Objective, ...] = Field(OBJECTIVES["image-classification"], min_length=1)
    teacher: Literal["cached", "live"] = Field(
        "cached", description="cached: the teacher's outputs computed once, memory-mapped"
    )
    views: int = Field(1, ge=1, description="with augmentation and a cached teacher: how many seeded views of each sample")
    vocabulary: Literal["refuse", "cut", "align"] = Field(
        "refuse",
        description="language models whose tokens or numbers of logits differ: refuse; cut to the part that both begin with; align "
        "the teacher's ids with the student's, where the same tokens have other ids",
    )
    targets: Literal["given", "student"] = Field(
        "given",
        description="seq2seq-lm: match the teacher on the data's targets, or on what the student writes itself (temperature 0.9, top-k "
        "128); objective `task` reads the data's",
    )
