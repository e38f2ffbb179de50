"""Check a manifest against manifest.schema.json (JSON Schema 2020-12), where the `jsonschema` package is installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .errors import Missing

SCHEMA = Path(__file__).with_name("manifest.schema.json")


def problems(manifest: dict[str, Any]) -> list[str]:
    """Return what is wrong with a manifest, one line a problem, in the order of its keys; empty when nothing is.

    Raises Missing without the `jsonschema` package.
    """
    try:
        import jsonschema
    except ImportError:
        raise Missing("checking a manifest needs jsonschema, which is not installed: pip install jsonschema") from None
    checker = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))
    found = sorted(checker.iter_errors(manifest), key=lambda error: [str(part) for part in error.absolute_path])
    return [f"{'.'.join(map(str, error.absolute_path)) or 'manifest'}: {error.message}" for error in found]
