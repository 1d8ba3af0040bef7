"""The whole package on Linux made to look like Windows: it imports, trains on one process, and says what it lacks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import sftn_fast

TESTS = Path(__file__).parent
PROGRAM = """
import sys
sys.path[:0] = sys.argv[1:3]
import windows
import importlib, pathlib, pkgutil
import sftn_fast

assert sftn_fast.__file__.startswith(sys.argv[2])
for module in pkgutil.walk_packages(sftn_fast.__path__, "sftn_fast."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
    print("imported", module.name)

from sftn_fast import export, info, predict, report, train
small = "--data.train_size 32 --data.name digits --epochs 1 --seeds [0] --teacher resnet8 --engine.threads 1".split()
print("info", info.main([]))
for _ in range(2):  # the second time with the folder of the first
    print("train", train.main([*small, "--output", "run"]))
print("two devices", train.main([*small, "--output", "two", "--devices", "[cpu, cpu]"]))
print("report", report.main(["run"]))
print("export", export.main(["run/student", "--format", "state_dict"]))
print("predict", predict.main(["run/student", "3.png"]))
"""


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], list[str]]:
    """Lines that a pure Python copy of the package prints to output and error, on a console with few characters."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("windows")
    copy = folder / "package" / "sftn_fast"
    Path(copy.parent).mkdir()
    source = Path(sftn_fast.__file__).parent
    for path in [path for path in source.rglob("*") if path.is_file() and path.suffix not in (".so", ".pyc")]:
        target = copy / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(path)
    Image.new("L", (8, 8), 200).save(folder / "3.png")
    done = subprocess.run(
        [sys.executable, "-X", "warn_default_encoding", "-c", PROGRAM, str(TESTS), str(copy.parent)],
        cwd=folder,
        env={**os.environ, "PYTHONIOENCODING": "cp1252", "PYTHONPATH": ""},
        capture_output=True,
        encoding="cp1252",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), done.stderr.splitlines()


def test_every_module_is_imported(elsewhere: tuple[list[str], list[str]]) -> None:
    out, _ = elsewhere
    assert {"imported sftn_fast.experiment.pool", "imported sftn_fast.data.files"} <= set(out)


def test_a_run_its_report_and_its_student_work(elsewhere: tuple[list[str], list[str]]) -> None:
    out, err = elsewhere
    for verb in ("info", "train", "report", "export", "predict"):
        assert f"{verb} 0" in out, "\n".join(err)
    assert out.count("train 0") == 2
    assert any("the kernels are for Linux and macOS" in line for line in out)


def test_two_devices_are_refused_in_one_line(elsewhere: tuple[list[str], list[str]]) -> None:
    out, err = elsewhere
    assert "two devices 2" in out
    refused = "error: devices must be one device on Windows, where jobs run one after the other, got ('cpu', 'cpu')"
    assert refused in err


def test_every_text_file_names_its_encoding(elsewhere: tuple[list[str], list[str]]) -> None:
    _, err = elsewhere
    assert not [line for line in err if "EncodingWarning" in line and "sftn_fast" in line]
