"""Decisions of setup.py: the nvcc it finds, the architectures it builds for, and messages about missing tools."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sftn_fast.ops import _capability, _nodes

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def setup_py(monkeypatch):
    """setup.py as a module, on a machine with a CUDA build of torch and an H200, but without a CUDA toolkit."""
    spec = importlib.util.spec_from_file_location("setup_py", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("CUDA_HOME", "CUDA_PATH", "SFTN_CUDA", "SFTN_CPU_LEVELS", "SFTN_NODES", "TORCH_CUDA_ARCH_LIST"):
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    monkeypatch.setattr(sys, "argv", ["setup.py", "editable_wheel"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    monkeypatch.setattr(module.sysconfig, "get_path", lambda name: "/nowhere")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    return module


def toolkit(folder: Path) -> Path:
    (folder / "bin").mkdir(parents=True)
    (folder / "include").mkdir()
    (folder / "bin" / "nvcc").touch()
    (folder / "include" / "cuda_runtime.h").touch()
    return folder


def wrapper(file: Path, top: Path) -> str:
    """Write an nvcc that is a script outside its toolkit, as in some distributions."""
    file.write_text(f"#!/bin/sh\necho '#$ TOP={top}/bin/..' >&2\n")
    file.chmod(0o755)
    return str(file)


def test_cuda_home_comes_first(setup_py, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_HOME", str(toolkit(tmp_path / "home")))
    nvcc = wrapper(tmp_path / "nvcc", toolkit(tmp_path / "other"))
    monkeypatch.setattr(setup_py.shutil, "which", lambda name: nvcc)
    assert setup_py.find_toolkit() == tmp_path / "home"


def test_nvcc_on_path_is_asked_for_its_toolkit(setup_py, tmp_path, monkeypatch):
    nvcc = wrapper(tmp_path / "nvcc", toolkit(tmp_path / "real"))
    monkeypatch.setattr(setup_py.shutil, "which", lambda name: nvcc)
    assert setup_py.find_toolkit() == tmp_path / "real"


def test_a_broken_cuda_home_is_passed_over(setup_py, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "gone"))
    nvcc = wrapper(tmp_path / "nvcc", toolkit(tmp_path / "real"))
    monkeypatch.setattr(setup_py.shutil, "which", lambda name: nvcc)
    assert setup_py.find_toolkit() == tmp_path / "real"


def test_the_nvcc_of_a_wheel_comes_last(setup_py, tmp_path, monkeypatch):
    monkeypatch.setattr(setup_py.sysconfig, "get_path", lambda name: str(tmp_path))
    toolkit(tmp_path / "nvidia" / "cu13")
    assert setup_py.find_toolkit() == tmp_path / "nvidia" / "cu13"


def test_nvcc_without_headers_is_none(setup_py, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_HOME", str(toolkit(tmp_path / "home")))
    (tmp_path / "home" / "include" / "cuda_runtime.h").unlink()
    assert setup_py.find_toolkit() is None


def test_without_nvcc_the_cpu_library_is_built_and_one_line_says_so(setup_py, capsys):
    assert setup_py.cuda_toolkit() is None
    assert capsys.readouterr().err.splitlines() == [
        "sftn_fast: no nvcc with its headers was found: building the CPU library only"
    ]


def test_forced_cuda_without_nvcc_is_an_error(setup_py, monkeypatch):
    monkeypatch.setenv("SFTN_CUDA", "1")
    with pytest.raises(SystemExit, match="SFTN_CUDA=1, but no nvcc with its headers was found; set CUDA_HOME"):
        setup_py.cuda_toolkit()
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(SystemExit, match="SFTN_CUDA=1, but this torch was built without CUDA"):
        setup_py.cuda_toolkit()


def test_cuda_can_be_left_out(setup_py, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CUDA_HOME", str(toolkit(tmp_path / "home")))
    monkeypatch.setenv("SFTN_CUDA", "0")
    assert setup_py.cuda_toolkit() is None
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("SFTN_CUDA", "yes")
    with pytest.raises(SystemExit, match="SFTN_CUDA must be 0, 1 or unset, got 'yes'"):
        setup_py.cuda_toolkit()


def test_a_gpu_gets_its_own_architecture(setup_py, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_HOME", str(toolkit(tmp_path / "home")))
    assert setup_py.cuda_toolkit() == tmp_path / "home"
    assert os.environ["TORCH_CUDA_ARCH_LIST"] == "9.0"


def test_different_gpus_get_an_architecture_each(setup_py, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: ((9, 0), (8, 6), (9, 0))[index])
    assert setup_py.architectures("") == "8.6 9.0"


def test_without_a_gpu_the_cpu_library_is_built_and_one_line_says_so(setup_py, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CUDA_HOME", str(toolkit(tmp_path / "home")))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert setup_py.cuda_toolkit() is None
    assert capsys.readouterr().err.splitlines() == [
        "sftn_fast: no GPU was found: building the CPU library only (SFTN_CUDA=1 builds the CUDA kernels too)"
    ]


@pytest.mark.parametrize(("command", "wanted"), [("bdist_wheel", ""), ("editable_wheel", "1")])
def test_a_wheel_and_sftn_cuda_build_all_architectures(setup_py, tmp_path, monkeypatch, command, wanted):
    monkeypatch.setenv("CUDA_HOME", str(toolkit(tmp_path / "home")))
    monkeypatch.setenv("SFTN_CUDA", wanted)
    monkeypatch.setattr(sys, "argv", ["setup.py", command])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert setup_py.cuda_toolkit() == tmp_path / "home"
    assert os.environ["TORCH_CUDA_ARCH_LIST"] == setup_py.ARCHITECTURES


def test_given_architectures_are_kept(setup_py, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_HOME", str(toolkit(tmp_path / "home")))
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.9")
    setup_py.cuda_toolkit()
    assert os.environ["TORCH_CUDA_ARCH_LIST"] == "8.9"


@pytest.mark.parametrize(
    ("platform", "compiler", "reason"),
    [
        ("linux", "/nowhere/c++", r"no C\+\+17 compiler was found \(set CXX\)"),
        ("darwin", "false", r"no C\+\+17 compiler was found \(set CXX\)"),  # a c++ that asks to install Apple's tools
        ("win32", "g++", "the kernels are for Linux and macOS"),
    ],
)
def test_where_nothing_can_be_compiled_one_line_gives_the_reason(
    setup_py, monkeypatch, capsys, platform, compiler, reason
):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setenv("CXX", compiler)
    assert setup_py.build_options() == {}
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(f"sftn_fast: {reason}: installing pure Python, the ops run on their reference", line)


def test_a_compiler_goes_without_the_flags_that_it_lacks(setup_py, monkeypatch):
    needs_compiler(setup_py)
    monkeypatch.setattr(setup_py, "FASTER_FLAGS", ["-fno-math-errno", "-fno-such-flag"])
    flags = setup_py.cxx_flags()
    assert "-fno-math-errno" in flags and "-fno-such-flag" not in flags


def test_x86_compiles_what_other_machines_run(setup_py, monkeypatch, tmp_path):
    """The switch, on the file with most instructions of its own; other machines take the same branches."""
    needs_compiler(setup_py)
    monkeypatch.setenv("SFTN_PORTABLE", "1")
    flags = [flag.replace("-O3", "-O1") for flag in setup_py.cxx_flags()]
    include = Path(torch.__file__).parent / "include"
    out = tmp_path / "half.s"
    command = [*os.environ.get("CXX", "c++").split(), *flags, "-isystem", str(include), "-S", "-o", str(out)]
    subprocess.run([*command, "csrc/cpu/half.cpp"], cwd=ROOT, check=True)
    assembly = out.read_text()
    assert "narrow" in assembly and not re.search("[yz]mm|vcvt|resolver", assembly)
    monkeypatch.setenv("SFTN_PORTABLE", "yes")
    with pytest.raises(SystemExit, match="SFTN_PORTABLE must be 0, 1 or unset, got 'yes'"):
        setup_py.cxx_flags()


@pytest.mark.parametrize(
    ("command", "wanted", "levels"),
    [
        (["editable_wheel"], "", {"avx2"}),
        (["build_ext", "--inplace"], "", {"avx2"}),
        (["bdist_wheel"], "", {"default", "avx2", "avx512"}),
        (["build_ext", "--build-lib", "x"], "", {"default", "avx2", "avx512"}),
        (["editable_wheel"], "all", {"default", "avx2", "avx512"}),
        (["editable_wheel"], "avx512", {"avx512"}),
        (["bdist_wheel"], "default,avx2", {"default", "avx2"}),
    ],
)
def test_a_build_for_this_machine_has_its_level_alone(setup_py, monkeypatch, capsys, command, wanted, levels):
    monkeypatch.setattr(setup_py, "machine_level", lambda: "avx2")
    monkeypatch.setattr(sys, "argv", ["setup.py", *command])
    monkeypatch.setenv("SFTN_CPU_LEVELS", wanted)
    assert setup_py.cpu_levels() == levels
    said = capsys.readouterr().err
    assert ("SFTN_CPU_LEVELS=all builds all levels" in said) == (levels == {"avx2"})
    flag = f"-DSFTN_BUILT_LEVELS={sum({'default': 1, 'avx2': 2, 'avx512': 4}[level] for level in levels)}"
    assert flag in setup_py.cxx_flags()


def test_where_the_level_can_not_be_found_out_all_are_built(setup_py, monkeypatch):
    monkeypatch.setenv("CXX", "/nowhere/c++")
    assert setup_py.machine_level() is None
    assert setup_py.cpu_levels() == set(setup_py.CPU_LEVELS) == set(_capability.LEVELS)


@pytest.mark.skipif(not _capability.of_machine(), reason="no library to compare with")
def test_the_machine_is_asked_for_its_level(setup_py):
    needs_compiler(setup_py)
    assert setup_py.machine_level() == _capability.of_machine()[-1]


@pytest.mark.parametrize("wanted", ["avx", "default,", "all,avx2", "AVX2"])
def test_unknown_levels_are_refused_in_one_line(setup_py, monkeypatch, wanted):
    monkeypatch.setenv("SFTN_CPU_LEVELS", wanted)
    allowed = "all, unset, or a list of default, avx2, avx512 with commas between"
    with pytest.raises(SystemExit, match=f"^sftn_fast: SFTN_CPU_LEVELS must be {allowed}, got '{wanted}'$"):
        setup_py.cpu_levels()


def test_one_build_waits_for_another(setup_py, tmp_path):
    with setup_py.alone(tmp_path), (tmp_path / "lock").open() as lock, pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with (tmp_path / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def needs_compiler(setup_py):
    if setup_py.missing_compiler():
        pytest.skip(setup_py.missing_compiler())


def test_without_a_compiler_the_package_is_pure_python(tmp_path):
    command = [
        sys.executable,
        "setup.py",
        "-q",
        "build",
        "--build-base",
        str(tmp_path),
        "--build-lib",
        str(tmp_path / "lib"),
    ]
    environment = {**os.environ, "CXX": "/nowhere/c++"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert "no C++17 compiler was found" in result.stderr
    built = tmp_path / "lib" / "sftn_fast"
    assert (built / "ops" / "reference" / "logits.py").exists()
    assert not list(built.rglob("*.so"))


def test_a_header_is_precompiled_once_for_the_same_flags_and_text(setup_py, tmp_path, monkeypatch):
    needs_compiler(setup_py)
    monkeypatch.setattr(setup_py, "ROOT", tmp_path / "clone")
    text = tmp_path / "clone" / setup_py.PRECOMPILED
    text.parent.mkdir(parents=True)
    text.write_text("#pragma once\nstruct Known {};\n")
    first = setup_py.precompiled(["-O1"], tmp_path)
    source = tmp_path / "source.cpp"
    source.write_text("Known known;\n")
    subprocess.run(
        [*shlex.split(os.environ.get("CXX", "c++")), "-O1", *first, "-fsyntax-only", str(source)], check=True
    )
    assert not setup_py.compiles("-O1", "-fno-exceptions", *first, "-Winvalid-pch"), (
        "precompiled for other flags, it is not read"
    )

    (header,) = tmp_path.glob("precompiled-*/tensor.h.gch")
    written = header.stat().st_mtime_ns
    assert setup_py.precompiled(["-O1"], tmp_path) == first and header.stat().st_mtime_ns == written
    text.write_text("#pragma once\nstruct Other {};\n")
    assert setup_py.precompiled(["-O1"], tmp_path) != first and not header.exists()
    assert setup_py.precompiled(["-O2"], tmp_path) != setup_py.precompiled(["-O1"], tmp_path)
    assert len([*tmp_path.glob("precompiled-*")]) == 1


def test_without_a_precompiled_header_the_sources_read_the_text(setup_py, tmp_path, monkeypatch):
    monkeypatch.setattr(setup_py, "ROOT", tmp_path / "clone")
    text = tmp_path / "clone" / setup_py.PRECOMPILED
    text.parent.mkdir(parents=True)
    text.write_text("wrong\n")
    assert setup_py.precompiled([], tmp_path) == []


def test_the_precompiled_header_needs_no_other_of_ours():
    """ninja doesn't look at what is behind it: its own text and the version of torch are all that is compared."""
    includes = re.findall(r"^#include (.)", (ROOT / "csrc" / "tensor.h").read_text(), re.MULTILINE)
    assert set(includes) == {"<"} and len(includes) > 5


