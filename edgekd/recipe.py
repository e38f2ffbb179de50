"""The recipe: what the user wrote, checked. The only place where a default lives.

>>> recipe = load("models/digits", settings=["distill.epochs=3"])
>>> recipe.distill.epochs
3
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator


class Strict(BaseModel):
    """An unknown key is an error, and so are NaN and infinity; a recipe never changes once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _refuse_infinities(value: Any) -> Any:
    """Refuse NaN and infinity anywhere inside a value whose type is not known."""
    inside = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list | tuple) else []
    for item in inside:
        _refuse_infinities(item)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"numbers must be finite, not {value}")
    return value


# --- data and models ---------------------------------------------------------------------------


class Data(Strict):
    """Where samples come from and how they are split."""

    source: str = Field(description="digits, a hub id, a folder (images, parquet, IDX) or a file (parquet, csv, jsonl)")
    config: str | None = Field(None, description="configuration name of a hub dataset")
    train: str | None = Field(None, description="name of the split to train on; found by its usual name when absent")
    validation: str | None = Field(None, description="name of the split that picks the best epoch; cut from train when absent")
    test: str | None = Field(None, description="name of the split the gate is measured on; cut from train when absent")
    image: str | None = Field(None, description="column with the picture; the usual names are tried when absent")
    label: str | None = Field(None, description="column with the class; the usual names are tried when absent")
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

    model: str = Field(description="timm:NAME, hf:ID-or-folder, py:FILE.py:FUNCTION, or a run folder")
    weights: Path | None = Field(None, description="safetensors, or a state dict saved with torch.save")
    preprocess: Preprocess | None = Field(None, description="this model's own; else the recipe's; else the model's default")
    classes: tuple[str, ...] | None = Field(None, description="class names in the order of the outputs")
    arguments: Annotated[dict[str, Any], AfterValidator(_refuse_infinities)] = Field(
        default_factory=dict, description="keyword arguments for the model's maker"
    )


# --- training ----------------------------------------------------------------------------------


class Augment(Strict):
    """Random changes to training pictures, seeded per sample and epoch."""

    crop: int = Field(0, ge=0, description="pad by so many pixels and crop back at a random place")
    flip: bool = Field(False, description="mirror left-right half the time")
    erase: float = Field(0.0, ge=0, lt=1, description="chance to blank a random rectangle")


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
    checkpoint_minutes: float = Field(1.0, ge=0, description="0: after every step")


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


