"""YAML as plain data, safe for files from others: no tags, no key twice, bounded in size, depth and repetition."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

import yaml

from sftn_fast.config import ConfigError

MAX_BYTES = 64 * 1024
MAX_DEPTH = 16
MAX_NODES = 5_000
"""Largest number of values in a file. Those behind an alias count each time it is used."""
MAX_DIGITS = 18
"""Largest number of digits of a whole number, which then fits into 64 bits."""

INT, FLOAT, BOOL, NULL = (f"tag:yaml.org,2002:{name}" for name in ("int", "float", "bool", "null"))
# YAML 1.1 reads 010 as 8 and 1:30 as 90, and 1e-3 as text.
RESOLVERS = (
    (INT, r"[-+]?(?:0|[1-9][0-9_]*)", "-+0123456789"),
    (FLOAT, r"[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)", "-+.0123456789"),
    (FLOAT, r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN)", "-+.0123456789"),
    (BOOL, r"yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF", "yYnNtTfFoO"),
    (NULL, r"~|null|Null|NULL", "~nN"),
)


def read(path: Path) -> Any:
    """Return the content of the YAML file ``path``.

    Raises:
        ConfigError: The file is not a regular file, not UTF-8, not YAML, or exceeds a limit. The message is one line
            that names the file.
    """
    if not path.is_file():  # reading a pipe could block
        raise ConfigError(f"{path} is not a file")
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}") from error
    try:
        return load(content.decode("utf-8-sig"), str(path))
    except UnicodeDecodeError as error:
        raise NotYamlError(f"{path} is not a YAML file: byte {error.start} is not UTF-8") from None


def load(text: str, where: str, *, lines: bool = True) -> Any:
    """Return the content of the YAML document ``text``.

    Args:
        text: One document.
        where: Name of the document for messages.
        lines: Name the line too. What was typed on a command line has none.

    Raises:
        NotYamlError: The text is not YAML.
        ConfigError: The text is YAML but exceeds a limit. Both messages are one line, with the line in the text.
    """
    if len(text) > MAX_BYTES:
        raise ConfigError(f"{where} is larger than {MAX_BYTES // 1024} KiB, the limit for YAML")
    try:
        loader = _Loader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except _Refused as refused:
        place = f"{where}, line {refused.line}" if lines else where
        raise ConfigError(f"{place}: {refused}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}" if mark else ""
        problem = " ".join(str(error.problem or error.context).split())
        raise NotYamlError(f"{where} is not a YAML file{place}: {problem}") from None
    except yaml.reader.ReaderError as error:
        raise NotYamlError(
            f"{where} is not a YAML file: character {error.position} is U+{error.character:04X}, not allowed in YAML"
        ) from None
    except yaml.YAMLError as error:
        raise NotYamlError(f"{where} is not a YAML file: {' '.join(str(error).split())}") from None


def dump(value: Any) -> str:
    """Return ``value`` as YAML. :func:`load` returns the same value, with lists in place of tuples."""
    return yaml.dump(plain(value), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def inline(value: Any) -> str:
    """Return ``value`` as YAML in one line."""
    text = yaml.dump(plain(value), Dumper=_Dumper, default_flow_style=True, width=10**6, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


class NotYamlError(ConfigError):
    """Text that is not YAML, unlike one that exceeds a limit."""


def plain(value: Any) -> Any:
    """Return ``value`` with lists in place of tuples."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, tuple | list) else value


class _Refused(Exception):
    """YAML that is valid but not allowed in a recipe."""

    def __init__(self, message: str, mark: yaml.Mark) -> None:
        super().__init__(message)
        self.line = mark.line + 1


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with limits, which are checked while the text is parsed, before values are built."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._read = 0
        self._extent: dict[yaml.Node, tuple[int, int]] = {}  # values and levels of each finished node

    def compose_node(self, parent: yaml.Node | None, index: Any) -> Any:
        event = self.peek_event()
        mark = event.start_mark
        if getattr(event, "tag", None):
            raise _Refused(f"the tag {event.tag.replace('tag:yaml.org,2002:', '!!')} is not allowed", mark)
        if self.check_event(yaml.AliasEvent):
            node: Any = super().compose_node(parent, index)
            if node not in self._extent:
                raise _Refused("an alias is inside the value that it refers to", mark)
        else:
            self._depth += 1
            self._read += 1
            self._check_depth(1, mark)
            node = super().compose_node(parent, index)
            self._depth -= 1
            self._extent[node] = self._measure(node)
        nodes, levels = self._extent[node]
        self._check_depth(levels, mark)
        if max(nodes, self._read) > MAX_NODES:
            raise _Refused(f"more than {MAX_NODES:,} values", mark)
        return node

    def _check_depth(self, levels: int, mark: yaml.Mark) -> None:
        if self._depth + levels - 1 > MAX_DEPTH:
            raise _Refused(f"nested more than {MAX_DEPTH} levels deep", mark)

    def _measure(self, node: Any) -> tuple[int, int]:
        """Check the keys of a node that has just been parsed, and return its number of values and levels."""
        children = [child for pair in node.value for child in pair] if node.id == "mapping" else []
        children += node.value if node.id == "sequence" else []
        if node.id == "mapping":
            _check_keys([key for key, _ in node.value])
        extents = [self._extent[child] for child in children]
        return 1 + sum(nodes for nodes, _ in extents), 1 + max((levels for _, levels in extents), default=0)

    def construct_yaml_int(self, node: yaml.Node) -> int:
        digits = node.value.replace("_", "")
        if len(digits.lstrip("+-")) > MAX_DIGITS:
            raise _Refused(f"a whole number of {len(digits)} digits, {MAX_DIGITS} at most", node.start_mark)
        return int(digits)

    def construct_yaml_float(self, node: yaml.Node) -> float:
        text = node.value.replace("_", "").lower()
        return float(text.replace(".inf", "inf").replace(".nan", "nan"))


def _check_keys(keys: list[Any]) -> None:
    lines: dict[str, int] = {}
    for key in keys:
        if key.id != "scalar":
            raise _Refused("a key is not text", key.start_mark)
        if key.value == "<<":
            raise _Refused("<< is not allowed; use the key base to inherit from another recipe", key.start_mark)
        if key.value in lines:
            raise _Refused(f"key {key.value} is given twice, first in line {lines[key.value]}", key.start_mark)
        lines[key.value] = key.start_mark.line + 1


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper, which also quotes texts that only :class:`_Loader` would read as another type."""


for _class in (_Loader, _Dumper):
    for _tag, _pattern, _first in RESOLVERS:
        _class.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), list(_first))
    _class.add_implicit_resolver(NULL, re.compile("^$"), [""])
_Loader.add_constructor(INT, _Loader.construct_yaml_int)
_Loader.add_constructor(FLOAT, _Loader.construct_yaml_float)
