"""The allocator's settings: programs change them, the library does not."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from engine.stubs import run_fit

from sftn_fast import cli, data, train
from sftn_fast.experiment import worker
from sftn_fast.utils import allocator


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Each call of mallopt, which changes nothing."""
    calls: list[tuple[int, int]] = []
    library = SimpleNamespace(mallopt=lambda *setting: calls.append(setting))
    monkeypatch.setattr(ctypes, "CDLL", lambda name, **options: library)
    return calls


KEPT = [(allocator.M_MMAP_MAX, 0), (allocator.M_TRIM_THRESHOLD, 2**31 - 1)]


@pytest.mark.parametrize("missing", [AttributeError, OSError])
def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch, missing: type[Exception]) -> None:
    def fail(name: str | None) -> None:
        raise missing("no mallopt here")

    monkeypatch.setattr(ctypes, "CDLL", fail)
    allocator.keep_freed_memory()


def test_fit_changes_no_setting(tmp_path: Path, settings: list[tuple[int, int]]) -> None:
    run_fit(tmp_path, epochs=1)
    assert settings == []


@pytest.mark.parametrize("options", [(), ("--engine.device", "cpu")])
def test_the_program_that_trains_on_the_cpu_keeps_its_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: list[tuple[int, int]], options: tuple[str, ...]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    ran = []
    monkeypatch.setattr(train, "run", lambda config, server: ran.append(list(settings)))
    assert train.main(["--config", "demo", "--output", str(tmp_path / "run"), *options]) == 0
    assert ran == [KEPT]  # before anything is trained


def test_the_program_that_trains_on_a_gpu_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: list[tuple[int, int]]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(train, "run", lambda config, server: None)
    assert train.main(["--config", "demo", "--engine.device", "cuda", "--output", str(tmp_path / "run")]) == 0
    assert settings == []


def test_a_worker_on_the_cpu_keeps_its_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: list[tuple[int, int]]
) -> None:
    monkeypatch.setattr(data, "mute_notices", lambda: None)
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, getattr(sys, name))  # which main replaces
    config, _ = cli.parse(["--engine.device", "cpu"])
    here, there = multiprocessing.Pipe()
    here.send((config, tmp_path))
    here.send(None)
    worker.run(os.dup(there.fileno()))
    assert settings == KEPT
