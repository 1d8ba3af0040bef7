"""The pages of docs/guide, done as their readers would: files written, commands and snippets run, in order."""

from __future__ import annotations

import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sftn_fast import models
from sftn_fast.data import source
from sftn_fast.data.source import Images, Source

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs" / "guide").glob("*.md"))
BLOCK = re.compile(r'^```(\w+)(?: title="(.*?)")?\n(.*?)^```', flags=re.DOTALL | re.MULTILINE)
SHORT = ["--epochs", "1", "--seeds", "[0]"]
"""What is added to the commands that would train for 240 epochs."""
RUNS = {"first-run": 12, "install": 1, "moving": 5, "own-method": 2, "own-network": 4, "speed": 2}
"""Files, commands and snippets of each page, so that none is missed in silence."""


@pytest.fixture
def desk(tmp_path, monkeypatch, forgotten_plugins):
    """An empty folder to work in, but for a teacher of RepDistiller's; CIFAR-100 is an image for each class."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    images = Images(torch.randint(256, (100, 3, 32, 32), dtype=torch.uint8), torch.arange(100))
    cifar = Source("cifar100", 100, images, images, (0.5,) * 3, (0.2,) * 3, crop_padding=4, flip=True)
    source.names()  # all are registered
    monkeypatch.setitem(source._loaders, "cifar100", lambda config: cifar)
    teacher = models.build("resnet32x4", num_classes=100)
    torch.save({"epoch": 240, "model": teacher.state_dict()}, "ckpt_epoch_240.pth")
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page(page, desk, monkeypatch):
    done = 0
    for language, title, text in BLOCK.findall(page.read_text()):
        if title:
            (desk / title).write_text(text)
            done += 1
        elif language == "python":
            snippet(text)
            done += 1
        elif language == "sh":
            for line in text.splitlines():
                command(shlex.split(line), monkeypatch)
                done += 1
    assert done == RUNS[page.stem]


def snippet(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def command(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert words[:2] == ["python", "-m"] and words[2].startswith("sftn_fast."), words
    monkeypatch.setattr(sys, "argv", [*words[2:], *(SHORT if "cifar100" in words else [])])
    monkeypatch.delitem(sys.modules, words[2], raising=False)  # what runpy would warn of
    try:
        runpy.run_module(words[2], run_name="__main__")
    except SystemExit as left:
        assert not left.code, words


def test_site_builds(tmp_path):
    pytest.importorskip("material", reason="mkdocs-material is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "guide" / "own-method" / "index.html").is_file()
