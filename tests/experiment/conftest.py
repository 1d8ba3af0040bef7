"""Runs of a second, by the hundred, in one process."""

from __future__ import annotations

import copy
import functools

import pytest

from sftn_fast.utils import safe_yaml

load = functools.cache(safe_yaml.load)


@pytest.fixture(autouse=True)
def parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parse each text once in the process. A run parses its configuration five times, which takes half of its time."""
    monkeypatch.setattr(safe_yaml, "load", lambda *text, **options: copy.deepcopy(load(*text, **options)))
