"""Operations that take each element by itself, or two tensors' elements in pairs; activations too."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .values import Table, one_of

_INTEGERS = {"int8": 8, "uint8": 8, "int16": 16, "uint16": 16, "int32": 32}


def cast(*, x: Tensor, dtype: str) -> Tensor:
    """Return x as another type. Rounding to half precision is done where the value is declared to be so, in run.py."""
    if dtype in ("fp16", "fp32"):
        return x.float()
    if dtype == "bool":
        return x != 0
    one_of("dtype", dtype, tuple(_INTEGERS))
    return x.to(torch.int64)  # towards zero


def _floor_div(*, x: Tensor, y: Tensor) -> Tensor:
    return torch.div(x, y, rounding_mode="floor")


def _real_div(*, x: Tensor, y: Tensor) -> Tensor:
    if not x.is_floating_point():
        return torch.div(x, y, rounding_mode="trunc")
    return x / y


def clip(*, x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """Return x between alpha and beta."""
    return torch.minimum(torch.maximum(x, alpha), beta)


def gelu(*, x: Tensor, mode: str = "EXACT") -> Tensor:
    """Return the Gaussian error linear unit (Hendrycks and Gimpel 2016)."""
    if one_of("mode", mode, ("EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION")) == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    return functional.gelu(x, approximate="none" if mode == "EXACT" else "tanh")


def _prelu(*, x: Tensor, alpha: Tensor) -> Tensor:
    return torch.where(x >= 0, x, x * alpha.reshape(-1, *[1] * (x.ndim - 2)))


def _clamped_relu(*, x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    return torch.minimum(torch.where(x >= 0, x, x * alpha), beta)


def _softplus_parametric(*, x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    beside = (-1, *[1] * (x.ndim - 2))
    return alpha.reshape(beside) * torch.log1p(torch.exp(beta.reshape(beside) * x))


def _unary(function: Any) -> Any:
    return lambda *, x: function(x)


def _binary(function: Any) -> Any:
    return lambda *, x, y: function(x, y)


OPERATIONS: Table = {
    "cast": cast,
    "clip": clip,
    "gelu": gelu,
    "prelu": _prelu,
    "clamped_relu": _clamped_relu,
    "softplus_parametric": _softplus_parametric,
    "floor_div": _floor_div,
    "real_div": _real_div,
    "identity": _unary(lambda x: x),
    "relu": _unary(functional.relu),
    "relu6": _unary(functional.relu6),
    "silu": _unary(functional.silu),
    "softplus": _unary(functional.softplus),
    "softsign": _unary(functional.softsign),
    "sign": _unary(torch.sign),
    "square": _unary(torch.square),
    "logical_not": _unary(torch.logical_not),
    "leaky_relu": lambda *, x, alpha=0.01: torch.where(x >= 0, x, x * alpha),
    "elu": lambda *, x, alpha=1.0: torch.where(x >= 0, x, alpha * torch.expm1(x)),
    "sigmoid_hard": lambda *, x, alpha=0.2, beta=0.5: torch.clamp(alpha * x + beta, 0, 1),
    "linear_activation": lambda *, x, alpha, beta=0.0: alpha * x + beta,
    "scaled_tanh": lambda *, x, alpha=1.0, beta=1.0: alpha * torch.tanh(beta * x),
    "threshold": lambda *, x, alpha: torch.maximum(x, alpha),
    "thresholded_relu": lambda *, x, alpha=1.0: torch.where(x >= alpha, x, torch.zeros_like(x)),
    "log": lambda *, x, epsilon=1e-45: torch.log(x + epsilon),
    "rsqrt": lambda *, x, epsilon=1e-12: torch.rsqrt(x + epsilon),
    "inverse": lambda *, x, epsilon=1e-4: 1 / (x + epsilon),
    "softmax": lambda *, x, axis=-1: torch.softmax(x, int(axis)),
    "select": lambda *, cond, a, b: torch.where(cond.bool(), a, b),
    **{
        name: _unary(getattr(torch, name))
        for name in (
            "abs", "acos", "asin", "atan", "atanh", "ceil", "cos", "cosh", "erf", "exp", "exp2", "floor", "round", "sigmoid",
            "sin", "sinh", "sqrt", "tan", "tanh",
        )
    },
    **{
        name: _binary(function)
        for name, function in {
            "add": torch.add, "sub": torch.sub, "mul": torch.mul, "pow": torch.pow, "mod": torch.remainder,
            "maximum": torch.maximum, "minimum": torch.minimum, "equal": torch.eq, "not_equal": torch.ne,
            "greater": torch.gt, "greater_equal": torch.ge, "less": torch.lt, "less_equal": torch.le,
            "logical_and": torch.logical_and, "logical_or": torch.logical_or, "logical_xor": torch.logical_xor,
        }.items()
    },
}  # fmt: skip
