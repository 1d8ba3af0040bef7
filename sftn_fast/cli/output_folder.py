"""Default folder of a run: the recipe's folder, plus the settings that the command line changes.

``--epochs 4 --optim.lr 0.1`` turns ``runs/demo`` into ``runs/demo-epochs=4-optim.lr=0.1``. The same command therefore
finds its folder again, and a different command uses a different folder.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from sftn_fast.cli.keys import neutral_keys
from sftn_fast.config import Config

SHARED = {"seeds"}
"""Keys that are not part of the name: further seeds belong in the same folder."""
LONGEST = 100
"""Largest number of characters for the changed settings. File systems allow 255 bytes for the whole name."""
ODD = re.compile(r"[^A-Za-z0-9._=,+-]")
"""Characters that some file systems do not allow in a name, or that a shell needs quotes for."""


def folder_for(base: Path, recipe: dict[str, Any], chosen: dict[str, Any]) -> Path:
    """Return ``base`` with the settings in its name that differ between ``recipe`` and ``chosen``.

    Args:
        base: Folder of the recipe.
        recipe: Configuration of the recipe as nested dicts.
        chosen: Configuration of the run, in the same form.
    """
    changed = changes(recipe, chosen)
    if not changed:
        return base
    if base.name in ("", ".."):  # such as "." and "/", which have no name to extend
        return base / suffix(changed).removeprefix("-")
    return base.with_name(base.name + suffix(changed))


def changes(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of ``after``, by dotted name, that differ in ``before`` and belong in the folder's name."""
    old, new = _flat(before), _flat(after)
    left_out = neutral_keys(Config).keys() | SHARED
    keys = [key for key in {**new, **old} if key not in left_out]
    return {key: new.get(key) for key in keys if old.get(key) != new.get(key)}


def suffix(changed: dict[str, Any]) -> str:
    """Return ``-KEY=VALUE`` for each setting, in characters that every file system allows.

    Eight digits of a checksum follow if characters were replaced or cut, or if there are capitals, which some file
    systems do not distinguish.
    """
    full = "".join(f"-{key}={_value(value)}" for key, value in changed.items())
    short = ODD.sub("_", full)[:LONGEST].rstrip(".")
    digest = hashlib.sha256(full.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return short if short == full.lower() else f"{short}-{digest}"


def _value(value: Any) -> str:
    """Return a setting as it is written in a name. The elements of a list are joined by +."""
    if isinstance(value, list | tuple):
        return "+".join(map(_value, value)) or "none"
    return value if isinstance(value, str) else json.dumps(value)


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return leaves
