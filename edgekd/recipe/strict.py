"""What every part of a recipe obeys."""

from __future__ import annotations

import math
from typing import Any

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """An unknown key is an error, and so are NaN and infinity; a recipe never changes once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def refuse_infinities(value: Any) -> Any:
    """Refuse NaN and infinity anywhere inside a value whose type is not known."""
    inside = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list | tuple) else []
    for item in inside:
        refuse_infinities(item)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"numbers must be finite, not {value}")
    return value
