"""Embeddings of a large vocabulary as a product of two matrices: (tokens, rank) and (rank, width). Lan et al. 2020 (ALBERT), section 3.1."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..errors import BadInput


def factorise(net: Any, rank: int, role: str) -> None:
    """Replace a transformers model's token embedding by a table of `rank` columns and a linear layer to the model's width.

    The product is the nearest one of that rank to what was there (its singular value decomposition, Eckart and Young 1936).
    Raises BadInput for a rank that saves nothing.
    """
    table = net.get_input_embeddings()
    if type(table) is not nn.Embedding:  # Gemma 3 multiplies what it looks up
        raise BadInput(
            f"{role}.arguments.embedding_rank: this model's token embedding is no plain table that could be factorised"
        )
    others = {name: getattr(module, "weight", None) for name, module in net.named_modules() if module is not table}
    if shared := [name for name, weight in others.items() if weight is table.weight]:
        raise BadInput(
            f"{role}.arguments.embedding_rank: `{shared[0]}` shares the table of token embeddings, which would stay as large as it is"
        )
    tokens, width = table.weight.shape
    most = (tokens * width - 1) // (tokens + width)
    if not 1 <= rank <= most:
        raise BadInput(
            f"{role}.arguments.embedding_rank: {rank} {'is none' if rank < 1 else 'saves nothing'}: {tokens} tokens of width {width} "
            f"take a rank from 1 to {most}"
        )
    small, projection = nn.Embedding(tokens, rank, padding_idx=table.padding_idx), nn.Linear(rank, width, bias=False)
    # of the matrix width x width, whose eigenvectors are the right singular vectors: the table itself is too long for svd()
    values = table.weight.detach().double()
    _, vectors = torch.linalg.eigh(values.T @ values)
    basis = vectors[:, -rank:].flip(1)
    coordinates = values @ basis
    scale = coordinates.square().mean().sqrt() / values.square().mean().sqrt()
    with torch.no_grad():
        small.weight.copy_(coordinates / scale)
        projection.weight.copy_(basis * scale)
    net.set_input_embeddings(nn.Sequential(small, projection))


def product(net: Any) -> dict[str, torch.Tensor]:
    """Return name -> the table that a factorised embedding stands for; {} for a model whose embedding is a plain table."""
    parts = net.get_input_embeddings()
    if not isinstance(parts, nn.Sequential):
        return {}
    name = next(name for name, module in net.named_modules() if module is parts)
    small, projection = (part.get_parameter("weight").detach() for part in parts)
    return {f"{name}.weight": small @ projection.T}
