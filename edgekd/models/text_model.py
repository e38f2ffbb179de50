"""Load a model that reads text: hf:ID-or-folder, py:FILE.py:FUNCTION, or a run folder."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from rich.markup import escape
from torch import nn

from ..errors import BadInput, first_line
from ..progress import say
from ..recipe import Model
from ..text import tokenizer as tokenizers
from . import adapters, finished, python_file, transformers_model
from .factorised import factorise
from .loaded import LoadedModel, Made
from .loading import check_trained, split
from .reconfigured import DEPTH, RANK, reconfigured
from .saving import WEIGHTS
from .taken_over import take_over
from .text_encoder import TextEncoder, pooling_of
from .weights import load_weights


def text_encoder(
    config: Model, *, role: str, seed: int, need_weights: bool, max_tokens: int, teacher: LoadedModel | None = None
) -> LoadedModel:
    """Load a text encoder, in evaluation mode: its module returns one vector for each text.

    teacher: for a student that starts from its layers. need_weights: refuse a network that would start untrained. max_tokens: how
    long a text may be. Raises BadInput for whatever does not fit.
    """
    config = resolved(config, role)
    kind, rest = split(config.model, role)
    made = network(config, "AutoModel", role=role, seed=seed, teacher=teacher)
    if need_weights:
        check_trained(made, config, role, by_train=False)
    if getattr(getattr(made.net, "config", None), "is_encoder_decoder", False):
        raise BadInput(
            f"{role}: {config.model} is an encoder-decoder ({type(made.net).__name__}), which gives no states of the text alone; "
            "text-embedding takes encoders (BERT) and decoders (Qwen3, pooling `last`)"
        )
    pooling = config.pooling or (pooling_of(rest, role) if kind == "hf" else None)
    if pooling is None:
        say(f"{role}: {escape(config.model)} says nothing of pooling: the mean of the tokens is taken (`pooling` changes that)")
    tokenizer = tokenizers.of(config, role)
    check_tokens(made.net, tokenizer, max_tokens, role)
    module = TextEncoder(made.net, pooling or "mean").eval()
    _check_output(module, len(tokenizer), max_tokens, config, role)
    return LoadedModel(
        module=module,
        reference=config.model,
        preprocess=None,
        classes=None,
        parameters=sum(parameter.numel() for parameter in made.net.parameters()),
        role=role,
        arguments=made.arguments,
        tokenizer=tokenizer,
        pooling=module.pooling,
    )


def network(config: Model, maker: str, *, role: str, seed: int, teacher: LoadedModel | None = None) -> Made:
    """Make the bare network with the weights that `config` gives, its reference brings along, or it takes from the teacher.

    maker: which class of transformers makes it, such as AutoModel. Raises BadInput.
    """
    kind, rest = split(config.model, role)
    if kind == "timm":
        raise BadInput(
            f"{role}.model: {config.model} reads pictures; a model for text is hf:ID-or-folder or py:FILE.py:FUNCTION"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "py":
            if config.teacher_layers is not None:
                raise BadInput(
                    f"{role}.teacher_layers: the layers of a model of transformers alone can be taken over, not of {config.model}"
                )
            made = python_file.make(rest, dict(config.arguments), 0, 0)
        else:
            made = _of_transformers(config, rest, maker, role, teacher)
            if config.teacher_layers is not None and config.weights is None:
                take_over(made.net, teacher, config.teacher_layers, tokenizers.of(config, role), role)
                made = replace(made, trained=True)
            if RANK in made.arguments:
                factorise(made.net, made.arguments[RANK], role)
    if config.weights is not None:
        load_weights(made.net, config.weights, role)
        made = replace(made, trained=True)
    if config.adapter is not None:
        adapters.merge_adapters(made.net, config, role)
    return made


def resolved(config: Model, role: str) -> Model:
    """Return what a run folder's model was made from, with the weights that lie there."""
    folder = finished.folder_of(config.model) if split(config.model, role)[0] == "folder" else None
    if folder is None:
        return config
    card = finished.card_of(config.model)
    arguments = {**card["arguments"], **config.arguments}
    update: dict[str, Any] = {
        "model": finished.reference_of(folder, card["reference"]),
        "tokenizer": config.tokenizer or str(folder),
        "pooling": config.pooling or card.get("pooling"),
    }
    if config.teacher_layers is None:
        update["weights"] = config.weights or folder / WEIGHTS
    elif DEPTH not in config.arguments:
        arguments.pop(DEPTH, None)  # as many as are taken
    return config.model_copy(update={**update, "arguments": arguments})


