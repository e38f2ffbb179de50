"""A package that isn't ours, put where pip would put it, with the entry points that it announces."""

from __future__ import annotations

from pathlib import Path


def put(site: Path, module: str, text: str, group: str, name: str, version: str = "1.0") -> Path:
    """Write module.py and its metadata into a folder, which becomes a part of the path; return the folder."""
    told = site / f"{module}-{version}.dist-info"
    told.mkdir(parents=True)
    (site / f"{module}.py").write_text(text)
    (told / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module.replace('_', '-')}\nVersion: {version}\n")
    (told / "entry_points.txt").write_text(f"[{group}]\n{name} = {module}\n")
    return site
