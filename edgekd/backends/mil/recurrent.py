"""Recurrent layers."""

from __future__ import annotations

import torch
from torch import Tensor

from .values import Table, one_of

_ACTIVATIONS = {"sigmoid": torch.sigmoid, "tanh": torch.tanh, "relu": torch.relu}


def lstm(
    *, x: Tensor, initial_h: Tensor, initial_c: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor | None = None,
    direction: str = "forward", output_sequence: Tensor | None = None, recurrent_activation: str = "sigmoid",
    cell_activation: str = "tanh", activation: str = "tanh", weight_ih_back: Tensor | None = None,
    weight_hh_back: Tensor | None = None, bias_back: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return (outputs of every step or of the last alone, (steps, batch, hidden); the last h; the last c), (batch, hidden).

    x: (steps, batch, inputs). Rows of the weights: input, forget and output gate, then the cell. Both directions stand side by
    side in what is hidden.
    """
    one_of("direction", direction, ("forward", "bidirectional"))
    for name, value in (("recurrent", recurrent_activation), ("cell", cell_activation), ("", activation)):
        one_of(f"{name}_activation".lstrip("_"), value, tuple(_ACTIVATIONS))
    gate, inner, outer = (_ACTIVATIONS[name] for name in (recurrent_activation, cell_activation, activation))

    def one_way(x: Tensor, h: Tensor, c: Tensor, w_x: Tensor, w_h: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        outputs = []
        for step in x:
            sums = step @ w_x.T + h @ w_h.T
            i, f, o, z = (sums if b is None else sums + b).chunk(4, -1)
            c = gate(f) * c + gate(i) * inner(z)
            h = gate(o) * outer(c)
            outputs.append(h)
        return torch.stack(outputs), h, c

    if direction == "bidirectional":
        size = weight_hh.shape[1]
        assert weight_ih_back is not None
        assert weight_hh_back is not None
        there = one_way(x, initial_h[:, :size], initial_c[:, :size], weight_ih, weight_hh, bias)
        y, *last = one_way(x.flip(0), initial_h[:, size:], initial_c[:, size:], weight_ih_back, weight_hh_back, bias_back)
        y, h, c = (torch.cat(pair, -1) for pair in zip(there, (y.flip(0), *last), strict=True))
    else:
        y, h, c = one_way(x, initial_h, initial_c, weight_ih, weight_hh, bias)
    return (y if output_sequence is not None and bool(output_sequence) else h[None]), h, c


OPERATIONS: Table = {"lstm": lstm}