def test_the_nodes_are_named_as_the_package_looks_for_them(setup_py, tmp_path, monkeypatch):
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(setup_py.sysconfig, "get_path", lambda name: str(tmp_path))
    nodes = setup_py.nodes_extension([])
    assert nodes.name == f"sftn_fast.{_nodes.NAME}" and nodes.sources == ["csrc/autograd/module.cpp"]
    assert nodes.optional
    monkeypatch.setenv("SFTN_NODES", "1")
    assert not setup_py.nodes_extension([]).optional


@pytest.mark.parametrize("command", ["bdist_wheel", "egg_info"])
def test_no_wheel_has_nodes(setup_py, command, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["setup.py", command])
    assert setup_py.nodes_extension([]) is None


def test_nodes_need_the_headers_of_python(setup_py, monkeypatch, capsys):
    assert setup_py.nodes_extension([]) is None
    assert "there is no /nowhere/Python.h" in capsys.readouterr().err
    monkeypatch.setenv("SFTN_NODES", "1")
    with pytest.raises(SystemExit, match=r"Python\.h"):
        setup_py.nodes_extension([])
    monkeypatch.setenv("SFTN_NODES", "0")
    assert setup_py.nodes_extension([]) is None
    monkeypatch.setenv("SFTN_NODES", "yes")
    with pytest.raises(SystemExit, match="SFTN_NODES must be 0, 1 or unset"):
        setup_py.nodes_extension([])


