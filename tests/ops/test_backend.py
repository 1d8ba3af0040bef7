"""The switch between kernels and plain PyTorch, and the package with a missing or broken library."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
import torch

import sftn_fast
from sftn_fast import ops
from sftn_fast.ops import _backend, _context_setting, _library

X, Y = torch.randn(4, 3), torch.zeros(4, dtype=torch.int64)
PACKAGE = Path(sftn_fast.__file__).parent

needs_library = pytest.mark.skipif(not _library.CPU.loaded, reason=f"no CPU kernels: {_library.CPU.error}")


@pytest.fixture(autouse=True)
def forget_warnings(monkeypatch):
    monkeypatch.setattr(_backend, "_warned", set())


def test_switch_is_undone_even_after_an_error():
    with pytest.raises(KeyError), ops.backend("reference"):
        assert _backend.current() == "reference"
        raise KeyError
    assert _backend.current() == "auto"


def test_overlapping_blocks_of_threads():
    """Each thread has a backend of its own; that of the process does not change."""
    entered, left = threading.Barrier(3), threading.Barrier(3)
    seen = {}

    def work(name, leaves_last):
        with ops.backend(name):
            entered.wait()
            seen[name] = _backend.current()
            if leaves_last:
                left.wait()
        if not leaves_last:
            left.wait()
        seen[name, "after"] = _backend.current()

    threads = [threading.Thread(target=work, args=x) for x in (("reference", False), ("fused", True))]
    for thread in threads:
        thread.start()
    entered.wait()
    seen["main"] = _backend.current()
    left.wait()
    for thread in threads:
        thread.join()
    after = dict.fromkeys([("reference", "after"), ("fused", "after")], "auto")
    assert seen == {"reference": "reference", "fused": "fused", "main": "auto"} | after
    assert _backend.current() == "auto"


def test_overlapping_blocks_of_tasks():
    async def work(name, turns):
        with ops.backend(name):
            for _ in range(turns):
                await asyncio.sleep(0)
                assert _backend.current() == name
        assert _backend.current() == "auto"

    async def work_side_by_side():
        await asyncio.gather(work("reference", 2), work("fused", 5), work("reference", 7))
        assert _backend.current() == "auto"
        with ops.backend("reference"):
            inside = asyncio.create_task(asyncio.sleep(0, _backend.current()))
        assert await inside == "reference"

    asyncio.run(work_side_by_side())
    assert _backend.current() == "auto"


def test_overlapping_blocks_of_generators():
    def work(name):
        with ops.backend(name):
            yield

    first, second = work("reference"), work("fused")
    next(first)
    next(second)
    first.close()  # leave the block that was entered first
    assert _backend.current() == "fused"
    second.close()
    assert _backend.current() == "auto"


def test_the_default_is_the_processes():
    """The default holds in every thread, except inside a block."""
    seen = []
    try:
        with ops.backend("fused"):
            ops.set_backend("reference")
            assert _backend.current() == "fused"
            thread = threading.Thread(target=lambda: seen.append(_backend.current()))
            thread.start()
            thread.join()
        assert seen == [_backend.current()] == ["reference"]
    finally:
        ops.set_backend("auto")


@needs_library
@pytest.mark.parametrize("reads_contexts", [True, False])
def test_compiled_code_follows_the_switch(monkeypatch, reads_contexts):
    """In one graph, also by compilers that can't read a context variable."""
    if reads_contexts and not _context_setting._COMPILERS_READ_CONTEXTS:
        pytest.skip("this torch's compiler can't read a context variable")
    monkeypatch.setattr(_context_setting, "_COMPILERS_READ_CONTEXTS", reads_contexts)
    targets = []

    def note(graph, _):
        targets.append(any("autograd_function" in str(n.target) or "sftn" in str(n.target) for n in graph.graph.nodes))
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(lambda x: ops.kd_loss(x, X), fullgraph=True, backend=note)
    for name in ("fused", "reference", "fused"):
        with ops.backend(name):
            compiled(X + 1)
    compiled(X + 1)
    assert targets[:2] == [True, False]
    assert len(targets) <= 3  # each was traced once, "auto" beside them


def test_reference_never_calls_the_kernel():
    class Forbidden:
        def __getattr__(self, name):
            raise AssertionError(f"{name} was called")

    with _backend._use_namespace("cpu", Forbidden()):
        with ops.backend("reference"):
            ops.sftn_loss(X, [X], Y)
        with pytest.raises(AssertionError, match="logits_forward was called"):
            ops.sftn_loss(X, [X], Y)


