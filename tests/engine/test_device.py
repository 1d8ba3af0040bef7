"""Compilation of a task, and what happens if it fails."""

from __future__ import annotations

import pytest
import torch

from sftn_fast.engine.compile import Compiled

from .stubs import make_task, run_fit


def test_what_cannot_be_compiled_trains_without(tmp_path, monkeypatch, capsys):
    """The failure comes after part of the task has run. BatchNorm's counts are restored."""

    def compile_and_fail(task):
        def fail(*batch):
            task(*batch)
            raise RuntimeError("no C++ compiler\nand more")

        return fail

    plain, task = make_task(dropout=0), make_task(dropout=0)
    expected = run_fit(tmp_path / "plain", task=plain)
    monkeypatch.setattr(torch, "compile", compile_and_fail)
    result = run_fit(tmp_path / "compiled", task=task, engine={"compile": True})
    assert capsys.readouterr().err.count("engine.compile: not compiled, RuntimeError: no C++ compiler\n") == 1
    assert result.last["train_total"] == expected.last["train_total"]
    for ours, theirs in zip(task.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.slow
def test_a_compiled_task_gives_the_same_terms():
    task, other = make_task(dropout=0), make_task(dropout=0)
    compiled = Compiled(other)
    torch.manual_seed(0)
    for _ in range(2):
        batch = torch.randn(8, 3, 6, 6), torch.randint(6, (8,)), torch.arange(8)
        terms, expected = compiled(*batch), task(*batch)
        terms["total"].backward()
        expected["total"].backward()
        for name, term in expected.items():
            torch.testing.assert_close(terms[name], term)
    assert compiled._call is not other  # no fallback
    for ours, theirs in zip(other.parameters(), task.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
