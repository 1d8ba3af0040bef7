"""``python -m sftn_fast.train``: exit codes, signals, kills, and what is left behind."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import programs
import pytest
from safetensors.torch import load_file

from sftn_fast import data
from sftn_fast import train as train_module
from sftn_fast.experiment import run as experiment

TINY = ["--config", "demo", "--data.name", "fake", "--data.train_size", "64", "--data.image_size", "8"]
TINY += ["--optim.batch_size", "16", "--epochs", "3", "--seeds", "[0]", "--teacher", "resnet14"]
TINY += ["--engine.checkpoint_every", "1", "--engine.log_every", "1"]


def argv(output: Path, *options: str) -> list[str]:
    return [*TINY, "--output", str(output), *options]


def train(output: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return programs.train(*argv(output, *options))


Here = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def train_here(capsys: pytest.CaptureFixture[str]) -> Here:
    """The program in this process, which has imported torch already."""

    def run(output: Path, *options: str) -> subprocess.CompletedProcess[str]:
        capsys.readouterr()
        code = train_module.main(argv(output, *options))
        return subprocess.CompletedProcess(options, code, *capsys.readouterr())

    return run


def stop(output: Path, signum: int, stage: str) -> tuple[int, str]:
    """Start the job, send it a signal as soon as ``stage`` has written its first checkpoint, wait for its end."""
    metrics = output / "seed0" / stage / "metrics.jsonl"
    with programs.Train(*argv(output)) as process:
        for _ in process.stdout:
            # Every step prints a line, so the file is looked at once a step.
            if metrics.is_file() and metrics.stat().st_size:
                process.send_signal(signum)
                break
        _, errors = process.communicate()
        assert process.returncode is not None
        return process.returncode, errors


def weights(output: Path) -> dict[str, dict[str, object]]:
    return {path.parent.name: load_file(path) for path in output.glob("seed0/*/model.safetensors")}


def losses(output: Path) -> dict[str, list[object]]:
    """Every logged loss of every stage; the figures that depend on the clock are left out."""
    timed = ("images_per_second", "data_wait", "seconds", "time", "eta")
    found = {}
    for path in output.glob("seed0/*/metrics.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        found[path.parent.name] = [
            {key: value for key, value in line.items() if not key.startswith(timed)} for line in lines
        ]
    return found


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("unbroken") / "run"
    done = train(output)
    assert done.returncode == 0, done.stderr
    return output


def assert_equal_runs(ours: Path, theirs: Path) -> None:
    first, second = weights(ours), weights(theirs)
    assert first.keys() == second.keys() and len(first) == 5
    for stage in first:
        for name, tensor in first[stage].items():
            assert (tensor == second[stage][name]).all(), f"{stage}: {name}"
    assert losses(ours) == losses(theirs)


def test_a_stopped_run_goes_on_to_the_same_end(unbroken: Path, tmp_path: Path) -> None:
    """One run, stopped in three ways in three jobs."""
    output = tmp_path / "run"
    stops = [(signal.SIGTERM, "teacher", 143), (signal.SIGINT, "sftn", 130), (signal.SIGKILL, "distill-teacher", -9)]
    for signum, stage, code in stops:
        returncode, errors = stop(output, signum, stage)
        assert returncode == code, errors
        assert "Traceback" not in errors
        assert not (output / "seed0" / stage / "result.json").is_file(), "stopped too late to test anything"
    done = train(output)
    assert done.returncode == 0, done.stderr
    assert_equal_runs(output, unbroken)


def test_ctrl_c_where_nothing_is_trained_is_one_line_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(data, "build", lambda *args, **options: os.kill(os.getpid(), signal.SIGINT))
    former = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        assert train_module.main([*TINY, "--output", str(tmp_path / "run")]) == 130
    finally:
        signal.signal(signal.SIGINT, former)
    assert capsys.readouterr().err == "stopped by SIGINT; run the same command to resume\n"


def test_the_report_closes_the_run(unbroken: Path, train_here: Here) -> None:
    done = train_here(unbroken)
    assert done.returncode == 0
    assert "student of SFTN teacher" in done.stdout and "exported student" in done.stdout


def test_another_configuration_is_exit_code_2_and_one_line(unbroken: Path, train_here: Here) -> None:
    done = train_here(unbroken, "--optim.weight_decay", "0.1")
    assert done.returncode == 2
    assert "weight_decay" in done.stderr and done.stderr.count("\n") == 1


class Payload:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def test_a_pickle_as_teacher_never_runs(tmp_path: Path, train_here: Here) -> None:
    marker, file = tmp_path / "ran", tmp_path / "teacher.pth"
    file.write_bytes(pickle.dumps(Payload(marker)))
    done = train_here(tmp_path / "run", "--teacher_file", str(file), "--stages", "[distill]")
    assert done.returncode == 2
    assert "teacher.pth" in done.stderr and done.stderr.count("\n") == 1
    assert not marker.exists()


@pytest.mark.parametrize("kind", ["missing", "another network"])
def test_a_teacher_file_that_does_not_fit_is_exit_code_2(
    unbroken: Path, tmp_path: Path, kind: str, train_here: Here
) -> None:
    file = tmp_path / "nowhere.pth" if kind == "missing" else unbroken / "seed0" / "student" / "model.safetensors"
    done = train_here(tmp_path / "run", "--teacher_file", str(file), "--stages", "[distill]")
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr and file.name in done.stderr
    assert not (tmp_path / "run").exists(), "both are noticed before anything is written"


def test_a_loss_that_explodes_is_exit_code_1_and_one_line(tmp_path: Path, train_here: Here) -> None:
    done = train_here(tmp_path / "run", "--optim.lr", "1e30", "--stages", "[student]")
    assert done.returncode == 1
    assert "not finite" in done.stderr and "step" in done.stderr and done.stderr.count("\n") == 1


def test_two_runs_in_one_folder_are_refused(tmp_path: Path, train_here: Here) -> None:
    output = tmp_path / "run"
    with programs.Train(*argv(output, "--epochs", "500")) as first:  # not done before the second is there
        next(line for line in first.stdout if line.startswith("[1/"))
        second = train_here(output)
    assert second.returncode == 2
    assert "run" in second.stderr and second.stderr.count("\n") == 1


def test_a_read_only_output_is_refused_before_training(train_here: Here) -> None:
    # /proc takes no files of anybody's, where root may write into every folder that is merely closed.
    done = train_here(Path("/proc/a run"), "--stages", "[student]")
    assert done.returncode == 2, done.stderr
    assert "/proc/a run can't be written to" in done.stderr and done.stderr.count("\n") == 1
    assert "epoch" not in done.stdout


def test_the_output_is_resolved_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative output stays where it was, wherever the process goes meanwhile."""
    monkeypatch.chdir(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    announce = experiment._announce
    monkeypatch.setattr(experiment, "_announce", lambda *args: (os.chdir(elsewhere), announce(*args))[1])
    assert train_module.main([*TINY, "--output", "a run", "--stages", "[student]", "--epochs", "1"]) == 0
    assert (tmp_path / "a run" / "student" / "model.safetensors").is_file()
    assert list(elsewhere.iterdir()) == []


def test_paths_with_spaces_and_umlauts(tmp_path: Path) -> None:
    home = tmp_path / "Häuser am See"
    home.mkdir()
    done = programs.train(*argv(Path("~/mein Lauf"), "--stages", "[student]"), HOME=str(home))
    assert done.returncode == 0, done.stderr
    assert (home / "mein Lauf" / "student" / "model.safetensors").is_file()


@pytest.mark.slow
def test_without_a_compiler_it_says_so_and_trains(tmp_path):
    output = tmp_path / "run"
    options = ["--compile", "--stages", "[student]", "--student", "resnet8", "--epochs", "1"]
    empty = str(tmp_path / "no programs")
    done = programs.train(*argv(output, *options), PATH=empty, TORCHINDUCTOR_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("engine.compile: not compiled") == 1
    assert set(weights(output)) == {"student"}
