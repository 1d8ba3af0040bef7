"""Settings that a user gives and that nothing reads, because of other settings.

The types of a configuration's fields say what reads them; see :class:`~sftn_fast.validation.ReadWith`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from sftn_fast.cli.keys import Key, groups_of, keys_of
from sftn_fast.utils import safe_yaml
from sftn_fast.utils.text import printable
from sftn_fast.validation import ReadWith, look_up, unwrap

LONGEST = 80
"""Largest number of characters of a value in a message."""


def describe_unread(config: Any, given: Iterable[str]) -> Iterator[str]:
    """Yield a line for each of the keys ``given`` that ``config`` does not read; a dict's entry is ``KEY.ENTRY``.

    Values that are null, or off by default, such as 0, need no reader.
    """
    keys, asked = keys_of(type(config)), set(given)
    for key in keys.values():
        values = look_up(config, key.name)
        entries = values if key.is_dict else {"": values}
        for entry, value in entries.items():
            named = f"{key.name}.{entry}".rstrip(".")
            off = value is None or (value == key.default and not value)
            if off or asked.isdisjoint((key.name, named)):
                continue
            broken = next((mark for mark in marks_of(key, type(config)) if not mark.holds(config, entry)), None)
            if broken is not None:
                yield f"{_setting(named, value)} does nothing with {_cause(broken, config, key.name)}"


def marks_of(key: Key, cls: type) -> list[ReadWith]:
    """Return what the field ``key`` of ``cls`` says of its readers, after what its group says."""
    group = getattr(groups_of(cls)[key.group], "read_with", ())
    return [*group, *(mark for mark in unwrap(key.type)[1] if isinstance(mark, ReadWith))]


def _cause(mark: ReadWith, config: Any, key: str) -> str:
    """Return the settings because of which ``key`` is not read."""
    values = {name: look_up(config, name) for name in mark.shown if name != key}
    return " and ".join(_setting(name, value) for name, value in values.items() if value is not None)


def _setting(name: str, value: Any) -> str:
    return f"{name}={printable(safe_yaml.inline(value), LONGEST)}"
