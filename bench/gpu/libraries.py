"""The compiled libraries on the lent machine: those that were carried, or a build on the spot.

`python -m bench.gpu.libraries --about FILE [--carried FOLDER | --build] [--device cpu]` ends with exit code 0 if the
kernels run, and writes the machine's conditions to FILE.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

from bench.gpu.part import ROOT

CARRIED = ROOT / "build" / "gpu"
"""What `python -m bench.gpu.pack` makes and the session looks for."""
DESCRIPTION = "packed.json"
NAMES = ("_C.so", "_C_cuda.so")
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


def install(carried: Path, device: str, package: Path = PACKAGE, sources: str | None = None) -> str | None:
    """Copy carried libraries to where the package has none. Return the reason why they can't be used, else None."""
    try:
        packed = json.loads((carried / DESCRIPTION).read_text())
    except (OSError, ValueError) as error:
        return f"no libraries were carried: {error}"
    if packed.get("sources") != (sources or digest()):
        return f"the carried libraries of {packed.get('date')} are not of these sources"
    for name in NAMES if device == "cuda" else NAMES[:1]:
        if (carried / name).exists() and not (package / name).exists():
            shutil.copyfile(carried / name, package / name)
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
    return None if done.returncode == 0 else f"the build failed with exit code {done.returncode}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.libraries")
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--about", type=Path, required=True, help="file for the machine's conditions")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--carried", type=Path, help="folder of carried libraries")
    how.add_argument("--build", action="store_true", help="build the libraries on the spot")
    args = parser.parse_args()
    reason = install(args.carried, args.device) if args.carried else built() if args.build else None
    said = works(args.device) if reason is None or args.carried else reason  # those in place may do, carried or not
    if said:
        print(*dict.fromkeys(filter(None, (reason, said))), sep="; ")
        return 1
    from bench import record  # not before the try: it starts CUDA in this process

    about = record.conditions(args.device)
    args.about.write_text(json.dumps(about, indent=1) + "\n")
    print(record.facts(about))
    return 0


if __name__ == "__main__":
    sys.exit(main())
