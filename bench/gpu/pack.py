"""Make the folder that travels to a lent GPU with the sources: `python -m bench.gpu.pack`.

It builds both libraries, the CUDA kernels for the one architecture of that machine, and downloads the wheels that it
lacks. The folder, build/gpu, is ignored by git, so it must be named when the sources are sent. Needs an nvcc, no GPU.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from bench.gpu.installed import NAMES
from bench.gpu.libraries import CARRIED, DESCRIPTION, digest
from bench.gpu.part import ROOT
from sftn_fast.utils.atomic import describe

ARCHITECTURE = "9.0"  # H100 and H200
WHEELS = ("shtab==1.13.0", "liger-kernel==0.8.5")
"""Pure Python: a dependency that the machine lacks, and another project's kernels to compare with."""
LIMIT_MB = 64
"""What travels in all, the sources included."""


def build(architecture: str, work: Path) -> Path:
    """Build both libraries outside of the package, and return the folder that they are in."""
    environment = {
        **os.environ,
        "SFTN_CUDA": "1",
        "TORCH_CUDA_ARCH_LIST": architecture,
        "NVCC_APPEND_FLAGS": "-lineinfo",  # sanitizers and profilers then name the lines
    }
    command = [sys.executable, "setup.py", "build_ext", "--build-lib", str(work / "lib")]
    subprocess.run([*command, "--build-temp", str(work / "objects")], cwd=ROOT, env=environment, check=True)
    return work / "lib" / "sftn_fast"


def download(wheels: Sequence[str], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    subprocess.run([*command, "--dest", str(folder), *wheels], check=True)


def pack(folder: Path, built: Path, architecture: str) -> None:
    """Copy the libraries of ``built`` into ``folder`` and describe what they are made of."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        shutil.copyfile(built / name, folder / name)
    description = {
        "date": datetime.date.today().isoformat(),
        "sources": digest(),
        "architecture": architecture,
        "torch": torch.__version__,
    }
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n")


def travelling() -> list[Path]:
    """Return the files that travel: the tracked and the untracked ones that git does not ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [path for name in sorted(set(listed.split("\0"))) if name and (path := ROOT / name).is_file()]


def megabytes(paths: Sequence[Path]) -> float:
    return sum(path.stat().st_size for path in paths) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.pack", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--architecture", default=ARCHITECTURE, help=f"compute capability (default: {ARCHITECTURE})")
    parser.add_argument("--built", type=Path, help="folder with both libraries, instead of a build")
    args = parser.parse_args()
    absent = [name for name in NAMES if args.built and not (args.built / name).is_file()]
    if absent:
        parser.error(f"--built {args.built} has no {' and no '.join(absent)}")
    partial = CARRIED.with_name(f"{CARRIED.name}.partial")  # what was packed before stays until all is there
    shutil.rmtree(partial, ignore_errors=True)
    try:
        sources = travelling()
        built = args.built or build(args.architecture, ROOT / "build" / "gpu-objects")
        pack(partial, built, args.architecture)
        download(WHEELS, partial / "wheels")
    except subprocess.CalledProcessError as error:
        sys.exit(f"{' '.join(map(str, error.cmd[:4]))} failed with exit code {error.returncode}, see above")
    except OSError as error:
        sys.exit(describe(error))
    shutil.rmtree(CARRIED, ignore_errors=True)
    partial.rename(CARRIED)
    carried = [path for path in CARRIED.rglob("*") if path.is_file()]
    print(*(f"{path.relative_to(ROOT)}: {megabytes([path]):.1f} MiB" for path in carried), sep="\n")
    total = megabytes([*carried, *sources])
    print(f"{total:.1f} MiB travel, the sources included")
    if total > LIMIT_MB:
        sys.exit(f"{total:.1f} MiB are more than {LIMIT_MB}: build for fewer architectures")


if __name__ == "__main__":
    main()
