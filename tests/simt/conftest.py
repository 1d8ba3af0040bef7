"""Fixtures of the emulated device."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .build import Emulator, load


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    """Return the emulator's controls, reset."""
    module = load()
    module.reset()
    yield module
    module.reset()
