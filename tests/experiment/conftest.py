"""Runs of a second, by the hundred, in one process."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def fast(parsed_once: None) -> None:
    """Spend no time on what a process has done before."""
