"""A model that is ready to run, and what is known of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn

from ..preprocess import Preprocessed
from ..recipe import Preprocess
from .causal_lm import CausalLM
from .text_encoder import TextEncoder

if TYPE_CHECKING:
    from .seq2seq_lm import Seq2SeqLM


@dataclass(frozen=True)
class LoadedModel:
    """A teacher or a student.

    module: what the task runs (pictures: uint8 (N, H, W, C) -> logits); its `.net` is the user's network. reference: as in the recipe.
    preprocess: of pictures. tokenizer, pooling: of text.
    classes: names in the order of the outputs, None when unknown. parameters: how many weights the network has (buffers not counted).
    arguments: what its maker was called with beyond the defaults; with the reference, enough to make the same network again.
    """

    module: Preprocessed | TextEncoder | CausalLM | Seq2SeqLM
    reference: str
    preprocess: Preprocess | None
    classes: tuple[str, ...] | None
    parameters: int
    role: str = "student"
    arguments: dict[str, Any] = field(default_factory=dict)
    tokenizer: Any = field(default=None, repr=False, compare=False)
    pooling: str | None = None


@dataclass(frozen=True)
class Made:
    """What a kind of reference makes: the bare network, and what it says of itself.

    classes: names in the order of the outputs, None when unknown. trained: the network has trained weights already.
    arguments: what it was really called with.
    """

    net: nn.Module
    classes: tuple[str, ...] | None = None
    trained: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)
