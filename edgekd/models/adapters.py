"""Adapters on disk, in peft's own format: adapter_config.json and adapter_model.safetensors. Written, and merged at load."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from ..errors import BadInput, Missing, first_line
from ..recipe import Lora, Model
from .transformers_model import Logits
from .weights import read

NAME = "default"
CONFIG, WEIGHTS = "adapter_config.json", ("adapter_model.safetensors", "adapter_model.bin")
TOLERANCE = 1e-4
_PREFIX = "base_model.model."
_BASE = "edgekd_base_sha256"


def core(net: nn.Module) -> nn.Module:
    """Return the network that others know, without our wrapper around a classifier of transformers."""
    return net.model if isinstance(net, Logits) else net


def peft_here(where: str) -> Any:
    """Return the package. Raises Missing."""
    from .._torchvision import ensure

    ensure()
    try:
        import peft
    except ImportError:
        raise Missing(f"{where} needs peft: pip install 'edgekd[lora]'") from None
    return peft


def settings(config: Lora, names: Sequence[str]) -> Any:
    """Return peft's configuration for adapters in just these layers: a list of names would match the ends of others too."""
    pattern = "|".join(re.escape(name) for name in names)
    return peft_here("lora").LoraConfig(
        r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=pattern
    )


def save_adapters(net: nn.Module, config: Lora, names: Sequence[str], reference: str, base: str, folder: Path) -> None:
    """Write the adapters of a network that has them, and the modules trained whole, so that peft (and merge_adapters()) reads them.

    reference: of the model, as in the recipe. base: hash of the weights beside the adapters.
    """
    folder.mkdir(parents=True, exist_ok=True)
    whole = [name for name, _ in net.named_modules() if any(name.endswith(one) for one in config.train)]  # as peft takes names
    state = {name: t for name, t in net.state_dict().items() if ".lora_" in name or _inside(name, whole)}
    own = {f"{_PREFIX}{name.replace(f'.{NAME}', '', 1)}": t.detach().cpu().clone().contiguous() for name, t in state.items()}
    # one entry of metadata: of several, safetensors writes now this first and now that
    (folder / WEIGHTS[0]).write_bytes(save(own, metadata={_BASE: base}))
    written = settings(config, names)
    written.base_model_name_or_path = reference.removeprefix("hf:")
    written.modules_to_save = list(config.train) or None
    written.inference_mode = True
    told = {name: sorted(value) if isinstance(value, set) else value for name, value in written.to_dict().items()}
    (folder / CONFIG).write_text(json.dumps(told, indent=1, sort_keys=True, default=str) + "\n", encoding="utf-8")


def merge_adapters(net: nn.Module, config: Model, role: str) -> None:
    """Merge the adapters in the folder `config.adapter` into a network in full precision, in place.

    Raises BadInput for a folder that is none, adapters of another kind than LoRA, of another model or of other shapes, and Missing.
    """
    assert config.adapter is not None
    folder, where = config.adapter, f"{role}.adapter"
    told = read_config(folder, where)
    file = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        raise BadInput(f"{where}: {folder} has no {WEIGHTS[0]}; give the folder that save_pretrained() of peft wrote")
    _check_base(told.get("base_model_name_or_path"), config, where)
    peft, whole = peft_here(where), core(net)
    _check_weights(file, whole, where)
    state = {name.removeprefix(_PREFIX): values for name, values in read(file).items()}
    trainable = {name: p.requires_grad for name, p in whole.named_parameters()}
    tied = _tied_to_output(whole)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what peft warns of is either wrong, and told below, or of training
        try:
            made = peft.LoraConfig.from_pretrained(str(folder))
            made.inference_mode = True
            tuner = peft.LoraModel(whole, made, NAME)
            found = peft.set_peft_model_state_dict(whole, state, adapter_name=NAME)
        except Exception as error:  # ValueError, RuntimeError, KeyError or TypeError, by cause
            raise BadInput(f"{where}: {folder} does not fit {config.model} ({' '.join(str(error).split())[:200]})") from None
        missing = [name for name in found.missing_keys if ".lora_" in name]
        if missing or found.unexpected_keys:
            which = f"no {missing[0]}" if missing else f"{found.unexpected_keys[0]}, which the model does not have"
            raise BadInput(f"{where}: {folder} does not fit {config.model}: the file has {which}")
        _refuse_shared(whole, where, folder)
        try:
            _merge(tuner, where, folder)
        except (ValueError, RuntimeError) as error:
            raise BadInput(f"{where}: {folder} cannot be merged ({first_line(error)[:200]})") from None
    if tied:
        _tie_again(whole, tied, where, folder)
    for name, parameter in whole.named_parameters():  # some are new: modules_to_save
        parameter.requires_grad_(trainable.get(name, True))
    whole.eval()


def read_config(folder: Path, where: str) -> dict[str, Any]:
    """Return what adapter_config.json says. Raises BadInput for a folder without, a damaged one, and adapters that are no LoRA."""
    try:
        told = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        kind = told["peft_type"]
    except OSError:
        raise BadInput(f"{where}: {folder} has no {CONFIG}; give the folder that save_pretrained() of peft wrote") from None
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{where}: {folder / CONFIG} is damaged ({first_line(error)}); save the adapter again") from None
    if kind != "LORA":
        raise BadInput(f"{where}: {folder} is an adapter of kind {kind}; edgekd merges LORA")
    return dict(told)


