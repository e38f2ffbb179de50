"""From what the recipe calls a model to a network with its weights and its preprocessing."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..errors import BadInput
from ..names import nearest
from ..preprocess import Preprocessed, size_of
from ..recipe import Model, Preprocess
from . import adapters, finished, python_file, timm_model, transformers_model
from .footprint import in_memory
from .loaded import LoadedModel, Made
from .weights import load_weights

KINDS = ("timm", "hf", "py")


def load(
    config: Model,
    *,
    role: str,
    num_classes: int,
    image_shape: tuple[int, int, int],
    shared: Preprocess | None,
    seed: int,
    need_weights: bool,
) -> LoadedModel:
    """Make the network, in evaluation mode, with the weights that `config` gives or its reference brings along.

    role: teacher or student. num_classes, image_shape (H, W, C): of the data; passed on to makers that want them.
    shared: the recipe's preprocessing, for a model without its own. seed: of the weights of a network that starts untrained.
    need_weights: refuse a network that would start untrained. Raises BadInput for whatever does not fit.
    """
    kind, rest = split(config.model, role)
    preprocess = preprocess_of(config, shared, role)
    if kind == "folder":
        return finished.load(config, rest, preprocess, role=role, num_classes=num_classes, image_shape=image_shape)
    with in_memory(config, role), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = _make(config, kind, rest, role, num_classes, image_shape, size_of(preprocess), need_weights)
        if config.weights is not None:
            load_weights(made.net, config.weights, role)
            made = replace(made, trained=True)
    if need_weights:
        check_trained(made, config, role)
    if config.adapter is not None:
        adapters.merge_adapters(made.net, config, role)
    return assembled(made, config, preprocess, role)


def preprocess_of(config: Model, shared: Preprocess | None, role: str = "model") -> Preprocess:
    """Return a model's preprocessing: its own in the recipe, else the recipe's, else what its reference says, else none at all."""
    if chosen := config.preprocess or shared:
        return chosen
    kind, rest = split(config.model, role)
    by_kind = {"timm": timm_model.preprocess, "hf": transformers_model.preprocess, "folder": finished.preprocess}
    return (by_kind[kind](rest) if kind in by_kind else None) or Preprocess()


def split(reference: str, role: str) -> tuple[str, str]:
    """Return (timm, hf, py or folder; the rest of the reference). Raises BadInput for anything else."""
    kind, colon, rest = reference.partition(":")
    if colon and rest and kind in KINDS:
        return kind, rest
    if finished.folder_of(reference) is not None:
        return "folder", reference
    raise BadInput(
        f"{role}.model: `{reference}` is neither timm:NAME, hf:ID-or-folder, py:FILE.py:FUNCTION "
        f"nor a run folder with a finished model{nearest(kind, KINDS) if colon else ''}"
    )


def check_trained(made: Made, config: Model, role: str, by_train: bool = True) -> None:
    """Raise BadInput for a network that would start untrained. by_train: `edgekd train` could make its weights."""
    if not made.trained:
        how = f" (`edgekd train RECIPE --model {role}` makes them)" if by_train else ""
        raise BadInput(
            f"{role}: {config.model} has no trained weights; give `weights: FILE`{how}, or a reference that brings its own"
        )


def assembled(made: Made, config: Model, preprocess: Preprocess, role: str) -> LoadedModel:
    """Put a bare network behind its preprocessing."""
    return LoadedModel(
        module=Preprocessed(made.net, preprocess).eval(),
        reference=config.model,
        preprocess=preprocess,
        classes=config.classes or made.classes,
        parameters=sum(parameter.numel() for parameter in made.net.parameters()),
        role=role,
        arguments=made.arguments,
    )


def _make(
    config: Model,
    kind: str,
    rest: str,
    role: str,
    num_classes: int,
    image_shape: tuple[int, int, int],
    size: tuple[int, int] | None,
    need_weights: bool,
) -> Made:
    arguments, channels = dict(config.arguments), image_shape[2]
    if kind == "py":
        return python_file.make(rest, arguments, num_classes, channels)
    if kind == "hf":
        trained = config.weights is None and transformers_model.has_weights(rest)
        return transformers_model.make(rest, arguments, num_classes, channels, trained, role)
    asked = bool(arguments.pop("pretrained", False)) or timm_model.names_weights(rest) or need_weights
    return timm_model.make(
        rest, arguments, num_classes, channels, size or image_shape[:2], asked and config.weights is None, role
    )
