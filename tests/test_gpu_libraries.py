"""The libraries of a session on a lent GPU: carried ones, built ones, those of other sources or for another GPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import record
from bench.gpu import libraries, pack, plan, rehearse
from bench.gpu.installed import NAMES
from bench.gpu.part import ROOT
from bench.gpu.plan import PLANS


@pytest.fixture
def carried(tmp_path) -> Path:
    built = tmp_path / "built"
    built.mkdir()
    for name in NAMES:
        (built / name).write_bytes(name.encode())
    pack.pack(tmp_path / "carried", built, "9.0")
    return tmp_path / "carried"


@pytest.mark.parametrize(("device", "names"), [("cuda", ["_C.so", "_C_cuda.so"]), ("cpu", ["_C.so"])])
def test_carried_libraries_are_put_where_none_are(device, names, carried, tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    assert libraries.install(carried, device, package) is None
    assert sorted(path.name for path in package.iterdir()) == names
    (package / "_C.so").write_text("built here")
    libraries.install(carried, device, package)
    assert (package / "_C.so").read_text() == "built here"


def test_libraries_of_other_sources_are_not_used(carried, tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    assert "are not of these sources" in libraries.install(carried, "cuda", package, sources="others")
    assert "no libraries were carried" in libraries.install(tmp_path / "nowhere", "cuda", package)
    assert not list(package.iterdir())


@pytest.fixture
def package(tmp_path) -> Path:
    (tmp_path / "package").mkdir()
    return tmp_path / "package"


def test_what_an_earlier_session_put_makes_room(carried, package):
    """The folder of the sources may be kept between two visits, with other sources on the second."""
    assert libraries.install(carried, "cuda", package) is None
    (carried / "_C.so").write_text("packed again")
    assert libraries.install(carried, "cuda", package) is None
    assert (package / "_C.so").read_text() == "packed again"
    assert "are not of these sources" in libraries.install(carried, "cuda", package, sources="later ones")
    assert not list(package.iterdir())


def test_what_a_session_built_is_kept_for_its_sources_only(carried, package, monkeypatch):
    made = SimpleNamespace(returncode=0)
    monkeypatch.setattr(libraries.subprocess, "run", lambda *_, **__: (package / "_C.so").write_text("built") and made)
    assert libraries.built(package) is None
    assert "no libraries were carried" in libraries.install(package, "cuda", package)
    assert (package / "_C.so").read_text() == "built"
    libraries.install(package, "cuda", package, sources="later ones")
    assert not list(package.iterdir())


@pytest.mark.parametrize("damage", ["list", "empty", "cut", "absent"])
def test_damaged_carried_libraries_are_named(damage, carried, package):
    if damage == "absent":
        (carried / "_C_cuda.so").unlink()
    else:
        text = (carried / "packed.json").read_text()
        (carried / "packed.json").write_text({"list": "[]", "empty": "{}", "cut": text[:20]}[damage])
    said = libraries.install(carried, "cuda", package)
    assert "lacks _C_cuda.so" in said if damage == "absent" else "no libraries were carried" in said
    assert not list(package.iterdir())


@pytest.mark.parametrize(
    ("built", "gpu", "runs"),
    [
        *(("9.0", "9.0", True), ("9.0", "8.0", False), ("9.0", "10.0", False), ("8.0", "8.6", True)),
        *(("8.6", "8.0", False), ("8.0;9.0", "9.0", True), ("8.0 9.0 12.0+PTX", "13.0", True), ("9.0a", "9.0", True)),
        *(("12.0+PTX", "10.0", False), ("Hopper", "9.0", False)),
    ],
)
def test_kernels_are_for_a_gpu(built, gpu, runs):
    assert libraries.covers(built, gpu) is runs


def test_kernels_for_another_gpu_are_not_put_there(carried, package):
    said = libraries.install(carried, "cuda", package, gpu="8.0")
    assert said == "the carried kernels are for compute capability 9.0, and this GPU has 8.0"
    assert not list(package.iterdir())


def test_the_gpu_decides_what_is_loaded_and_built(monkeypatch, tmp_path):
    monkeypatch.setattr(plan, "architecture", lambda: "8.0")
    ((load,), *_) = PLANS["first"].stages("cuda", tmp_path)
    assert load.command[-2:] == ["--gpu", "8.0"]
    assert load.fallback.environment["TORCH_CUDA_ARCH_LIST"] == "8.0"


@pytest.mark.parametrize(("tries", "builds"), [([None], 0), (["no symbol", None], 1), (["no symbol", "still none"], 1)])
def test_a_build_is_for_libraries_that_do_not_work(tries, builds, monkeypatch, tmp_path, capsys):
    """The first try may only have been too slow for its time, and a build would then cost what works."""
    made, end = [], int(tries[-1] is not None)
    monkeypatch.setattr(libraries, "works", lambda device: tries.pop(0))
    monkeypatch.setattr(libraries, "built", lambda: made.append(1))
    monkeypatch.setattr(record, "conditions", lambda device: {"device": device})
    monkeypatch.setattr(
        sys, "argv", ["libraries", "--build", "--about", str(tmp_path / "about.json"), "--device", "cpu"]
    )
    assert libraries.main() == end
    assert len(made) == builds
    assert (tmp_path / "about.json").exists() == (end == 0)


def test_every_source_decides(tmp_path):
    (tmp_path / "csrc").mkdir()
    seen = set()
    for name in ("setup.py", "csrc/a.h", "csrc/b.cu"):
        seen.add(libraries.digest(tmp_path))
        (tmp_path / name).write_text("1")
    (tmp_path / "csrc/b.cu").write_text("2")
    assert libraries.digest(tmp_path) not in seen and len(seen) == 3


def test_the_kernels_of_this_machine_are_tried(capfd, monkeypatch):
    assert libraries.works("cpu") is None
    assert "its kernels run" in capfd.readouterr().out
    monkeypatch.setattr(libraries, "TRY", "raise SystemExit('a symbol is missing')")
    assert libraries.works("cpu") == "a symbol is missing"


def test_what_travels_is_what_git_knows():
    files = {str(path.relative_to(ROOT)) for path in pack.travelling()}
    assert {"setup.py", "bench/gpu/pack.py", "csrc/cuda/logits.cu"} <= files
    assert not any(name.endswith(".so") or name.startswith("build/") for name in files)
    assert pack.megabytes(pack.travelling()) < pack.LIMIT_MB


def test_what_was_packed_stays_until_all_is_there(carried, tmp_path, monkeypatch, capsys):
    def offline(wheels, folder):
        raise subprocess.CalledProcessError(1, [sys.executable, "-m", "pip", "download"])

    monkeypatch.setattr(pack, "CARRIED", carried)
    monkeypatch.setattr(pack, "download", offline)
    before = (carried / "packed.json").read_text()
    monkeypatch.setattr(sys, "argv", ["pack", "--built", str(tmp_path / "built"), "--architecture", "8.0"])
    with pytest.raises(SystemExit, match="-m pip download failed with exit code 1"):
        pack.main()
    assert (carried / "packed.json").read_text() == before
    (tmp_path / "built" / "_C_cuda.so").unlink()
    with pytest.raises(SystemExit, match="2"):
        pack.main()
    assert "has no _C_cuda.so" in capsys.readouterr().err


def test_a_rehearsal_needs_its_interpreter(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["rehearse", str(tmp_path / "folder"), "--python", "no-such-python"])
    with pytest.raises(SystemExit, match="2"):
        rehearse.main()
    assert "--python no-such-python is not installed" in capsys.readouterr().err
    assert not (tmp_path / "folder").exists()