class Installed(BaseModel):
    """An objective of another package, found by the entry point `edgekd.objectives`; its options are checked by itself."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    kind: str
    weight: float = Field(1.0, ge=0)

    @model_validator(mode="after")
    def _is_there(self) -> Self:
        from importlib.metadata import entry_points

        from .names import nearest

        known = ["logits", "task", "features", *entry_points(group="edgekd.objectives").names]
        if self.kind not in known:
            raise ValueError(f"unknown kind `{self.kind}`{nearest(self.kind, known)}; there are {', '.join(known)}")
        _refuse_infinities(self.model_extra)
        return self


def _whose_objective(value: Any) -> str | None:
    kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    return kind if kind in ("logits", "task", "features", None) else "installed"


Objective = Annotated[
    Annotated[Logits, Tag("logits")]
    | Annotated[TaskLoss, Tag("task")]
    | Annotated[Features, Tag("features")]
    | Annotated[Installed, Tag("installed")],
    Discriminator(_whose_objective),
]


class Distill(Training):
    """Fit the student to the teacher."""

    objectives: tuple[Objective, ...] = Field((Logits(weight=0.7), TaskLoss(weight=0.3)), min_length=1)
    teacher: Literal["cached", "live"] = Field(
        "cached", description="cached: the teacher's outputs computed once, memory-mapped"
    )
    views: int = Field(1, ge=1, description="with augmentation and a cached teacher: how many seeded views of each sample")


# --- quantization ------------------------------------------------------------------------------


class Weights(Strict):
    """How weights are stored: the numbers, not the method."""

    bits: int = Field(8, ge=1, le=8)
    kind: Literal["uniform", "codebook"] = Field(
        "uniform", description="codebook: what method `differentiable` makes, and only it"
    )
    symmetric: bool | None = Field(
        None,
        description="zero is a level; as the method does when absent: ptq yes, the others from the smallest weight to the largest",
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
        """The scheme in short, as target files write it: fp32, w8, w8a8, w4g256, w2cg256 (c: codebook), w2-8 (mixed)."""
        if self.weights is None:
            return f"a{self.activations.bits}" if self.activations else "fp32"
        bits = f"{min(self.mixed)}-{max(self.mixed)}" if self.mixed else str(self.weights.bits)
        weights = f"w{bits}" + "c" * (self.weights.kind == "codebook")
        weights += f"g{self.weights.group}" if self.weights.group else ""
        return weights + (f"a{self.activations.bits}" if self.activations else "")


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
        description="when absent: a fifth of the recipe's; differentiable: 0.001, of points that lie between 0 and 1",
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
    objectives: tuple[Objective, ...] | None = Field(None, min_length=1)

    def over(self, base: Distill, method: str) -> Distill:
        """Return the settings of a method's training. base: the recipe's."""
        changes: dict[str, Any] = {"epochs": max(1, round(base.epochs / 4)), "learning_rate": base.learning_rate / 5}
        if method == "differentiable":
            changes |= {"optimizer": "adamw", "learning_rate": 1e-3}
        changes |= {name: value for name in type(self).model_fields if (value := getattr(self, name)) is not None}
        for name in ("gradient_clip", "average"):
            if changes.get(name) == 0:
                changes[name] = None
        return base.model_copy(update=changes)


def _one_or_each(value: Any) -> str:
    return "list" if isinstance(value, list | tuple) else "mapping"


TRAINED = ("quantized-distillation", "differentiable")
"""Methods that train, in the order of a chain."""


class VariantRecipe(Strict):
    """One way to make the student small."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="names a folder")
    method: str | tuple[str, ...] = Field(
        "ptq",
        description="none, ptq, round-to-nearest, quantized-distillation or differentiable; a list is a chain: "
        "[quantized-distillation, differentiable], where each goes on from what the one before left",
    )
    weights: Weights | None = None
    activations: Activations | None = Field(None, description="ptq only")
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
        return [(method, (changes or Retraining()).over(base, method)) for method, changes in pairs if method in TRAINED]

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

    @model_validator(mode="after")
    def _numbers_fit_the_method(self) -> Self:
        from edgekd.quantize import METHODS

        from .names import nearest

        for method in self.methods:
            if method not in METHODS:
                raise ValueError(f"no method `{method}`{nearest(method, METHODS)}; there are {', '.join(METHODS)}")
        if len(self.methods) > 1 and self.methods != TRAINED:
            raise ValueError(f"method [{', '.join(self.methods)}]: the one chain there is goes [{', '.join(TRAINED)}]")
        if self.method == "none" and (self.weights or self.activations):
            raise ValueError("method `none` keeps full precision: leave `weights` and `activations` out")
        if self.method == "ptq" and self.weights is None:
            raise ValueError("method `ptq` needs `weights: {bits: 8}`")
        if isinstance(self.training, tuple) and len(self.training) != len(self.methods):
            raise ValueError(
                f"training has {len(self.training)} entries and method {len(self.methods)}: give one for each, or one mapping for all"
            )
        return self


# --- the rest ----------------------------------------------------------------------------------


class Gate(Strict):
    """What an artifact may lose and still be called deployable."""

    max_drop: float = Field(
        0.01, ge=0, description="of the metric, from the teacher (or the student, without one) to the runtime"
    )
    max_error: float = Field(
        2e-4,
        gt=0,
        description="full precision: largest difference between torch, file and runtime, relative to the largest output",
    )
    min_sqnr_db: float = Field(
        25.0,
        description="quantized: least signal-to-noise ratio of the runtime's outputs against the exact arithmetic of the same file",
    )
    min_fp16_sqnr_db: float = Field(
        30.0,
        description="full precision, where the device computes in float16: least signal-to-noise ratio of its outputs; float16 gives "
        "55-70 dB, NPUs that approximate GELU or Softmax 33-50",
    )
    min_variant_sqnr_db: float = Field(
        10.0, description="quantized without training: least signal-to-noise ratio of its outputs against the student's"
    )
    simulator_samples: int = Field(
        200, ge=1, description="of the test samples, for a device that is simulated here or interpreted: both are slow"
    )

    def tolerance(self, floating: bool, precision: str) -> tuple[float | None, float | None]:
        """Return (largest relative error, least SQNR in dB) of a device's outputs; the one that does not apply is None.

        floating: the variant computes in floating point. precision: in which the device does so, fp32 or fp16.
        """
        if not floating:
            return None, self.min_sqnr_db
        return (self.max_error, None) if precision == "fp32" else (None, self.min_fp16_sqnr_db)


