"""The settings of a run, read from the ``config.yaml`` in its folder."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from sftn_fast.config import ConfigError, rename_keys
from sftn_fast.utils import safe_yaml
from sftn_fast.utils.checksummed import DamagedError, read_sealed_text
from sftn_fast.utils.text import printable

LONGEST = 300
"""Characters shown of a text from a file."""
SHAPE: dict[str, Any] = {"data": {}, "optim": {}, "sftn": {}, "route": {}, "engine": {}, "teacher": "", "student": ""}
"""Types of some entries of a configuration, to recognise a damaged file."""


def read_settings(folder: Path) -> dict[str, Any]:
    """Return the configuration of the run in ``folder``; empty if it is missing or damaged."""
    return _read_settings(folder)[0]


def settings_fault(folder: Path) -> str | None:
    """Return what is wrong with the configuration in ``folder``, or None."""
    return _read_settings(folder)[1]


def flat(settings: Mapping[str, Any], group: str = "") -> dict[str, Any]:
    """Return nested settings by dotted name. A group without entries stays as an empty dict."""
    leaves: dict[str, Any] = {}
    for key, value in settings.items():
        leaves |= flat(value, f"{group}{key}.") if isinstance(value, dict) and value else {group + key: value}
    return leaves


def _read_settings(folder: Path) -> tuple[dict[str, Any], str | None]:
    """Return the configuration, and what is wrong with it or None."""
    path = folder / "config.yaml"
    if not path.exists():
        return {}, None
    try:
        settings = _parse(read_sealed_text(path), printable(path, LONGEST))
    except (DamagedError, ConfigError) as error:
        return {}, f"{error}; what depends on it is left out"
    if not isinstance(settings, dict) or not all(
        isinstance(settings.get(key, empty), type(empty)) for key, empty in SHAPE.items()
    ):
        shown = printable(path, LONGEST)
        return {}, f"{shown} is damaged: it is not a configuration; what depends on it is left out"
    return printable_tree(rename_keys(settings)), None


@lru_cache(maxsize=16)
def _parse(text: str, where: str) -> Any:
    """Return the content of a file, which a report asks for several times. Nobody changes it in place."""
    return safe_yaml.load(text, where)


def printable_tree(tree: Any) -> Any:
    """Return ``tree`` with every text in it made safe to show."""
    if isinstance(tree, dict):
        return {printable(key, LONGEST): printable_tree(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [printable_tree(value) for value in tree]
    return printable(tree, LONGEST) if isinstance(tree, str) else tree
