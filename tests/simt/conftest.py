"""Fixtures of the emulated device."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest

from .build import load


@pytest.fixture
def emulator() -> Iterator[ModuleType]:
    """Return the emulator's controls, reset."""
    module = load()
    module.reset()
    yield module
    module.reset()
