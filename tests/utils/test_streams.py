"""Output that nobody can read any more ends no program, and costs no traceback."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sftn_fast import train
from sftn_fast.config import ConfigError
from sftn_fast.utils import program, streams

# Each line is more than a pipe or a buffer keeps back; the file says that the work was done to its end.
CHILD = """
import sys
from pathlib import Path
from sftn_fast.utils import program

def work(argv):
    for number in range(3):
        print("line", number, "x" * 70_000, flush=number == 1)
        print("warning", number, file=sys.stderr)
    print("gr\\u00f6\\u00dfe \\udcff")
    Path(argv[0]).write_text("done")
    return 0

sys.exit(program.run(work, None, output_matters={matters}, tell_of_readers={tell}))
"""


def start(done: Path, *, matters: bool = False, tell: bool = False, **streams_: object) -> subprocess.Popen[bytes]:
    code = CHILD.format(matters=matters, tell=tell)
    return subprocess.Popen([sys.executable, "-c", code, str(done)], **streams_)  # type: ignore[call-overload]


@pytest.fixture
def done(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "done"
    assert (tmp_path / "done").read_text() == "done"


@pytest.mark.parametrize("tell", [False, True])
def test_a_reader_that_leaves(done: Path, tell: bool) -> None:
    with start(done, tell=tell, matters=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stderr is not None
        child.stdout.readline()
        child.stdout.close()
        errors = child.stderr.read().decode()
    assert child.returncode == 0
    assert ("standard output can't be written to (Broken pipe): continuing without it\n" in errors) == tell
    assert "Traceback" not in errors and "Exception ignored" not in errors and errors.count("warning") == 3


@pytest.mark.parametrize(("matters", "code"), [(False, 0), (True, 1)])
def test_a_full_device(done: Path, matters: bool, code: int) -> None:
    with (
        Path("/dev/full").open("w") as full,
        start(done, matters=matters, stdout=full, stderr=subprocess.PIPE) as child,
    ):
        assert child.stderr is not None
        errors = child.stderr.read().decode()
    assert child.returncode == code
    assert errors.count("standard output can't be written to (No space left on device)") == 1
    assert "Traceback" not in errors and "Exception ignored" not in errors


@pytest.mark.parametrize(
    ("module", "argv"),
    [
        ("sftn_fast.train", ["--print_config"]),
        ("sftn_fast.train", ["--help"]),
        ("sftn_fast", ["--help"]),
        ("sftn_fast", ["--version"]),
    ],
)
def test_a_program_whose_output_is_its_only_result(module: str, argv: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        run = subprocess.run([sys.executable, "-m", module, *argv], stdout=full, stderr=subprocess.PIPE, check=False)
    assert run.returncode == 1 and run.stderr.count(b"\n") == 1


@pytest.mark.parametrize(("matters", "argv"), [(True, ["--dry-run"]), (True, ["--dry_run"]), (False, [])])
def test_the_output_of_a_dry_run_matters(matters: bool, argv: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[bool] = []
    monkeypatch.setattr(program, "run", lambda *_, output_matters, **__: given.append(output_matters) or 0)
    train.main(argv)
    assert given == [matters]


def test_standard_error_on_a_full_device(done: Path) -> None:
    with Path("/dev/full").open("w") as full, start(done, stdout=subprocess.PIPE, stderr=full) as child:
        assert child.stdout is not None
        out = child.stdout.read().decode()
    assert child.returncode == 0 and "standard error can't be written to" in out and out.count("line") == 3


@pytest.mark.parametrize("closed", ["1>&-", "2>&-", "1>&- 2>&-", "0<&-", "0<&- 1>&- 2>&-"])
def test_streams_that_are_closed_from_the_start(closed: str, done: Path) -> None:
    """What is opened next must not take their place: a file of a run would receive the text."""
    code = CHILD.format(matters=False, tell=True)
    run = subprocess.run(
        ["sh", "-c", f'exec "$0" -c "$1" "$2" {closed}', sys.executable, code, str(done)],
        capture_output=True,
        check=False,
    )
    assert run.returncode == 0
    assert b"Traceback" not in run.stdout + run.stderr
    if "1>" not in closed:
        assert run.stdout.count(b"line") == 3 and b"warning" not in run.stdout


def test_letters_that_the_encoding_has_not(done: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    with start(done, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as child:
        out, errors = child.communicate()
    assert child.returncode == 0 and b"gr\\xf6\\xdfe \\udcff" in out and b"Traceback" not in errors


def test_what_somebody_else_has_put_in_place_stays(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout, sys.stderr
    with streams.lasting():
        assert (sys.stdout, sys.stderr) == before
        print("seen")
    assert capsys.readouterr().out == "seen\n"


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ConfigError("epochs must be more"), 2, "error: epochs must be more"),
        (KeyboardInterrupt(), 130, "stopped by SIGINT; nothing is lost"),
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x"),
            1,
            "error: x: No space left on device; free some space, then run the same command again",
        ),
        (BrokenPipeError(), 1, "error: BrokenPipeError"),
    ],
)
def test_every_end_is_one_line(error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    def work(argv: list[str]) -> int:
        raise error

    assert program.run(work, [], stopped="; nothing is lost") == code
    assert capsys.readouterr().err == f"{line}\n"


PROGRAMS = """
import os, runpy, sys
full = os.open("/dev/full", os.O_WRONLY)
helps = (("transfer", "--help"), ("data.verify", "--help"), ("report", "--help"))
for module, *argv in (("train", "--print_config"), ("info",), ("__main__", "info"), *helps):
    os.dup2(full, 1)
    print(f"== {module}", file=sys.stderr, flush=True)
    sys.argv = [module, *argv]
    try:
        runpy.run_module(f"sftn_fast.{module}", run_name="__main__")
    except SystemExit as end:
        print(f"exit {end.code}", file=sys.stderr, flush=True)
"""
"""One process for all, which imports torch once."""


def test_every_program_starts_by_it() -> None:
    """With its output on a full device: a line for each program, and no traceback."""
    run = subprocess.run([sys.executable, "-c", PROGRAMS], stderr=subprocess.PIPE, text=True)
    assert run.returncode == 0, run.stderr
    parts = dict(part.split("\n", 1) for part in run.stderr.removeprefix("== ").split("== "))
    assert parts.keys() == {"train", "transfer", "info", "__main__", "data.verify", "report"}
    for said in parts.values():
        line, end = said.splitlines()
        assert "standard output can't be written to" in line and end.startswith("exit ")
    assert parts["info"].endswith("exit 1\n")  # its output is all that it is for
    assert parts["__main__"].endswith("exit 1\n")  # as `sftn info`


def test_a_console_of_windows_keeps_the_stream_that_knows_its_code_page(monkeypatch):
    """It escapes what it can't show; a pipe gets the stream that never fails."""

    class Console(io.BytesIO):
        def isatty(self):
            return True

    monkeypatch.setattr(streams.sys, "platform", "win32")
    console = Console()
    stream = streams._stream(1, io.TextIOWrapper(console, encoding="cp437", write_through=True), streams.Lasting())
    print("10 ± 1 …", file=stream)
    assert console.getvalue().decode("cp437").splitlines() == ["10 ± 1 \\u2026"]
    assert isinstance(streams._stream(1, None, streams.Lasting()).buffer.raw, streams._LastingFile)
