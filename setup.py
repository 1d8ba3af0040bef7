"""Builds libraries beside the package, two on LibTorch's stable ABI: one wheel for every Python from 3.10.

sftn_fast/_C        schemas and CPU kernels. Needs a C++17 compiler as g++ or clang; without one, and on Windows, the
                    package is pure Python.
sftn_fast/_C_cuda   CUDA kernels. Needs a CUDA build of torch and an nvcc, but no GPU.
sftn_fast/_nodes_*  autograd nodes, for less time in Python. Needs Python's headers. For one version of Python and of
                    torch, so it is built in place and for editable installs only, and nothing fails without it.
                    SFTN_NODES=1 makes a failure an error, SFTN_NODES=0 builds none.

CUDA kernels are built for what the machine needs: none without a GPU, its own architecture with one, all of
ARCHITECTURES for a wheel. SFTN_CUDA=1 builds all in any case and makes a missing nvcc an error, SFTN_CUDA=0 builds
none. CPU kernels likewise: in place for this machine's highest level of vector instructions, otherwise for all levels;
SFTN_CPU_LEVELS=all, or a list such as default,avx2, chooses them. SFTN_PORTABLE=1 compiles the CPU kernels on x86
as for other machines, to test them. CUDA_HOME, CXX and TORCH_CUDA_ARCH_LIST have their usual meaning. Build in place
with `python setup.py build_ext --inplace`.

With pip's --no-build-isolation the environment must have torch and setuptools 77 or newer; ninja makes it faster, and
wheel is not needed.
"""

import contextlib
import hashlib
import os
import platform as platform_module
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel

try:
    import torch
except ImportError as error:
    raise SystemExit(
        f"sftn_fast: building needs torch, which can't be imported ({error}): pip install torch setuptools ninja "
        "first, or leave --no-build-isolation out"
    ) from error

