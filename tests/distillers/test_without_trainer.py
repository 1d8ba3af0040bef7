"""Distillers in loops that are not ours: the code of docs/own-loop.md, run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

DOCS = Path(__file__).resolve().parents[2] / "docs" / "own-loop.md"
CODE = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
SMALL = """
import torch
from torch.utils.data import DataLoader, TensorDataset
torch.manual_seed(0)
count, size = 24, 16
labels = torch.arange(count) % 10
data = TensorDataset(torch.randn(count, 3, size, size), labels, torch.arange(count))
loader = DataLoader(data, batch_size=12)
epochs = 2
"""


def run(*snippets):
    names = {}
    exec(SMALL, names)
    for snippet in snippets:
        exec(snippet, names)
    return names


def snippet(word):
    (found,) = (code for code in CODE if word in code)
    return found


def test_bare_loop():
    names = run(CODE[0], "before = student.head.fc.weight.clone()", snippet("begin_epoch"))
    assert names["terms"]["total"].isfinite()
    assert not torch.equal(names["before"], names["student"].head.fc.weight)
    assert all(p.grad is not None for p in names["distiller"].parameters())
    assert not any(module.training for module in names["teacher"].modules())


def test_lightning(tmp_path, monkeypatch):
    pytest.importorskip("lightning")
    monkeypatch.chdir(tmp_path)
    names = run(CODE[0], snippet("LightningModule"))
    assert "distiller.teacher" not in str(names["module"].state_dict().keys())


def test_accelerate():
    pytest.importorskip("accelerate")
    names = run(CODE[0], snippet("Accelerator"))
    assert names["terms"]["total"].isfinite()


def test_initialisations_first():
    names = run(CODE[0].replace('"kd=1,crd=0.8"', '"ft"'), snippet("initialisations()"))
    first = names["distiller"].methods[0]["ft"]
    assert not any(p.requires_grad for p in first.paraphraser.parameters())
    assert any(p.requires_grad for p in first.translator.parameters())


def test_every_snippet_is_run():
    words = re.findall(r'snippet\("(.+?)"\)', Path(__file__).read_text())
    assert CODE[1:] == sorted((snippet(word) for word in words), key=CODE.index)
