"""The compiled libraries on the lent machine: those that were carried, or a build on the spot.

`python -m bench.gpu.libraries --about FILE [--carried FOLDER | --build] [--device cpu]` ends with exit code 0 if the
kernels run, and writes the machine's conditions to FILE.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

from bench.gpu.installed import NAMES, Installed, checksum
from bench.gpu.part import ROOT
from sftn_fast.utils.atomic import write_atomically

CARRIED = ROOT / "build" / "gpu"
"""What `python -m bench.gpu.pack` makes and the session looks for."""
DESCRIPTION = "packed.json"
PACKAGE = ROOT / "sftn_fast"
SOURCES = ("setup.py", "csrc/**/*.h", "csrc/**/*.cuh", "csrc/**/*.cpp", "csrc/**/*.cu")

TRY = """
import sys, torch
from sftn_fast import ops
from sftn_fast.ops import _library, reference
device = sys.argv[1]
library = _library.CUDA if device == "cuda" else _library.CPU
if not library.loaded:
    sys.exit(library.error)
with ops.backend("fused"):
    logits = torch.linspace(-3, 3, 128, device=device).view(2, 4, 16)
    ours = ops.kd_loss(logits[0], logits[1], 4.0)
torch.testing.assert_close(ours, reference.kd_loss(logits[0], logits[1], 4.0))
print(f"{library.path.name} loaded, its kernels run")
"""
"""A program that fails if the kernels of a device can't be loaded or run, in a process that may die of it."""


def digest(root: Path = ROOT) -> str:
    """Return a checksum of everything that the libraries are built from."""
    files = sorted({path for pattern in SOURCES for path in root.glob(pattern)})
    content = hashlib.sha256()
    for path in files:
        content.update(f"{path.relative_to(root)}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return content.hexdigest()


def architecture() -> str:
    """Return the compute capability of the installed GPU in the form of TORCH_CUDA_ARCH_LIST."""
    import torch

    return ".".join(map(str, torch.cuda.get_device_capability()))


def covers(architectures: str, gpu: str) -> bool:
    """Return whether kernels for ``architectures``, as TORCH_CUDA_ARCH_LIST has them, run on a GPU of ``gpu``.

    Machine code runs on later minor versions of its major version, and PTX (``+PTX``) on everything later.
    """
    wanted = _version(gpu)
    for name in re.split(r"[ ;,]+", architectures.strip()):
        built = _version(name)
        if built <= wanted and (name.endswith("+PTX") or built[0] == wanted[0]):
            return True
    return False


def _version(name: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", name)) or (sys.maxsize,)


def install(
    carried: Path, device: str, package: Path = PACKAGE, sources: str | None = None, gpu: str | None = None
) -> str | None:
    """Copy carried libraries to where the package has none. Return the reason why they can't be used, else None.

    What an earlier session put there makes room, if it is of other sources or other than what is carried now.

    Args:
        carried: Folder that ``bench.gpu.pack`` made.
        device: "cuda", or "cpu" for which the CPU kernels suffice.
        package: Folder of the package.
        sources: Digest of the sources (default: of these).
        gpu: Compute capability of the GPU, None for one that does not matter.
    """
    sources, put = sources or digest(), Installed(package)
    if put.sources != sources:
        put.remove()
    try:
        packed = json.loads((carried / DESCRIPTION).read_text())
        made_of, built_for, date = packed["sources"], str(packed["architecture"]), packed["date"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"no libraries were carried: {error}"
    if made_of != sources:
        return f"the carried libraries of {date} are not of these sources"
    if gpu and not covers(built_for, gpu):
        return f"the carried kernels are for compute capability {built_for}, and this GPU has {gpu}"
    names = NAMES if device == "cuda" else NAMES[:1]
    absent = [name for name in names if not (carried / name).is_file()]
    if absent:
        return f"{carried} lacks {' and '.join(absent)}"
    if any(put.files.get(name, fresh) != fresh for name in names for fresh in [checksum(carried / name)]):
        put.remove()
    added = [name for name in names if not (package / name).exists()]
    for name in added:
        shutil.copyfile(carried / name, package / name)
    if added:
        put.add(added, sources)
    return None


def works(device: str) -> str | None:
    """Return None if the kernels of ``device`` run, else the last line of what was said."""
    done = subprocess.run([sys.executable, "-c", TRY, device], cwd=ROOT, capture_output=True, text=True, check=False)
    print(done.stdout + done.stderr, flush=True)
    lines = (done.stderr or done.stdout).strip().splitlines()
    return None if done.returncode == 0 else lines[-1] if lines else f"exit code {done.returncode}"


def built(package: Path = PACKAGE) -> str | None:
    """Build the libraries in place. Return None, or the reason why there are none."""
    for name in NAMES:  # a carried one that does not load must not hide the one that is built
        (package / name).unlink(missing_ok=True)
    done = subprocess.run([sys.executable, "setup.py", "build_ext", "--inplace"], cwd=ROOT, check=False)
    if done.returncode:
        return f"the build failed with exit code {done.returncode}"
    Installed(package).add((name for name in NAMES if (package / name).exists()), digest())
    return None


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.libraries")
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--about", type=Path, required=True, help="file for the machine's conditions")
    parser.add_argument("--gpu", metavar="CAPABILITY", help="compute capability that carried kernels must be for")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--carried", type=Path, help="folder of carried libraries")
    how.add_argument("--build", action="store_true", help="build the libraries on the spot")
    args = parser.parse_args()
    reason = install(args.carried, args.device, gpu=args.gpu) if args.carried else None
    said = works(args.device)  # those in place may do, carried or not; and at first the machine may only have been slow
    if said and args.build:
        reason = built()
        said = reason or works(args.device)
    if said:
        print(*dict.fromkeys(filter(None, (reason, said))), sep="; ")
        return 1
    from bench import record  # not before the try: it starts CUDA in this process

    about = record.conditions(args.device)
    write_atomically(args.about, json.dumps(about, indent=1) + "\n")  # the session reads it meanwhile
    print(record.facts(about))
    return 0


if __name__ == "__main__":
    sys.exit(main())
