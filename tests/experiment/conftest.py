"""Runs of a second, by the hundred, in one process."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def fast(parsed_once: None) -> None:
    """Spend no time on what a process has done before."""


@pytest.fixture
def own(finished: Path, tmp_path: Path) -> Path:
    """A copy of the module's finished run, to be changed."""
    return Path(shutil.copytree(finished, tmp_path / "run"))
