"""Reader of recipes: YAML files with keys and values. A recipe is data; nothing in it is ever imported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sftn_fast.cli.keys import Key, of_value, shorten
from sftn_fast.cli.messages import suggest
from sftn_fast.config import ConfigError
from sftn_fast.utils import safe_yaml
from sftn_fast.utils.checksummed import FIRST_LINE, read_regular

BASE = "base"
"""Key that names another recipe. Its keys are the defaults of this one."""


@dataclass(frozen=True)
class Reader:
    """Reader of recipes for a configuration with ``keys``."""

    keys: Mapping[str, Key]
    aliases: Mapping[str, str]
    """Other names of keys."""
    command_line: Mapping[str, str | None]
    """Options that are not allowed in a recipe, with the key to use instead, if there is one."""

    def read(self, path: Path) -> dict[str, Any]:
        """Return the values in the recipe ``path``, including ``base``, by the full names of their keys.

        Raises:
            ConfigError: With one line that names the file and the key.
        """
        values = safe_yaml.read(path)
        if not isinstance(values, dict):
            raise ConfigError(f"{path} must hold keys and values, got {shorten(values)}")
        found: dict[str, Any] = {}
        try:
            for name, value in self._flat(values, ""):
                if name in found:
                    raise ConfigError(f"key {name} is given twice")
                found[name] = _base_of(value) if name == BASE else of_value(self.keys[name], value)
            if found.get("methods") and "distill" in found and not is_of_a_run(path):
                raise ConfigError("distill can't be combined with methods, which replace it; give one of the two")
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None
        return found

    def _flat(self, values: Mapping[Any, Any], group: str) -> Iterator[tuple[str, Any]]:
        for own_name, value in values.items():
            name = self.aliases.get(f"{group}{own_name}", f"{group}{own_name}")
            if name in self.keys or name == BASE:
                yield name, value
            elif any(key.startswith(f"{name}.") for key in self.keys):
                if not isinstance(value, dict):
                    raise ConfigError(f"{name} is a group and must hold keys and values, got {shorten(value)}")
                yield from self._flat(value, f"{name}.")
            elif name in self.command_line:
                instead = self.command_line[name]
                raise ConfigError(
                    f"{name} is for the command line" + (f"; in a recipe use {instead}" if instead else "")
                )
            else:
                raise ConfigError(f"unknown key {shorten(name)}{suggest(name, list(self.keys))}")


def is_of_a_run(path: Path) -> bool:
    """Return whether a run wrote the file. Earlier versions wrote ``distill`` beside the methods that replaced it."""
    return read_regular(path).startswith(FIRST_LINE.encode())


def _base_of(value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise ConfigError(f"base must be the name of a recipe, got {shorten(value)}")
    return value