class Bench(Strict):
    """How long and how often the clock runs."""

    min_seconds: float = Field(1.0, gt=0, description="of warm calls, for each artifact")
    min_count: int = Field(40, ge=5, description="warm calls, for each artifact")
    interval: float | None = Field(
        0.04,
        gt=0,
        description="goes on until the 95 % intervals of all ratios (alone: of the median) are no wider; null: not asked",
    )
    launches: int = Field(
        5, ge=1, description="processes for each artifact, one after the other; more until the intervals are narrow"
    )
    max_seconds: float = Field(30.0, gt=0, description="hard limit for each artifact, starting and loading included")
    batch_sizes: tuple[Annotated[int, Field(ge=1)], ...] = Field((1,), min_length=1, description="of the timed calls")
    threads: int | None = Field(None, ge=1, le=1024, description="of the runtime; every core when absent")
    latency: bool = Field(True, description="time calls one after the other; false: only what follows")
    streams: tuple[Annotated[int, Field(ge=2, le=256)], ...] = Field(
        (), description="timed besides: so many calls at once, the threads split between them"
    )
    sustained_minutes: float = Field(
        0, ge=0, le=24 * 60, description="timed besides: so long without a pause, for each artifact"
    )
    prompt_tokens: int = Field(64, ge=1, description="of the prompt, for models that generate")
    new_tokens: int = Field(32, ge=2, description="generated in a call, for models that generate")
    roofline: bool = Field(
        True, description="measure once what the machine can do (about 10 s), and say how near each artifact comes"
    )
    devices: dict[str, str] = Field(
        {}, description="target -> address of its device, such as ssh://pi@raspberrypi; else this machine"
    )


class Recipe(Strict):
    """A teacher, data and the devices you ship to."""

    task: Literal["image-classification"] = "image-classification"
    data: Data
    teacher: Model | None = None
    student: Model
    preprocess: Preprocess | None = Field(None, description="for both models, unless a model has its own")
    train: Training = Field(Training(), description="what `edgekd train` does")
    distill: Distill | None = None
    quantize: tuple[VariantRecipe, ...] = Field((VariantRecipe(name="fp32", method="none"),), min_length=1)
    targets: tuple[str, ...] = Field(("onnxruntime-cpu",), min_length=1)
    gate: Gate = Gate()
    bench: Bench = Bench()
    seed: int = Field(0, ge=0, lt=2**31)

    @property
    def teaching(self) -> Distill:
        """What variants are trained by, before their own changes: `distill`, or what stands for it in a recipe without."""
        as_train = {name: getattr(self.train, name) for name in Training.model_fields}
        return self.distill or Distill(**as_train, teacher="live")

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Self:
        names = [variant.name for variant in self.quantize]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two variants are named `{name}`: each names a folder, so give them different names")
        targets = [Path(name).stem if name.endswith(".toml") else name for name in self.targets]
        for name in targets:
            if targets.count(name) > 1:
                raise ValueError(f"two targets are named `{name}`: each names a folder, so leave one out or rename its file")
        if self.distill and not self.teacher:
            needing = [o.kind for o in self.distill.objectives if o.kind != "task"]
            if needing:
                raise ValueError(f"objective `{needing[0]}` needs a teacher: add `teacher: {{model: ...}}`")
        return self


def load(path: str | Path, settings: Sequence[str] = ()) -> Recipe:
    """Read a recipe file, or the recipe.yaml of a folder (yours, or one that ships with edgekd such as models/digits).

    settings: overrides such as "distill.epochs=3"; values are YAML. Paths in the file are relative to the file,
    paths in settings to the working directory. Raises BadInput with file, line and key for whatever is wrong.
    """
    from . import recipe_file

    return recipe_file.load(path, settings)
