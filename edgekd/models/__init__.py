"""Models: load a teacher or student from what the recipe calls it, save it, restore it.

>>> model = load(Model(model="py:model.py:teacher", weights="teacher.safetensors"), role="teacher", ...)
>>> model.module(pictures)  # uint8 (n, H, W, C) -> logits (n, classes)
"""

from .causal_lm import causal_lm
from .loaded import LoadedModel
from .loading import load, preprocess_of
from .saving import restore, save
from .seq2seq_lm import seq2seq_lm
from .text_model import text_encoder

__all__ = ["LoadedModel", "causal_lm", "load", "preprocess_of", "restore", "save", "seq2seq_lm", "text_encoder"]
