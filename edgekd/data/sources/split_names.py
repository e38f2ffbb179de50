"""Which stored split plays which role: as the recipe says, else by the usual names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from ...errors import BadInput
from ...names import nearest
from ...recipe import Data, Pairs
from ..records import ROLES, USUAL_NAMES


def assign(available: Iterable[str], data: Data) -> dict[str, str]:
    """Return role -> name of a stored split, `train` at least. Roles without a split are left out (and cut from train later).

    A single split without a usual name is the training split.

    >>> assign(["train", "val"], Data(source="x"))
    {'train': 'train', 'validation': 'val'}
    """
    names = list(dict.fromkeys(available))
    there = ", ".join(names) or "none"
    roles: dict[str, str] = {}
    for role in ROLES:
        asked = getattr(data, role)
        if asked is not None:
            if asked not in names:
                raise BadInput(f"data.{role}: {data.source} has no split `{asked}`{nearest(asked, names)}; there: {there}")
            if asked in roles.values():
                raise BadInput(
                    f"data.{role}: split `{asked}` is used twice; samples to train on cannot also measure the result"
                )
            roles[role] = asked
    free = {name.lower(): name for name in names if name not in roles.values()}
    for role in ROLES:
        usual = next((free[name] for name in USUAL_NAMES[role] if name in free), None)
        if role not in roles and usual is not None:
            roles[role] = usual
    if "train" not in roles:
        if len(names) != 1 or roles:
            raise BadInput(f"{data.source}: which split is to train on? there: {there}; name it with data.train")
        roles["train"] = names[0]
    return {role: roles[role] for role in ROLES if role in roles}


def grouped(files: Iterable[Path], root: Path, data: Data | Pairs) -> dict[str, list[Path]]:
    """Return split name -> files, from names such as test.parquet, train-00000-of-00002.parquet or test/0000.parquet.

    Files whose names say nothing are one split, called `train`.
    """
    known = {name for role in ROLES for name in (*USUAL_NAMES[role], getattr(data, role, None)) if name}
    groups: dict[str, list[Path]] = {}
    for file in sorted(files):
        candidates = (file.stem, re.split(r"-\d{4,}", file.stem)[0], *reversed(file.relative_to(root).parent.parts))
        name = next((c for c in candidates if c in known or c.lower() in known), None)
        groups.setdefault(name or "", []).append(file)
    if "" in groups:
        unnamed = groups.pop("")
        if groups:
            raise BadInput(f"{unnamed[0]}: which split is it? Name it like train, validation or test, or move it away")
        groups["train"] = unnamed
    return groups
