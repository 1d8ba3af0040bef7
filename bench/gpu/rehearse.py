"""Rehearse a session on a machine without a GPU: `python -m bench.gpu.rehearse FOLDER [--python PYTHON]`.

Makes an environment like the lent machine's, without the packages that it lacks. Unpacks what would travel, and nothing
else, into an empty folder. Runs the session there with --device cpu, reads its archive back, and fails if a part does,
if the time limit is not held or if a record is missing. Needs `python -m bench.gpu.pack` before.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from bench.gpu import pack
from bench.gpu.installed import NAMES
from bench.gpu.libraries import CARRIED
from bench.gpu.part import ROOT
from bench.gpu.plan import PLANS

PACKAGES = (
    *("torch==2.11.0", "torchvision==0.26.0", "numpy", "scipy", "PyYAML", "safetensors", "matplotlib", "pillow"),
    *("scikit-learn", "jinja2", "tqdm", "setuptools", "ninja"),
    *("pytest", "pytest-xdist", "pytest-timeout", "pytest-benchmark"),
)
"""What the lent machine has of the packages that this project uses. It has neither shtab nor DALI."""
GRACE = 30.0
"""Seconds for the start and the end of a session, beside its parts."""


def environment(folder: Path, python: str) -> Path:
    """Make a virtual environment, or reuse it, and return its Python."""
    executable = folder / "bin" / "python"
    if not executable.exists():
        subprocess.run([python, "-m", "venv", str(folder)], check=True)
    subprocess.run([str(executable), "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    return executable


def unpack(target: Path) -> float:
    """Copy what travels into an empty folder and return its size in MiB."""
    shutil.rmtree(target, ignore_errors=True)
    carried = [path for path in sorted(CARRIED.rglob("*")) if path.is_file()]
    if not carried:
        sys.exit(f"{CARRIED}: nothing is packed; run python -m bench.gpu.pack first")
    for path in (*pack.travelling(), *carried):
        copy = target / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)
    return pack.megabytes([*carried, *pack.travelling()])


def libraries_load(python: Path, checkout: Path) -> bool:
    """Return whether both carried libraries load in the environment, the CUDA kernels without a GPU too."""
    carried = checkout / CARRIED.relative_to(ROOT)
    load = "import sys, torch; print(torch.__version__); [torch.ops.load_library(path) for path in sys.argv[1:]]"
    command = [str(python), "-c", load, *(str(carried / name) for name in NAMES)]
    return subprocess.run(command, check=False).returncode == 0


def session(python: Path, checkout: Path, output: Path, *options: str) -> tuple[int, float]:
    """Run a session in the checkout, with nothing of this process's environment but the shell's, and time it."""
    kept = {name: os.environ[name] for name in ("HOME", "PATH", "LANG", "TMPDIR") if name in os.environ}
    command = [str(python), "-m", "bench.gpu", str(output), "--device", "cpu", *options]
    start = time.monotonic()
    done = subprocess.run(command, cwd=checkout, env=kept, check=False)
    return done.returncode, time.monotonic() - start


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.rehearse", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder for the environment, the checkout and the archives")
    parser.add_argument("--python", default="python3.12", help="interpreter of the environment (default: python3.12)")
    parser.add_argument(
        "--minutes", type=float, help="time of each run, for a machine that others use (default: as there)"
    )
    parser.add_argument("--parts", nargs="+", default=[], metavar="PART", help="parts of the runs (default: all)")
    args = parser.parse_args()
    if shutil.which(args.python) is None:
        parser.error(f"--python {args.python} is not installed; name another interpreter")
    folder = args.folder.resolve()
    python = environment(folder / "environment", args.python)
    checkout, output, results = (folder / name for name in ("checkout", "output", "results"))
    for used in (output, results):
        shutil.rmtree(used, ignore_errors=True)
    print(f"{unpack(checkout):.1f} MiB travel", flush=True)
    faults = [] if libraries_load(python, checkout) else ["the carried libraries do not load"]
    for run, plan in PLANS.items():
        minutes = args.minutes or plan.minutes
        options = ["--minutes", str(minutes), *(["--parts", *args.parts] if args.parts else [])]
        code, seconds = session(python, checkout, output, *(["--second"] if run == "second" else []), *options)
        print(f"{run} run: exit code {code}, {seconds:.0f} s", flush=True)
        if code:
            faults.append(f"the {run} run failed with exit code {code}")
        if seconds > 60 * minutes + GRACE:
            faults.append(f"the {run} run took {seconds:.0f} s of {60 * minutes:.0f}")
        command = [sys.executable, "-m", "bench.gpu.read", str(output / f"{run}.tar.gz"), "--results", str(results)]
        if subprocess.run(command, cwd=ROOT, check=False).returncode:
            faults.append(f"the archive of the {run} run was not read back")
    if sorted(path.name for path in output.iterdir()) != sorted(f"{run}.tar.gz" for run in PLANS):
        faults.append(f"there is more than one archive for each run in {output}")
    print(*sorted(path.name for path in results.glob("*")))
    print(*faults or ["the rehearsal succeeded"], sep="\n")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
