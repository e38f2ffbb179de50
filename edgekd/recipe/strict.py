"""What every part of a recipe obeys."""

from __future__ import annotations

import math
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


class Strict(BaseModel):
    """An unknown key is an error, and so are NaN and infinity; a recipe never changes once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _yes_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and false for a number: Python counts with them, and YAML reads `on` and `yes` so."""
        annotation = cls.model_fields[str(info.field_name)].annotation
        types = set(get_args(annotation) or (annotation,))
        if isinstance(value, bool) and types & {int, float} and bool not in types:
            raise ValueError(f"input should be a number, not {str(value).lower()}")
        return value


def refuse_infinities(value: Any) -> Any:
    """Refuse NaN and infinity anywhere inside a value whose type is not known."""
    inside = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list | tuple) else []
    for item in inside:
        refuse_infinities(item)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"numbers must be finite, not {value}")
    return value
