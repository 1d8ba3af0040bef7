"""``--resume must`` and ``--resume PATH``: going on, or not at all."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from sftn_fast import cli, engine, train
from sftn_fast.engine import loop
from sftn_fast.experiment import resume
from sftn_fast.experiment import run as experiment

TINY = "--config demo --data.name fake --data.train_size 32 --data.image_size 8 --optim.batch_size 16 --epochs 3"
TINY += " --engine.checkpoint_every null"
TINY += " --seeds [0] --teacher resnet14 --stages [teacher,distill] --engine.eval_every 1"


def run(output: Path, *options: str) -> int:
    return train.main([*TINY.split(), "--output", str(output), *options])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("unbroken") / "run"
    assert run(output) == 0
    return output


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped in the second epoch of its second stage."""
    output = tmp_path_factory.mktemp("stopped") / "a run"
    evaluate, calls = loop.evaluate, []

    def stopping(*args, **options):
        calls.append(1)
        if len(calls) == 5:  # the fourth was behind the stage's first epoch
            raise engine.Interrupted(15)
        return evaluate(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "evaluate", stopping)
        assert run(output) == 143
    assert (output / "seed0" / "teacher" / "result.json").is_file()
    assert list((output / "seed0" / "distill-teacher" / "checkpoints").iterdir())
    return output


def refusal(capsys: pytest.CaptureFixture[str]) -> str:
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1
    return message


def test_must_refuses_to_begin(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for output in (tmp_path / "nowhere", tmp_path / "empty"):
        assert run(output, "--resume", "must") == 2
        assert "resume is must" in refusal(capsys)
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]


@pytest.mark.parametrize("how", ["must", "path"])
def test_it_goes_on_to_the_same_end(how, stopped, unbroken, tmp_path, capsys):
    output = tmp_path / "another folder"
    if how == "must":
        shutil.copytree(stopped, output)
    before = contents(stopped)
    argument = "must" if how == "must" else str(stopped)
    assert run(output, "--resume", argument) == 0
    said = capsys.readouterr().out
    assert "finished before, not trained again" in said and "resumed from step" in said
    for stage in ("teacher", "distill-teacher"):
        ours, theirs = (load_file(folder / "seed0" / stage / "model.safetensors") for folder in (output, unbroken))
        assert ours.keys() == theirs.keys() and all((ours[name] == theirs[name]).all() for name in ours)
    assert contents(stopped) == before, "the run that was gone on from has changed"
    assert cli.load(output / "config.yaml").resume == "auto"


def test_the_same_command_goes_on_with_its_own_copy(stopped, tmp_path, capsys):
    output = tmp_path / "run"
    output.mkdir()
    resume.copy(stopped, output)
    (output / "seed0" / "own").mkdir()
    assert run(output, "--resume", str(stopped)) == 0
    assert (output / "seed0" / "own").is_dir() and "goes on from a copy" not in capsys.readouterr().out


def test_its_own_output_is_a_folder_like_any_other(stopped, tmp_path):
    shutil.copytree(stopped, tmp_path / "run")
    assert run(tmp_path / "run", "--resume", str(tmp_path / "run")) == 0


def test_what_is_no_run_is_refused(stopped, unbroken, tmp_path, capsys):
    for path, words in {
        "alwys": "must be auto, must, never, force or the folder of a run",
        str(tmp_path): "the folder of a run",
        str(stopped / "seed0" / "distill-teacher" / "checkpoints"): f"it is part of the run {stopped}",
    }.items():
        assert run(tmp_path / "run", "--resume", path) == 2
        assert words in refusal(capsys)
    shutil.copytree(unbroken, tmp_path / "other")
    assert run(tmp_path / "other", "--resume", str(stopped)) == 2
    assert "holds another run, which was not resumed from" in refusal(capsys)
    assert run(tmp_path / "run", "--resume", str(stopped), "--optim.weight_decay", "0.1") == 2
    assert "weight_decay" in refusal(capsys)


@pytest.mark.parametrize(("first", "then"), [("all", "students"), ("students", "all")])
def test_data_mixed_is_refused_by_its_name(first, then, tmp_path, capsys):
    settings = "--epochs 1 --stages teacher --data.mixup 0.4 --data.label_smoothing 0.1 --data.mixed"
    options = settings.split()
    assert run(tmp_path / "run", *options, first) == 0
    capsys.readouterr()
    assert run(tmp_path / "run", *options, then) == 2
    assert f"with other settings (data.mixed: {first} -> {then});" in refusal(capsys)
    assert run(tmp_path / "run", *options, then, "--data.flip", "true") == 2
    assert f"(data.mixed: {first} -> {then}; data.flip: " in refusal(capsys)


