"""Cores and memory, also on systems that tell little about them."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("PIL.Image")
import pictures

from sftn_fast.config import DataConfig
from sftn_fast.data import decoder_choice, resources, verify
from sftn_fast.data.decode import read_images


def test_this_machine():
    assert resources.cores() >= 1
    assert resources.memory() > 2**28


def unknown(name):
    raise ValueError(f"unrecognized configuration name {name}")


@pytest.fixture(params=["no such call", "an unknown name"])
def macos(request, monkeypatch):
    """A system without CPU affinity, where asking for the memory fails in one of two ways."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    if request.param == "no such call":
        monkeypatch.delattr(os, "sysconf")
    else:
        monkeypatch.setattr(os, "sysconf", unknown)


def test_without_affinity_everything_works(macos, tmp_path, capsys):
    assert resources.cores() == 3
    assert decoder_choice.describe_loader(DataConfig("imagenet", loader="torchvision")).endswith("in 3 processes")
    path = pictures.write(tmp_path / "a.png")
    assert read_images([path], 8, root=tmp_path).shape == (1, 3, 8, 8)
    with pytest.raises(SystemExit):
        verify.main(["--help"])
    assert "one per core" in " ".join(capsys.readouterr().out.split())
    assert resources.memory() is None
