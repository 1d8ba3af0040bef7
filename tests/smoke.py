"""Try an installed package without its repository: python smoke.py, in any folder. Ends with 0 if all of it works."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import sftn_fast
from sftn_fast import cli, models, ops
from sftn_fast.ops import _library

OPTIONS = "--data.name fake --data.train_size 64 --data.image_size 8 --epochs 1 --seeds [0] --teacher resnet14"


def main() -> None:
    """Check libraries, a loss, its gradient, recipes, and a small run with its report and export."""
    installed = Path(sftn_fast.__file__).resolve()
    assert "site-packages" in installed.parts, f"{installed} is not an installed package"
    assert _library.CPU.loaded, _library.CPU.error
    built = {path.name.partition(".")[0] for path in installed.parent.glob("*.so")}
    assert built == {"_C", "_C_cuda"}, built
    student = torch.randn(4, 10, requires_grad=True)
    ops.kd_loss(student, torch.randn(4, 10), 4.0).backward()
    assert student.grad is not None and student.grad.isfinite().all()
    assert cli.recipe_names()
    with tempfile.TemporaryDirectory() as folder:
        train = [sys.executable, "-m", "sftn_fast.train", *OPTIONS.split(), "--output", f"{folder}/run"]
        subprocess.run(train, check=True)
        assert "<html" in (Path(folder) / "run" / "report.html").read_text()
        logits = models.load(Path(folder) / "run" / "student")(torch.randn(2, 3, 8, 8))
        assert logits.shape[0] == 2
    print(f"sftn_fast {sftn_fast.__version__} works from {installed.parent}")


if __name__ == "__main__":
    main()
