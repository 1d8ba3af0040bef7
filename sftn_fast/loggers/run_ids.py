"""The ids of a training's runs at the services, and what these have received, in a file of the training's folder.

A resumed training repeats the steps after its checkpoint. Services that can't forget them must not get them twice.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sftn_fast.utils.atomic import write_atomically

FILE = "loggers.json"

Sent = dict[str, int]
"""The last step that was logged, by kind of record."""


@dataclass
class Entry:
    """What is known about the run at one service."""

    id: str
    sent: Sent = field(default_factory=dict)


def read(folder: Path) -> dict[str, Entry]:
    """Return the entries of a training by the names of the loggers; none if the file is missing or damaged."""
    try:
        content = json.loads((folder / FILE).read_text("utf-8"))
        return {
            str(name): Entry(str(entry["id"]), {str(kind): int(step) for kind, step in entry["sent"].items()})
            for name, entry in content.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def write(folder: Path, name: str, entry: Entry) -> None:
    """Write the ``entry`` of a logger and keep those of others.

    Raises:
        OSError: The file can't be written; the old one stays.
    """
    entries = {**read(folder), name: entry}
    content = {name: {"id": each.id, "sent": each.sent} for name, each in entries.items()}
    write_atomically(folder / FILE, json.dumps(content, indent=1) + "\n")


def later(one: Mapping[str, int], other: Mapping[str, int]) -> Sent:
    """Return the later step of each kind of record."""
    return {kind: max(one.get(kind, 0), other.get(kind, 0)) for kind in {**one, **other}}