def _of_transformers(config: Model, name: str, maker: str, role: str, teacher: LoadedModel | None) -> Made:
    transformers = transformers_model.transformers_here()
    trained = config.weights is None and config.teacher_layers is None and transformers_model.has_weights(name)
    lacking: list[str] = []
    try:
        wanted, arguments = reconfigured(config, name, role, getattr(teacher.module.net, "config", None) if teacher else None)
        wanted._attn_implementation = "eager"  # plain products and a softmax, which every exporter and quantizer knows
        make = getattr(transformers, maker)
        if trained:
            changes = role == "student"  # its shapes may be others, by `arguments`; a teacher's must fit as it is
            net, told = make.from_pretrained(
                name,
                config=wanted,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=changes,
                dtype=torch.float32,
            )
            lacking = _lacking(told)
        else:
            net = make.from_config(wanted, trust_remote_code=False, dtype=torch.float32)
    except BadInput:
        raise
    except Exception as error:  # ValueError, OSError, RuntimeError or the hub client's own, by cause
        raise BadInput(f"{role}: hf:{name}: cannot be loaded with {maker} ({first_line(error)[:200]})") from None
    if getattr(
        net, "_hf_peft_config_loaded", False
    ):  # transformers follows an adapter's folder to its model, and leaves them apart
        raise BadInput(
            f"{role}: hf:{name} holds an adapter: give the model that it belongs to as `model`, and its folder as `adapter`"
        )
    if lacking and role != "student":
        raise BadInput(f"{role}: hf:{name} has no weights for `{lacking[0]}` ({len(lacking)} such) of a {type(net).__name__}")
    if lacking:
        say(
            f"{role}: `{lacking[0]}` ({len(lacking)} such) have other shapes than in hf:{name} or are not there: they start untrained"
        )
    if getattr(net, "pooler", None) is not None:
        net.pooler = None  # reads the first token for BERT's next-sentence task; nothing here uses what it makes
    return Made(net.float(), None, trained and not lacking, arguments)


def _lacking(told: Any) -> list[str]:
    """Return the weights that from_pretrained() found nowhere, or in another shape."""
    names = [*told["missing_keys"], *told["mismatched_keys"]]
    found = (name if isinstance(name, str) else str(name[0]) for name in names)
    return sorted(name for name in found if not name.startswith("pooler."))


def check_tokens(net: Any, tokenizer: Any, max_tokens: int, role: str) -> None:
    """Check that a network of transformers knows every id that the tokenizer makes, and so many positions. Raises BadInput."""
    table = net.get_input_embeddings() if hasattr(net, "get_input_embeddings") else None
    known = getattr(table[0] if isinstance(table, nn.Sequential) else table, "num_embeddings", None)
    if known is not None and len(tokenizer) > known:
        raise BadInput(
            f"{role}: its tokenizer makes ids up to {len(tokenizer) - 1}, and the model knows {known}: they do not belong together; "
            f"set {role}.tokenizer"
        )
    longest = _positions(net)
    if longest is not None and max_tokens > longest:
        raise BadInput(
            f"data.max_tokens: {max_tokens}, and the {role} reads {longest} tokens at most: set it to {longest} or less"
        )


def _positions(net: Any) -> int | None:
    """Return how many tokens a network of transformers can read; None where nothing says so."""
    tables = [m for name, m in net.named_modules() if name.endswith("position_embeddings") and isinstance(m, nn.Embedding)]
    if tables:  # RoBERTa counts from what follows its padding
        return min(t.num_embeddings - (0 if t.padding_idx is None else t.padding_idx + 1) for t in tables)
    return getattr(getattr(net, "config", None), "max_position_embeddings", None)


def _check_output(module: TextEncoder, ids: int, max_tokens: int, config: Model, role: str) -> None:
    """Run two texts, one as long as may be and of the largest ids, and look at what comes out. Raises BadInput."""
    tokens = torch.full((2, max_tokens), ids - 1)
    mask = torch.ones_like(tokens)
    mask[1, 1:] = 0
    try:
        with torch.inference_mode():
            states = module.states(tokens, mask)
            made = module(tokens, mask) if states.ndim == 3 else states
    except Exception as error:  # the user's code, or a kind of model that wants more than tokens
        raise BadInput(
            f"{role}: {config.model} cannot be called with input_ids and attention_mask of {max_tokens} tokens and ids up to "
            f"{ids - 1}: {first_line(error)[:200]}"
        ) from None
    if states.shape[:-1] != tokens.shape:
        raise BadInput(
            f"{role}: {config.model} gives {tuple(states.shape)} for {tuple(tokens.shape)} tokens; a text encoder returns a state for "
            "each, (texts, tokens, width)"
        )
    if not bool(torch.isfinite(made).all()):
        raise BadInput(f"{role}: {config.model} gives NaN or infinity: check its weights")
