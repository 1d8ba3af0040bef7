"""The folder that a run gets where nothing names one: the recipe's, and what the command line changes of the recipe.

``runs/demo`` becomes ``runs/demo-epochs=4-optim.lr=0.1`` by ``--epochs 4 --optim.lr 0.1``. So the same command comes
back to its folder, and another one gets another.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from sftn_fast.cli.neutral_keys import NEUTRAL

SHARED = {"seeds"}
"""Keys that a folder is not named for: a further seed belongs beside the others."""
LONGEST = 100
"""Letters of the part that says what was changed; file systems allow 255 bytes in all."""
ODD = re.compile(r"[^A-Za-z0-9._=,+-]")
"""What not every file system takes in a name, or not every shell without quotes."""


def folder_for(base: Path, recipe: dict[str, Any], chosen: dict[str, Any]) -> Path:
    """Return ``base`` with the settings of ``chosen`` that ``recipe`` has not, or has otherwise, in its name.

    Args:
        base: The recipe's own folder.
        recipe: The recipe's configuration as nested dicts.
        chosen: The run's, of the same shape.
    """
    changed = changes(recipe, chosen)
    if not changed:
        return base
    if base.name in ("", ".."):  # as "." and "/", which have no name to add to
        return base / suffix(changed).removeprefix("-")
    return base.with_name(base.name + suffix(changed))


def changes(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of ``after`` by dotted name that are others in ``before`` and belong into a name."""
    old, new = _flat(before), _flat(after)
    left_out = NEUTRAL.keys() | SHARED
    keys = [key for key in {**new, **old} if key not in left_out]
    return {key: new.get(key) for key in keys if old.get(key) != new.get(key)}


def suffix(changed: dict[str, Any]) -> str:
    """Return ``-KEY=VALUE`` for each setting, in letters that every file system takes.

    Eight digits of a checksum follow where letters were replaced or cut, or where capitals would be lost on a file
    system that does not tell them from small letters.
    """
    full = "".join(f"-{key}={_value(value)}" for key, value in changed.items())
    short = ODD.sub("_", full)[:LONGEST].rstrip(".")
    digest = hashlib.sha256(full.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return short if short == full.lower() else f"{short}-{digest}"


def _value(value: Any) -> str:
    """A setting as a name can hold it: a list's elements with + between them."""
    if isinstance(value, list | tuple):
        return "+".join(map(_value, value)) or "none"
    return value if isinstance(value, str) else json.dumps(value)


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return leaves
