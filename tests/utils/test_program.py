"""Ctrl-C at any moment of a program's start: one line and exit code 130."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sftn_fast.utils import program

ROOT = Path(program.__file__).parents[2]
PROGRAMS = {
    "train": ("torch", ["--output", "run"]),
    "transfer": ("torch", ["run/seed0/student"]),
    "report": ("yaml", ["run"]),  # imports torch only for a run that it has found
    "info": ("torch", []),
    "data.verify": ("torch", ["images"]),
}
"""Arguments of each program, and a package that it imports for them."""


@pytest.mark.parametrize("module", PROGRAMS)
def test_ctrl_c_while_a_program_imports(module: str, tmp_path: Path) -> None:
    """The package is replaced by one that is interrupted."""
    package, arguments = PROGRAMS[module]
    # A background job of a shell ignores SIGINT, and hands that down.
    handled = "signal.signal(signal.SIGINT, signal.default_int_handler)"
    (tmp_path / f"{package}.py").write_text(f"import os, signal\n{handled}\nos.kill(os.getpid(), signal.SIGINT)\n")
    (tmp_path / "images").mkdir()
    command = [sys.executable, "-m", f"sftn_fast.{module}", *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 130, done.stderr
    assert done.stderr.startswith("stopped by SIGINT") and done.stderr.count("\n") == 1


def test_the_hook_leaves_other_errors_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    program.exit_on_interrupt()
    with pytest.raises(SystemExit) as left:
        sys.excepthook(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert left.value.code == 130 and capsys.readouterr().err == "stopped by SIGINT\n"
    sys.excepthook(ValueError, ValueError("wrong"), None)
    assert capsys.readouterr().err == "ValueError: wrong\n"


def test_a_library_user_keeps_the_hook() -> None:
    code = "import sys, sftn_fast, sftn_fast.cli; assert sys.excepthook is sys.__excepthook__"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
