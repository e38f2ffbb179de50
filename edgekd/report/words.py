"""Words and numbers that several sections share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Manifest = Mapping[str, Any]


def targets(manifest: Manifest) -> list[str]:
    """Return the names of all targets that the manifest speaks of, in its order."""
    named = [*manifest["chosen"], *(key.partition("/")[0] for key in [*manifest["verdicts"], *manifest["artifacts"]])]
    return list(dict.fromkeys(named))


def short(artifact: str) -> str:
    """Return the variant of an artifact's name."""
    return artifact.rpartition("/")[2]


def sentence(words: str) -> str:
    """Begin with a capital, end with a full stop."""
    words = words.strip()
    return words[:1].upper() + words[1:] + ("" if words.endswith((".", "!", "?")) else ".")


def shipped_bytes(manifest: Manifest, key: str) -> int | None:
    """Bytes of an artifact's model files: what is needed on the device, without golden samples and check.py."""
    artifact = manifest["artifacts"].get(key)
    if artifact is None:
        return None
    files = [f for f in artifact["files"] if f["path"] not in {"golden.npz", "check.py"}]
    return sum(f["bytes"] for f in files) or None


def providers(providers: Mapping[str, int]) -> str:
    """Say which execution providers took how many nodes."""
    return ", ".join(f"{name.removesuffix('ExecutionProvider')} {nodes} nodes" for name, nodes in providers.items())
