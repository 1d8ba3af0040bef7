"""Optimizers without torch's compiler: torch's own in everything but that."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import nn

from sftn_fast.engine import uncompiled
from sftn_fast.engine.optimizer_classes import optimizers
from sftn_fast.engine.uncompiled import without_compiler


def module_of(function: object) -> str:
    """Name of the module whose code a function runs, which functools.wraps does not change."""
    return str(function.__globals__["__name__"])  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", sorted(optimizers()))
def test_every_class_loses_its_wrappers(name: str) -> None:
    kind = optimizers()[name]
    plain = without_compiler(kind)
    assert all(module_of(getattr(plain, method)) != "torch._compile" for method in uncompiled.GUARDED)
    assert (plain.__name__, plain.__doc__, plain.__module__) == (kind.__name__, kind.__doc__, kind.__module__)
    assert issubclass(plain, kind)


@pytest.mark.parametrize("name", sorted(optimizers()))
def test_it_computes_what_torch_does(name: str) -> None:
    torch.manual_seed(0)
    ours, images = nn.Linear(5, 3), torch.randn(4, 5)
    theirs = copy.deepcopy(ours)
    steps = [
        (ours, without_compiler(optimizers()[name])(ours.parameters(), lr=0.01)),
        (theirs, optimizers()[name](theirs.parameters(), lr=0.01)),
    ]
    for _ in range(3):
        for net, optimizer in steps:
            optimizer.zero_grad()
            net(images).square().mean().backward()
            optimizer.step()
            assert torch.is_grad_enabled()
    assert all(map(torch.equal, ours.parameters(), theirs.parameters()))
    own, torchs = (optimizer.state_dict() for _, optimizer in steps)
    assert own["param_groups"] == torchs["param_groups"] and own["state"].keys() == torchs["state"].keys()
    steps[0][1].load_state_dict(torchs)
    assert repr(steps[0][1]) == repr(steps[1][1])


def test_hooks_of_a_step_run_once() -> None:
    seen = []
    parameter = nn.Parameter(torch.ones(1))
    for kind in (torch.optim.SGD, without_compiler(torch.optim.SGD)):  # torch adds hooks to a class at its first use
        optimizer = kind([parameter], lr=0.1)
        optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
        optimizer.register_step_post_hook(lambda *_: seen.append("after"))
        optimizer.step()
    assert seen == ["before", "after"] * 2


def test_other_wrappers_stay() -> None:
    """Those of other modules may do anything, so that the worst that a new one costs is the import."""

    def logged(method):
        @functools.wraps(method)
        def call(*args, **options):
            calls.append(method.__name__)
            return method(*args, **options)

        return call

    class Logged(torch.optim.SGD):
        step = logged(torch.optim.SGD.step)
        zero_grad = logged(torch.optim.SGD.zero_grad)

    calls: list[str] = []
    optimizer = without_compiler(Logged)([nn.Parameter(torch.ones(1))], lr=0.1)
    optimizer.step()
    optimizer.zero_grad()
    assert calls == ["step", "zero_grad"]


def test_a_torch_without_wrappers_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*uncompiled.GUARDED, "step"):
        for kind in (torch.optim.SGD, torch.optim.Optimizer):
            if name in vars(kind):
                monkeypatch.setattr(kind, name, uncompiled._unwrapped(getattr(kind, name)))
    parameter = nn.Parameter(torch.ones(1))
    optimizer = without_compiler(torch.optim.SGD)([parameter], lr=0.5)
    parameter.grad = torch.ones(1)
    optimizer.step()
    assert parameter.item() == 0.5