def test_auto_warns_once_where_there_is_no_kernel():
    with _backend._use_namespace("cpu", None):
        with pytest.warns(UserWarning, match="no compiled kernels for device 'cpu'") as caught:
            value = ops.kd_loss(X, X + 1)
        assert caught[0].filename == __file__
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert ops.kd_loss(X, X + 1).item() == value.item()


def test_fused_is_an_error_where_there_is_no_kernel():
    with (
        _backend._use_namespace("cpu", None),
        ops.backend("fused"),
        pytest.raises(RuntimeError, match="backend 'fused'"),
    ):
        ops.kd_loss(X, X)
    with ops.backend("fused"), pytest.raises(RuntimeError, match=r"'meta'.*kernels for cpu and cuda only"):
        ops.kd_loss(X.to("meta"), X.to("meta"))


def test_reference_serves_other_devices():
    with pytest.warns(UserWarning, match="'meta'"):
        assert ops.kd_loss(X.to("meta"), X.to("meta")).shape == ()


# ---- a library that is really missing or broken, in another process ----

PROGRAM = """
import contextlib, io, json, sys
import torch

printed = {}
for name in sys.argv[1:]:
    for module in [module for module in sys.modules if module.split(".")[0] == "sftn_fast"]:
        del sys.modules[module]
    sys.path[0] = name
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        from sftn_fast import info, ops
        assert ops.__file__.startswith(name), ops.__file__
        x = torch.randn(4, 3, requires_grad=True)
        ops.kd_loss(x, x.detach() + 1).backward()
        print("gradient", x.grad.shape)
        info.main([])
    printed[name] = out.getvalue(), err.getvalue()
print(json.dumps(printed))
"""
"""For each folder with a package `sftn_fast`: print what it says of itself after a loss. All share one import of torch.
Only the last package may load a library, because a process can register its ops only once."""


def run_spoiled(folder: Path, spoilers) -> dict[str, tuple[str, str]]:
    """Return what copies of the package print to output and error, each after a function changed its libraries."""
    for name, spoil in spoilers.items():
        copy = folder / name / "sftn_fast"
        shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
        spoil(copy)
    command = [sys.executable, "-c", PROGRAM, *(str(folder / name) for name in spoilers)]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return {Path(name).name: tuple(texts) for name, texts in json.loads(result.stdout).items()}


def missing(package: Path) -> None:
    for file in package.glob("*.so"):
        file.unlink()


def truncated(package: Path) -> None:
    (package / "_C.so").write_bytes(b"\x7fELF and no more")


def text(package: Path) -> None:
    (package / "_C.so").write_text("not a library\n" * 100)


def outdated(package: Path) -> None:
    """Add an op to the sources that the library, built before, does not have."""
    with (package / "ops" / "_logits.py").open("a") as file:
        file.write('\nregister_fake("op_of_tomorrow")(lambda: None)\n')


SPOILERS = {"missing": missing, "truncated": truncated, "text": text}
if _library.CPU.loaded:
    SPOILERS["outdated"] = outdated  # the last: its library loads


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory):
    return run_spoiled(tmp_path_factory.mktemp("spoiled"), SPOILERS)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing", "_C.so was not built"),
        ("truncated", "file too short"),
        ("text", "invalid ELF header"),
        pytest.param("outdated", "older than the package: it has no op_of_tomorrow", marks=needs_library),
    ],
)
def test_package_works_without_its_library(spoiled, name, reason):
    out, err = spoiled[name]
    assert "gradient torch.Size([4, 3])" in out
    assert "no compiled kernels for device 'cpu'" in err
    assert reason in err
    assert reason in out  # sftn_fast.info


@needs_library
def test_broken_cuda_library_costs_only_cuda(tmp_path):
    if torch.version.cuda is None:
        pytest.skip("this torch was built without CUDA, so the CUDA library is not even tried")
    spoilers = {"cuda": lambda package: (package / "_C_cuda.so").write_text("not a library\n" * 100)}
    out, err = run_spoiled(tmp_path, spoilers)["cuda"]
    assert "gradient torch.Size([4, 3])" in out
    assert "no compiled kernels" not in err
    assert "invalid ELF header" in out