def test_a_run_under_way_is_not_copied(stopped, tmp_path, capsys):
    with engine.RunFolder(stopped):
        assert run(tmp_path / "run", "--resume", str(stopped)) == 2
    assert "in use by another run" in refusal(capsys)
    assert not (tmp_path / "run").exists()


def test_a_copy_that_fails_leaves_nothing_behind(stopped, tmp_path, monkeypatch, capsys):
    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copytree", full)
    assert run(tmp_path / "run", "--resume", str(stopped)) == 2
    assert "can't be copied" in refusal(capsys)
    assert not list((tmp_path / "run").glob("*tmp*")) and not list((tmp_path / "run").glob("seed*"))


class Killed(BaseException):
    """Stands for SIGKILL: nothing that cleans up after an error sees it."""


def killing(patch: pytest.MonkeyPatch, at: int) -> list[str]:
    """Have the ``at``-th thing that a copy does to the disk be the one that the process does not live to do."""
    done: list[str] = []

    def guard(owner: object, name: str) -> None:
        original = getattr(owner, name)

        def call(*args, **options):
            if len(done) == at:
                raise Killed
            done.append(name)
            return original(*args, **options)

        patch.setattr(owner, name, call)

    for owner, name in ((shutil, "copytree"), (shutil, "rmtree"), (shutil, "copy2"), (Path, "rename"), (Path, "mkdir")):
        guard(owner, name)
    guard(resume, "write_atomically")
    guard(resume.os, "sync")
    return done


def test_killed_at_any_moment_of_the_copy_nothing_is_lost(stopped, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(stopped, source)
    shutil.copytree(stopped / "seed0", source / "seed1")
    wanted = {name: content for name, content in contents(source).items() if name.startswith("seed")}
    for moment in range(100):
        output = tmp_path / f"run{moment}"
        output.mkdir()
        config, _ = cli.parse([*TINY.split(), "--output", str(output), "--resume", str(source)])
        with pytest.MonkeyPatch.context() as patch:
            done = killing(patch, moment)
            with contextlib.suppress(Killed):
                resume.copy(source, output)
            finished = len(done) < moment
        # The same command again.
        assert resume.source_of(config, output) in (source, None)
        if (again := resume.source_of(config, output)) is not None:
            resume.copy(again, output)
        resume.clean_up(output)
        ours = contents(output)
        assert ours.pop("resumed-from").decode() == f"{source}\n"
        assert ours == wanted and not (output / ".tmp_resume").exists(), f"killed before step {moment}: {done}"
        assert resume.source_of(config, output) is None
        if finished:
            break
        shutil.rmtree(output)
    assert moment > 10 and "write_atomically" in done and done.count("rename") == 3


def test_another_command_after_a_killed_copy_removes_what_is_left(stopped, tmp_path, capsys):
    output = tmp_path / "run"
    (output / ".tmp_resume" / "seed0" / "teacher").mkdir(parents=True)  # a copy that was not complete
    assert run(output, "--stages", "[student]", "--epochs", "1") == 0
    assert not (output / ".tmp_resume").exists() and not (output / "seed0" / "teacher").exists()
    assert run(output, "--stages", "[student]", "--epochs", "1", "--resume", str(stopped)) == 2
    assert "holds another run, which was not resumed from" in refusal(capsys)


def test_the_command_of_a_killed_copy_goes_on(stopped, unbroken, tmp_path, monkeypatch, capsys):
    output = tmp_path / "run"
    with monkeypatch.context() as patch:
        write = resume.write_atomically

        def killed(path, content):
            write(path, content)
            raise Killed

        patch.setattr(resume, "write_atomically", killed)
        with pytest.raises(Killed):
            run(output, "--resume", str(stopped))
    assert run(output, "--resume", str(stopped)) == 0
    said = capsys.readouterr().out
    assert "finished before, not trained again" in said and "resumed from step" in said
    assert contents(output)["seed0/teacher/model.safetensors"] == contents(unbroken)["seed0/teacher/model.safetensors"]


def test_a_dry_run_knows_what_is_done(stopped, tmp_path, capsys):
    assert run(tmp_path / "run", "--resume", str(stopped), "--dry-run") == 0
    assert capsys.readouterr().out.count("has its result already") == 1
    assert not (tmp_path / "run").exists()


def test_the_source_is_only_looked_at(stopped, tmp_path):
    config, _ = cli.parse([*TINY.split(), "--output", str(tmp_path / "run"), "--resume", str(stopped)])
    before = sorted(stopped.rglob("*"))
    assert experiment.prepare(config, tmp_path / "run").source == stopped.resolve()
    assert sorted(stopped.rglob("*")) == before
