"""How a student is made small: numbers, scales, budgets, retraining."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from .strict import Strict
from .training import Distill, Lora, Objective


class Weights(Strict):
    """How weights are stored: the numbers, not the method."""

    bits: int = Field(8, ge=1, le=8)
    kind: Literal["uniform", "codebook"] = Field(
        "uniform", description="codebook: what method `differentiable` makes, and only it"
    )
    symmetric: bool | None = Field(
        None,
        description="zero is a level, and runtimes need no zero point; as the method does when absent: ptq and dynamic yes, the others from "
        "the smallest weight to the largest",
    )
    granularity: Literal["tensor", "channel", "group"] = "channel"
    group: int | None = Field(None, ge=2, description="weights that share a scale; makes the granularity `group`")

    @model_validator(mode="before")
    @classmethod
    def _a_group_size_means_groups(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("group") is not None and values.get("granularity", "channel") == "channel":
            return {**values, "granularity": "group"}  # a manifest has written the default out
        return values

    @model_validator(mode="after")
    def _groups_have_a_size(self) -> Self:
        if (self.granularity == "group") != (self.group is not None):
            raise ValueError("granularity `group` and a `group` size go together: give both or neither")
        return self


class Activations(Strict):
    """How activations are stored between layers."""

    bits: Literal[8, 16] = 8
    symmetric: bool = False
    dynamic: bool = Field(False, description="scaled anew at each call: what method `dynamic` makes, and only it")


class Calibration(Strict):
    """Which training samples post-training quantization looks at."""

    samples: int = Field(300, ge=1)
    batch_size: int = Field(32, ge=1, description="read at a time: memory does not grow with `samples`")
    overflow_fix: Literal["auto", "on", "off"] = Field(
        "auto", description="keep weights to 7 bits where int8 sums saturate; auto: asks the target, then this CPU"
    )

    @field_validator("overflow_fix", mode="before")
    @classmethod
    def _yaml_reads_on_as_true(cls, value: Any) -> Any:
        return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


class Scheme(Strict):
    """The numbers of a variant, whatever method made them. None means full precision.

    mixed: the bits that a budget chose from, tensor by tensor; then `weights.bits` says nothing.
    """

    weights: Weights | None = None
    activations: Activations | None = None
    mixed: tuple[int, ...] | None = None

    @property
    def label(self) -> str:
        """The scheme in short, as target files write it: fp32, w8, w8a8, w4g256, w2cg256 (c: codebook), w2-8 (mixed), w8a8d (dynamic)."""
        activations = f"a{self.activations.bits}" + "d" * self.activations.dynamic if self.activations else ""
        if self.weights is None:
            return activations or "fp32"
        bits = f"{min(self.mixed)}-{max(self.mixed)}" if self.mixed else str(self.weights.bits)
        weights = f"w{bits}" + "c" * (self.weights.kind == "codebook")
        weights += f"g{self.weights.group}" if self.weights.group else ""
        return weights + activations


class Budget(Strict):
    """What a variant may weigh. Each tensor then gets its own number of bits (quantize/bits.py)."""

    size_mb: float | None = Field(
        None, gt=0, description="of all weights as stored, those in full precision too; 1 MB is 10^6 bytes"
    )
    mean_bits: float | None = Field(None, gt=0, le=8, description="mean over the quantized weights, scales not counted")
    by: Literal["sensitivity", "gradient-norm"] = Field(
        "sensitivity",
        description="sensitivity: quantize one tensor at a time and see how far the outputs move; gradient-norm: as the paper does",
    )
    choices: tuple[Annotated[int, Field(ge=1, le=8)], ...] = Field(
        (2, 4, 8), min_length=2, description="bits that a tensor may get"
    )

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        if (self.size_mb is None) == (self.mean_bits is None):
            raise ValueError("a budget is either `size_mb` or `mean_bits`: give one of the two")
        if len(set(self.choices)) < 2:
            raise ValueError(f"choices {list(self.choices)} leave nothing to choose; give two numbers of bits or more")
        if self.mean_bits is not None and self.mean_bits < min(self.choices):
            least = min(self.choices)
            raise ValueError(
                f"mean_bits {self.mean_bits:g} is below {least}, the least of `choices`: raise it, or add fewer bits"
            )
        return self


class Retraining(Strict):
    """What the training of a variant changes of the recipe's `distill`. The rest is as there, its teacher and augmentation too.

    Without `distill` it is as `train`, with the objectives of `distill`; without a teacher the student in full precision is one.
    """

    epochs: int | None = Field(None, ge=1, description="when absent: a quarter of the recipe's, at least 1")
    batch_size: int | None = Field(None, ge=1, description="over all processes together")
    optimizer: Literal["adamw", "sgd"] | None = Field(None, description="when absent: the recipe's; differentiable: adamw")
    learning_rate: float | None = Field(
        None,
        gt=0,
        description="when absent: a fifth of the recipe's; lora: the recipe's; differentiable: 0.001, of points between 0 and 1",
    )
    momentum: float | None = Field(None, ge=0, lt=1, description="sgd only (Nesterov)")
    weight_decay: float | None = Field(None, ge=0, description="of weights; scales and points never decay")
    schedule: Literal["one-cycle", "cosine", "constant"] | None = None
    warmup: float | None = Field(None, ge=0, lt=1, description="share of the steps spent rising to the highest rate")
    gradient_clip: float | None = Field(None, ge=0, description="largest 2-norm of the gradient; 0: no limit")
    average: float | None = Field(
        None, ge=0, lt=1, description="decay of an exponential moving average of the weights; 0: none"
    )
    label_smoothing: float | None = Field(None, ge=0, lt=1)
    dropout: bool | None = Field(
        None,
        description="whether the network trains with its dropout, stochastic depth and the like; when absent not, but for lora, where it is the recipe's",
    )
    objectives: tuple[Objective, ...] | None = Field(None, min_length=1)

    def over(self, base: Distill, method: str) -> Distill:
        """Return the settings of a method's training. base: the recipe's."""
        changes: dict[str, Any] = {"epochs": max(1, round(base.epochs / 4)), "lora": None}
        changes["learning_rate"] = base.learning_rate / (1 if method == "lora" else 5)
        if method != "lora":
            # Its noise in the outputs is ten times that of 4 bits (models/slm: a KL of 0.19 against 0.013).
            changes["dropout"] = False
        if method == "differentiable":
            changes |= {"optimizer": "adamw", "learning_rate": 1e-3}
        changes |= {name: value for name in type(self).model_fields if (value := getattr(self, name)) is not None}
        for name in ("gradient_clip", "average"):
            if changes.get(name) == 0:
                changes[name] = None
        return base.model_copy(update=changes)


def _one_or_each(value: Any) -> str:
    return "list" if isinstance(value, list | tuple) else "mapping"


TRAINED = ("lora", "quantized-distillation", "differentiable")
"""Methods that train, in the order of a chain."""

CHAINS = (
    ("quantized-distillation", "differentiable"),
    ("lora", "round-to-nearest"),
    ("lora", "quantized-distillation"),
    ("lora", "differentiable"),
    TRAINED,
)


class VariantRecipe(Strict):
    """One way to make the student small."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="names a folder")
    method: str | tuple[str, ...] = Field(
        "ptq",
        description="none, ptq, dynamic, round-to-nearest, quantized-distillation or differentiable; a list is a chain: "
        "[quantized-distillation, differentiable] or [lora, quantized-distillation], where each goes on from what the one before left",
    )
    weights: Weights | None = None
    activations: Activations | None = Field(None, description="ptq and dynamic only")
    keep: tuple[str, ...] = Field(
        (), description="modules left in full precision: names, with * and ? as wildcards, and the words first and last"
    )
    calibration: Calibration = Calibration()
    style: Literal["straight-through", "truncated", "exact"] | None = Field(
        None,
        description="quantized-distillation: the gradient; straight-through when absent (quantize/uniform.py has the three)",
    )
    rounding: Literal["deterministic", "stochastic"] | None = Field(
        None, description="quantized-distillation: to the nearest level, or at random, in training; deterministic when absent"
    )
    scale: Literal["min-max", "learned"] | None = Field(
        None, description="quantized-distillation: a bucket's range is its extremes, or is learned (LSQ+); min-max when absent"
    )
    lora: Lora | None = Field(None, description="the adapters of a chain that begins with lora; those of `Lora` when absent")
    training: (
        Annotated[
            Annotated[Retraining, Tag("mapping")] | Annotated[tuple[Retraining, ...], Tag("list")], Discriminator(_one_or_each)
        ]
        | None
    ) = Field(None, description="changes to `distill`; a list has one for each method of a chain")
    budget: Budget | None = Field(None, description="bits tensor by tensor, in the place of `weights.bits`")

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods, one after the other."""
        return (self.method,) if isinstance(self.method, str) else self.method

    @property
    def trains(self) -> bool:
        """Whether anything is trained."""
        return any(method in TRAINED for method in self.methods)

    @property
    def scheme(self) -> Scheme:
        return Scheme(weights=self.weights, activations=self.activations, mixed=self.budget.choices if self.budget else None)

    def lessons(self, base: Distill) -> list[tuple[str, Distill]]:
        """Return (method, settings) of each training, in order. base: the recipe's `teaching`."""
        given = self.training if isinstance(self.training, tuple) else [self.training] * len(self.methods)
        pairs = zip(self.methods, given, strict=True)
        made = [(method, (changes or Retraining()).over(base, method)) for method, changes in pairs if method in TRAINED]
        adapters = {"lora": self.lora or Lora()}
        return [(method, told.model_copy(update=adapters) if method == "lora" else told) for method, told in made]

    @field_validator("method", mode="before")
    @classmethod
    def _is_a_name_or_names(cls, value: Any) -> Any:
        names = value if isinstance(value, list | tuple) else [value]
        if not names or not all(isinstance(name, str) for name in names):
            raise ValueError(f"give the name of a method or a list of names, not {value!r}")
        return names[0] if len(names) == 1 else tuple(names)  # a list of one is that one, in checks and in fingerprints

    @model_validator(mode="before")
    @classmethod
    def _weights_follow_the_method(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        method, weights = values.get("method"), values.get("weights")
        if weights is None and values.get("budget") is not None:
            weights = {}
        if (method[-1] if isinstance(method, list | tuple) and method else method) == "differentiable":
            if isinstance(weights, dict):
                weights = {"kind": "codebook", **weights}
            elif isinstance(weights, Weights) and "kind" not in weights.model_fields_set:
                weights = weights.model_copy(update={"kind": "codebook"})
        return values if weights is None else {**values, "weights": weights}

    @model_validator(mode="before")
    @classmethod
    def _dynamic_makes_one_scheme(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("method") not in ("dynamic", ["dynamic"], ("dynamic",)):
            return values
        activations = values.get("activations")
        if activations is None:
            activations = {"dynamic": True}
        elif isinstance(activations, dict):
            activations = {"dynamic": True, **activations}
        elif isinstance(activations, Activations) and "dynamic" not in activations.model_fields_set:
            activations = activations.model_copy(update={"dynamic": True})
        weights = values.get("weights")
        return {**values, "weights": {} if weights is None else weights, "activations": activations}

    @model_validator(mode="after")
    def _numbers_fit_the_method(self) -> Self:
        from ..names import nearest
        from ..quantize import METHODS
        from ..quantize.adapter_base import WHY

        for method in self.methods:
            if method not in METHODS:
                raise ValueError(f"no method `{method}`{nearest(method, METHODS)}; there are {', '.join(METHODS)}")
        if self.method == "lora":
            raise ValueError(
                "method `lora` makes no weights smaller: let a method follow that does, as in [lora, quantized-distillation]; for a "
                "student in full precision that learns by adapters there is `distill.lora`"
            )
        if "lora" in self.methods[1:]:
            raise ValueError(f"method [{', '.join(self.methods)}]: adapters come first, not into quantized weights: {WHY}")
        if len(self.methods) > 1 and self.methods not in CHAINS:
            chains = ", ".join(f"[{', '.join(chain)}]" for chain in CHAINS)
            raise ValueError(f"method [{', '.join(self.methods)}]: the chains that there are: {chains}")
        if self.method == "none" and (self.weights or self.activations):
            raise ValueError("method `none` keeps full precision: leave `weights`, `activations` and `budget` out")
        if self.activations and self.activations.dynamic != (self.method == "dynamic"):
            raise ValueError("activations are scaled at each call (`dynamic: true`) by method `dynamic`, and by no other")
        if self.method == "ptq" and self.weights is None:
            raise ValueError("method `ptq` needs `weights: {bits: 8}`")
        if isinstance(self.training, tuple) and len(self.training) != len(self.methods):
            raise ValueError(
                f"training has {len(self.training)} entries and method {len(self.methods)}: give one for each, or one mapping for all"
            )
        return self