def _check_base(base: str | None, config: Model, where: str) -> None:
    """Compare the model that the adapter was trained beside with the one it is to be merged into: by name, wherever it lies."""
    name = config.model.removeprefix("hf:")
    if base and Path(base).name.lower() != Path(name).name.lower():
        raise BadInput(
            f"{where}: {config.adapter} was trained beside `{base}`, and the model is {config.model}. Give that model; where it is the same "
            f"under another name, write it as base_model_name_or_path into {config.adapter / CONFIG if config.adapter else CONFIG}"
        )


def _check_weights(file: Path, net: nn.Module, where: str) -> None:
    """Compare the weights that an adapter of ours was trained beside with those it is to be merged into; others do not say."""
    from ..distill.keys import weights_hash

    if file.suffix != ".safetensors":
        return
    try:
        with safe_open(file, framework="pt") as opened:
            base = (opened.metadata() or {}).get(_BASE)
    except (OSError, SafetensorError) as error:
        raise BadInput(f"{where}: {file}: damaged or not safetensors ({first_line(error)}); fetch or save it again") from None
    if base and base != weights_hash(net):
        raise BadInput(
            f"{where}: {file.parent} was trained beside other weights than the model has: give the model and the `weights` that its "
            "training began with (the student of that run has the adapter merged already)"
        )


def _merge(tuner: Any, where: str, folder: Path) -> None:
    """Merge, and see for each linear layer that it gives what it gave with its adapter, on random inputs."""
    from peft.tuners.lora import LoraLayer
    from transformers.pytorch_utils import Conv1D  # a linear layer with its weights the other way round, as in GPT-2

    net = tuner.model.eval()
    layers = {
        name: m
        for name, m in net.named_modules()
        if isinstance(m, LoraLayer) and isinstance(m.get_base_layer(), (nn.Linear, Conv1D))
    }
    inputs = {name: torch.randn(4, m.in_features, generator=torch.Generator().manual_seed(0)) for name, m in layers.items()}
    with torch.no_grad():
        before = {name: layer(inputs[name]) for name, layer in layers.items()}
        tuner.merge_and_unload(safe_merge=True)
        for name, wanted in before.items():
            difference = (
                (net.get_submodule(name)(inputs[name]) - wanted).abs().max() / wanted.abs().max().clamp(min=1e-12)
            ).item()
            if not difference < TOLERANCE:
                raise BadInput(
                    f"{where}: {folder}: merged, layer `{name}` gives other values than with its adapter (by {difference:.1e} of the largest)"
                )


def owners(net: nn.Module) -> dict[int, list[str]]:
    """Return the names of each parameter, by its id: several where layers share it."""
    found: dict[int, list[str]] = {}
    for name, parameter in net.named_parameters(remove_duplicate=False):
        found.setdefault(id(parameter), []).append(name)
    return found


def _refuse_shared(net: nn.Module, where: str, folder: Path) -> None:
    """Refuse an adapter of one of two layers that share their weights (tied embeddings): merged, it would change the other, too."""
    from peft.tuners.lora import LoraLayer

    sharing = owners(net)
    for name, layer in net.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        weights = getattr(layer.get_base_layer(), "weight", None)
        if others := [one for one in sharing.get(id(weights), ()) if not one.startswith(f"{name}.")]:
            raise BadInput(
                f"{where}: {folder} adapts `{name}`, which shares its weights with `{others[0].rpartition('.')[0].removesuffix('.base_layer')}`: "
                "merged, it would change both. Give a model whose two are apart (tie_word_embeddings: false), or an adapter without it"
            )


def _tied_to_output(net: Any) -> list[str]:
    """Return the names of the layers that a network of transformers ties to its output layer."""
    config, head = getattr(net, "config", None), net.get_output_embeddings() if hasattr(net, "get_output_embeddings") else None
    if head is None or not getattr(config, "tie_word_embeddings", False):
        return []
    names = (name.rpartition(".")[0] for name in owners(net).get(id(head.weight), ()))
    return [name for name in names if net.get_submodule(name) is not head]


def _tie_again(net: Any, tied: Sequence[str], where: str, folder: Path) -> None:
    """Tie layers to the output layer that were tied before the merge, where they are alike; else note that they are apart now.

    An adapter with one of them, or both, in `modules_to_save` makes them two. Raises BadInput for encoder-decoders: T5 scales what
    leaves its decoder where, and only where, they are tied.
    """
    head, tables = net.get_output_embeddings(), [net.get_submodule(name) for name in tied]
    if alike := all(torch.equal(head.weight, table.weight) for table in tables):
        for table in tables:
            table.weight = head.weight
    elif net.config.is_encoder_decoder:
        raise BadInput(
            f"{where}: {folder} replaces token embeddings or output layer, which {type(net).__name__} ties to each other: merged, it would "
            "compute something else; train an adapter without them in modules_to_save"
        )
    net.config.tie_word_embeddings = alike


def _inside(name: str, modules: Sequence[str]) -> bool:
    return any(name.startswith(f"{module}.") for module in modules)