def test_nodes_that_are_asked_for_need_a_compiler(setup_py, monkeypatch):
    monkeypatch.setattr(setup_py, "missing_compiler", lambda: "no C++17 compiler was found")
    assert setup_py.build_options() == {}
    monkeypatch.setenv("SFTN_NODES", "1")
    with pytest.raises(SystemExit, match="no C\\+\\+17 compiler"):
        setup_py.build_options()
    monkeypatch.setenv("SFTN_NODES", "all")
    with pytest.raises(SystemExit, match="must be 0, 1 or unset"):
        setup_py.build_options()


def test_nodes_that_fail_to_compile_fail_nothing(tmp_path):
    """The installation goes on in one line; where they are asked for, it ends."""
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "sftn_fast/__init__.py", "csrc/tensor.h"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "csrc" / "library.cpp").write_text("int nothing;")
    (tmp_path / "csrc" / "autograd").mkdir()
    (tmp_path / "csrc" / "autograd" / "module.cpp").write_text("#error of this compiler")
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    old = tmp_path / "sftn_fast" / f"{_nodes.NAME}.so"
    for wanted in ("", "0", "1"):
        old.write_text("of an earlier build")
        env = {**os.environ, "SFTN_CUDA": "0", "SFTN_CPU_LEVELS": "default", "SFTN_NODES": wanted}
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert (done.returncode != 0) == (wanted == "1"), done.stderr
        assert ("the autograd nodes can't be built" in done.stderr) == (not wanted)
        assert (tmp_path / "sftn_fast" / "_C.so").exists() and (old.exists() == (wanted == "1"))