ROOT = Path(__file__).resolve().parent
HEADERS = ("csrc/**/*.h", "csrc/**/*.cuh")
PRECOMPILED = "csrc/tensor.h"  # with torch's headers behind it, which take a third of most files' time
COMMON = ["-O3", "-std=c++17", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
# Not -ffast-math: it folds the exponential's rounding away and takes NaN and infinity for impossible.
CXX_FLAGS = [*COMMON, "-fvisibility=hidden", "-g0"]
# They make loops faster and change no result, so a compiler that lacks one goes without.
FASTER_FLAGS = ["-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math"]
NVCC_FLAGS = [*COMMON, "-DUSE_CUDA", "-Xcompiler=-fvisibility=hidden"]

CPU_LEVELS = ("default", "avx2", "avx512")  # in the order of csrc/cpu/machine_level.h

# Of a wheel: A100, H100 and H200, B200, and RTX 50 with what comes after it.
ARCHITECTURES = "8.0 9.0 10.0 12.0+PTX"

# glibc 2.X, and the newest symbols of libstdc++ in the distributions that have it, as the manylinux policies say.
LIBSTDCXX = {17: 19, 24: 22, 26: 24, 27: 24, 28: 24, 31: 28, 34: 29, 35: 30, 39: 33}


def say(line: str) -> None:
    print(f"sftn_fast: {line}", file=sys.stderr)


def compiles(*flags: str) -> bool:
    """Return whether the C++ compiler works with ``flags``. On macOS a c++ without Apple's tools exists and fails."""
    command = [*shlex.split(os.environ.get("CXX", "c++")), "-Werror", *flags, "-fsyntax-only", "-x", "c++", os.devnull]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def missing_compiler() -> str | None:
    """Return the reason why no library can be compiled, or None."""
    if sys.platform == "win32":
        return "the kernels are for Linux and macOS"
    return None if compiles("-std=c++17") else "no C++17 compiler was found (set CXX)"


def machine_level() -> str | None:
    """Return this machine's level of vector instructions, None if a program that tells it can't be made or run."""
    source = b'#include "machine_level.h"\nint main() { return sftn::machine_level(); }\n'
    compiler = [*shlex.split(os.environ.get("CXX", "c++")), f"-I{ROOT / 'csrc' / 'cpu'}", "-x", "c++", "-", "-o"]
    with tempfile.TemporaryDirectory() as folder:
        program = str(Path(folder) / "level")
        try:
            subprocess.run([*compiler, program], input=source, capture_output=True, check=True)
            return CPU_LEVELS[subprocess.run([program], check=False).returncode]
        except (OSError, subprocess.CalledProcessError, IndexError):
            return None


def builds_in_place() -> bool:
    """Return whether what is built is for this machine: in place or for an editable install."""
    return bool({"editable_wheel", "--inplace", "-i"} & set(sys.argv))


def cpu_levels() -> set[str]:
    """Return the levels of vector instructions to compile the CPU kernels for."""
    wanted = os.environ.get("SFTN_CPU_LEVELS", "")
    if wanted and wanted != "all":
        levels = set(wanted.split(","))
        if not levels <= set(CPU_LEVELS):
            allowed = f"all, unset, or a list of {', '.join(CPU_LEVELS)} with commas between"
            raise SystemExit(f"sftn_fast: SFTN_CPU_LEVELS must be {allowed}, got {wanted!r}")
        return levels
    own = machine_level() if builds_in_place() and not wanted else None
    if own:
        say(f"CPU kernels for this machine's vector instructions alone, {own} (SFTN_CPU_LEVELS=all builds all levels)")
    return {own} if own else set(CPU_LEVELS)


def cxx_flags() -> list[str]:
    portable = os.environ.get("SFTN_PORTABLE", "")
    if portable not in ("", "0", "1"):
        raise SystemExit(f"sftn_fast: SFTN_PORTABLE must be 0, 1 or unset, got {portable!r}")
    faster = [flag for flag in FASTER_FLAGS if compiles(flag)]
    chosen = "-DSFTN_PORTABLE"
    if portable != "1":
        levels = cpu_levels()
        chosen = f"-DSFTN_BUILT_LEVELS={sum(1 << bit for bit, level in enumerate(CPU_LEVELS) if level in levels)}"
    return [*CXX_FLAGS, *faster, chosen, *without_paths()]


def asked_toolkit(nvcc: str) -> Path | None:
    """The toolkit an nvcc belongs to, from itself: the one on PATH may be a script far from its headers."""
    command = [nvcc, "--dryrun", "-x", "cu", "-c", os.devnull]
    dryrun = subprocess.run(command, capture_output=True, text=True, check=False)
    top = re.search(r"^#\$ TOP=(.+)$", dryrun.stderr, re.MULTILINE)
    return Path(top[1].strip()).resolve() if top else None


def find_toolkit() -> Path | None:
    """The folder of bin/nvcc and include/: CUDA_HOME, else what nvcc on PATH says, else PyPI's nvidia-cuda-nvcc."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = shutil.which("nvcc")
    candidates = [Path(home) if home else None, asked_toolkit(nvcc) if nvcc else None]
    candidates += [nvcc.parent.parent for nvcc in Path(sysconfig.get_path("purelib")).glob("nvidia/*/bin/nvcc")]
    usable = (top for top in candidates if top and (top / "bin" / "nvcc").exists())
    return next((top for top in usable if (top / "include" / "cuda_runtime.h").exists()), None)


def architectures(wanted: str) -> str | None:
    """Return the architectures to build CUDA kernels for, as TORCH_CUDA_ARCH_LIST spells them; None for no kernels.

    ``wanted`` is the value of SFTN_CUDA.
    """
    if wanted == "0":
        return None
    if wanted == "1" or "bdist_wheel" in sys.argv:
        return ARCHITECTURES
    if not torch.cuda.is_available():
        return None
    own = {torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())}
    return " ".join(f"{major}.{minor}" for major, minor in sorted(own))


def cuda_toolkit() -> Path | None:
    """Return the toolkit to build CUDA kernels with, None to build none. Sets TORCH_CUDA_ARCH_LIST."""
    wanted = os.environ.get("SFTN_CUDA", "")
    if wanted not in ("", "0", "1"):
        raise SystemExit(f"sftn_fast: SFTN_CUDA must be 0, 1 or unset, got {wanted!r}")
    needed = architectures(wanted)
    if needed is None:
        if wanted != "0":
            say("no GPU was found: building the CPU library only (SFTN_CUDA=1 builds the CUDA kernels too)")
        return None
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", needed)
    toolkit = find_toolkit() if torch.version.cuda else None
    if toolkit is None:
        missing = "no nvcc with its headers was found" if torch.version.cuda else "this torch was built without CUDA"
        if wanted == "1":
            raise SystemExit(f"sftn_fast: SFTN_CUDA=1, but {missing}; set CUDA_HOME to a toolkit, or unset SFTN_CUDA")
        say(f"{missing}: building the CPU library only")
    return toolkit


def sources(*patterns: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern))


def without_paths() -> list[str]:
    """Compiler options that leave this machine's folders out of the messages in a library."""
    include = Path(torch.__file__).resolve().parent / "include"
    return [f"-ffile-prefix-map={folder}{os.sep}={name}" for folder, name in ((ROOT, ""), (include, "torch/"))]


def manylinux(libraries: Iterable[bytes], platform: str) -> str:
    """The tag of a wheel with ``libraries``, given as what is in them: the oldest Linux that has their symbols.

    ``platform`` as it is where there is no such tag, as on other systems. torch's own libraries are not looked at: they
    come with torch.
    """
    if not platform.startswith("linux_") or platform_module.libc_ver()[0] != "glibc":
        return platform
    contents = list(libraries)
    glibc, libstdcxx = (
        max((int(found[1]) for content in contents for found in re.finditer(pattern, content)), default=0)
        for pattern in (rb"GLIBC_2\.(\d+)", rb"GLIBCXX_3\.4\.(\d+)")
    )
    fitting = [minor for minor, newest in LIBSTDCXX.items() if minor >= glibc and newest >= libstdcxx]
    return f"many{platform.replace('linux_', f'linux_2_{min(fitting)}_', 1)}" if contents and fitting else platform


def precompiled(flags: list[str], folder: Path) -> list[str]:
    """Return the flags to compile with PRECOMPILED already read, none if the compiler can't. Keeps it in ``folder``.

    It has another path for other flags, another torch or another text, so whatever was compiled with it is compiled
    again then.
    """
    text = (ROOT / PRECOMPILED).read_bytes()
    digest = hashlib.sha256(repr((flags, torch.__version__)).encode() + text).hexdigest()[:16]
    header = folder / f"precompiled-{digest}" / "tensor.h"
    use = ["-include", str(header.resolve())]
    check = [*flags, *use, "-Winvalid-pch"]
    if header.exists() and compiles(*check):
        return use
    for other in folder.glob("precompiled-*"):
        shutil.rmtree(other)
    header.parent.mkdir(parents=True)
    header.write_text(f'#include "{ROOT / PRECOMPILED}"\n')
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    command = [*compiler, *flags, "-x", "c++-header", str(header), "-o", f"{header}.gch"]
    done = subprocess.run(command, capture_output=True, check=False)
    return use if done.returncode == 0 and compiles(*check) else []


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Wait until no other build uses ``folder``: `make` compiles while pip, which builds too, downloads packages."""
    import fcntl  # not on Windows, where nothing is compiled

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class TaggedWheel(bdist_wheel):
    """setuptools' own command, with the tag of what the libraries need."""

    def get_tag(self) -> tuple[str, str, str]:
        python, abi, platform = super().get_tag()
        built = Path(self.get_finalized_command("build_ext").build_lib).glob("sftn_fast/*.so")
        return python, abi, manylinux((library.read_bytes() for library in sorted(built)), platform)


def cuda_extension(toolkit: Path, cxx: list[str]) -> Extension:
    os.environ["CUDA_HOME"] = str(toolkit)  # read when torch.utils.cpp_extension is imported
    from torch.utils.cpp_extension import CUDAExtension

    extension = CUDAExtension(
        "sftn_fast._C_cuda",
        sources("csrc/cuda/*.cu"),
        depends=sources(*HEADERS),
        extra_compile_args={
            "cxx": cxx,
            "nvcc": NVCC_FLAGS + [f"-Xcompiler={flag}" for flag in without_paths()],
        },
        py_limited_api=True,
    )
    runtimes = sorted((toolkit / "lib").glob("libcudart.so*"))
    if runtimes and runtimes[0].suffix != ".so":  # PyPI's wheels have libcudart.so.13 without its link name
        extension.libraries = [f":{runtimes[0].name}" if name == "cudart" else name for name in extension.libraries]
    return extension


def nodes_name() -> str:
    """Return the name of the library of autograd nodes, as sftn_fast/ops/_nodes.py has it."""
    version = re.sub(r"\W", "_", torch.__version__)
    return "_nodes_cp{}{}{}_torch{}".format(*sys.version_info[:2], sys.abiflags, version)


def wanted_nodes() -> str:
    wanted = os.environ.get("SFTN_NODES", "")
    if wanted not in ("", "0", "1"):
        raise SystemExit(f"sftn_fast: SFTN_NODES must be 0, 1 or unset, got {wanted!r}")
    return wanted


def remove_nodes() -> None:
    """Remove the nodes of an earlier build, which may be of other sources."""
    (ROOT / "sftn_fast" / f"{nodes_name()}.so").unlink(missing_ok=True)


def nodes_extension(flags: list[str]) -> Extension | None:
    """The library of autograd nodes, None where it is not for: wheels, and machines without Python's headers."""
    wanted = wanted_nodes()
    if wanted == "0" or not (wanted or builds_in_place()):
        return None
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    if not headers.exists():
        if wanted:
            raise SystemExit(f"sftn_fast: SFTN_NODES=1, but Python's headers are not there: no {headers}")
        say(f"there is no {headers}: building without autograd nodes, small losses take more time in Python")
        return None
    from torch.utils.cpp_extension import CppExtension

    return CppExtension(
        f"sftn_fast.{nodes_name()}",
        sources("csrc/autograd/*.cpp"),
        depends=sources(*HEADERS),
        extra_compile_args={"cxx": flags},
        optional=not wanted,
    )


def build_options() -> dict:
    """The part of setup()'s arguments that depends on the machine."""
    missing = missing_compiler()
    if missing and wanted_nodes() == "1":
        raise SystemExit(f"sftn_fast: SFTN_NODES=1, but {missing}")
    if missing:
        say(f"{missing}: installing pure Python, the ops run on their reference")
        return {}
    toolkit = cuda_toolkit()
    cxx = cxx_flags()
    extensions = [cuda_extension(toolkit, cxx)] if toolkit else []
    from torch.utils.cpp_extension import BuildExtension, CppExtension

    class Build(BuildExtension.with_options(no_python_abi_suffix=True)):
        """Keeps the objects of in-place and editable builds, so that the next build compiles what changed."""

        def finalize_options(self) -> None:
            super().finalize_options()
            if self.editable_mode or self.inplace:  # pip would compile everything in a new folder
                self.build_temp = str(Path("build") / f"objects-{sysconfig.get_platform()}")

        def run(self) -> None:
            with alone(Path(self.build_temp)):
                if nodes is None and builds_in_place():
                    remove_nodes()
                super().run()

        def build_extension(self, extension: Extension) -> None:
            if extension is cpu:
                own, include = extension.extra_compile_args["cxx"], [f"-I{path}" for path in extension.include_dirs]
                own += precompiled([*self.compiler.compiler_so[1:], *include, *own], Path(self.build_temp))
            try:
                super().build_extension(extension)
            except Exception as error:
                if not extension.optional:
                    raise
                remove_nodes()
                reason = str(error).partition("\n")[0]
                say(f"the autograd nodes can't be built, small losses take more time in Python: {reason}")

    cpu = CppExtension(
        "sftn_fast._C",
        sources("csrc/*.cpp", "csrc/cpu/*.cpp"),
        depends=sources(*HEADERS),
        extra_compile_args={"cxx": cxx},
        py_limited_api=True,
    )
    nodes = nodes_extension(["-O2", "-fvisibility=hidden", "-g0", *without_paths()])
    return {
        "ext_modules": [*([nodes] if nodes else []), cpu, *extensions],
        "cmdclass": {
            "build_ext": Build,
            "bdist_wheel": TaggedWheel,
        },
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }


if __name__ == "__main__":
    setup(**build_options())
