"""Students that start with the stages and the head of a branch that their teacher was trained with."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from engine.ranks import on_ranks
from engine.stubs import StoppingLoader
from safetensors.torch import load_file
from torch import Tensor

from sftn_fast import cli, data, engine, models, report, train
from sftn_fast.config import Config
from sftn_fast.experiment import run as experiment
from sftn_fast.experiment.job import JobRunner
from sftn_fast.experiment.plan import Job
from sftn_fast.tasks import DistillTask
from sftn_fast.utils import run_files
from sftn_fast.utils.checksummed import DamagedError, seal

TINY = "--config demo --data.name fake --data.train_size 32 --data.image_size 8 --optim.batch_size 16 --epochs 2"
TINY += " --seeds 0 --engine.threads 1 --engine.checkpoint_every null --teacher wrn_16_1"
START = "--sftn.init_student true"
OF_SFTN, OF_TEACHER = Job("distill", 0, "sftn"), Job("distill", 0, "teacher")


@pytest.fixture(scope="module", autouse=True)
def quick():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report.writer, "draw", lambda *_: ([], "no plot"))
        yield


def run(output: Path, options: str = "") -> int:
    return train.main([*TINY.split(), *options.split(), "--output", str(output)])


def configure(output: Path, options: str = "") -> Config:
    return cli.parse([*TINY.split(), *options.split(), "--output", str(output)])[0]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("init_student") / "run"
    assert run(output, START) == 0
    return output


def runner_of(output: Path, options: str, job: Job) -> JobRunner:
    config = configure(output, options)
    images = data.build(config.data, seed=0, batch_size=16, device=torch.device("cpu"))
    return JobRunner(config, job, output, torch.device("cpu"), images)


def start_of(output: Path, options: str = "", job: Job = OF_SFTN) -> dict[str, Tensor]:
    """Return the student's state as its training starts."""
    engine.seed_everything(0)
    task = runner_of(output, options, job).task()
    assert isinstance(task, DistillTask)
    return task.model.state_dict()


def branch_of(output: Path) -> dict[str, Tensor]:
    return load_file(output / "seed0" / "sftn" / "branch" / "model.safetensors")


def result_of(output: Path, name: str) -> dict[str, Any]:
    return json.loads((output / "seed0" / name / "result.json").read_text())


def trained(output: Path, name: str) -> dict[str, Tensor]:
    return models.load(output / "seed0" / name).state_dict()


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    assert ours.keys() == theirs.keys()
    return all(torch.equal(value, theirs[name]) for name, value in ours.items())


def newest(output: Path, name: str) -> dict[str, Any]:
    found = engine.CheckpointStore(output / "seed0" / name / "checkpoints").load_newest()
    assert found is not None
    return found[1]


def test_the_student_starts_as_the_branch_and_else_as_usual(finished: Path) -> None:
    branch, start, usual = branch_of(finished), start_of(finished, START), start_of(finished)
    assert {name.partition(".")[0] for name in branch} == {"stages", "head"}
    assert any(name.endswith("running_mean") for name in branch)
    assert all(torch.equal(start[name], value) for name, value in branch.items())
    assert not any(torch.equal(usual[name], value) for name, value in branch.items() if name.endswith("conv1.weight"))
    others = start.keys() - branch.keys()
    assert "stages.0.0.conv1.weight" in others and all(torch.equal(start[name], usual[name]) for name in others)
    # The branch is the one that was trained last, not the one of the start.
    task = newest(finished, "sftn")["task"]
    prefix = "student_aware.branches.1.1."
    for name, value in branch.items():
        stage, _, rest = name.removeprefix("stages.").partition(".")
        held = name if name.startswith("head.") else f"stages.{int(stage) - 1}.{rest}"
        assert torch.equal(task[prefix + held], value), name


def test_students_of_other_teachers_and_the_student_alone_start_without(finished: Path, tmp_path: Path) -> None:
    assert same(start_of(finished, START, OF_TEACHER), start_of(finished, "", OF_TEACHER))
    assert run(tmp_path / "without") == 0
    for name in ("teacher", "sftn", "student", "distill-teacher"):
        assert same(trained(finished, name), trained(tmp_path / "without", name)), name
        assert result_of(finished, name)["identity"] == result_of(tmp_path / "without", name)["identity"], name
    assert not same(trained(finished, "distill-sftn"), trained(tmp_path / "without", "distill-sftn"))


def test_the_identity_has_the_branch_where_it_is_read(finished: Path, tmp_path: Path) -> None:
    identity = result_of(finished, "distill-sftn")["identity"]
    assert identity["init_student"] is True
    assert identity["branch"] == models.read_config(finished / "seed0" / "sftn" / "branch")["sha256"]
    for name in ("sftn", "student", "distill-teacher"):
        assert not {"init_student", "branch"} & result_of(finished, name)["identity"].keys()
    assert (
        not {"init_student", "branch_lr", "branch_weight_decay"}
        & result_of(finished, "sftn")["identity"]["sftn"].keys()
    )


def test_the_report_and_the_announcement_say_so(finished: Path, own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sentence = "student of SFTN teacher: starts with the stages and the head of the teacher's earliest branch"
    assert sentence in (finished / "report.md").read_text().replace("&#x27;", "'")
    shutil.rmtree(own / "seed0" / "distill-sftn")
    assert run(own, START) == 0
    said = capsys.readouterr().out
    assert "from SFTN teacher, starting as its branch" in said
    assert "starts as the branch on teacher stage 1, from the student stage 2 on" in said
    assert same(trained(own, "distill-sftn"), trained(finished, "distill-sftn"))


def test_a_finished_run_is_kept_and_without_the_option_refused(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(own, START) == 0
    assert capsys.readouterr().out.count("finished before, not trained again") == 5
    assert run(own) == 2
    assert "seed0/distill-sftn" in (said := capsys.readouterr().err) and "init_student: True -> (absent)" in said


def as_older(output: Path) -> None:
    """Make the student-friendly teacher one of a version that saved no branch."""
    folder = output / "seed0" / "sftn"
    shutil.rmtree(folder / "branch")
    result = json.loads((folder / "result.json").read_text())
    result["files"] = {name: value for name, value in result["files"].items() if not name.startswith("branch/")}
    (folder / "result.json").write_text(seal(result))


@pytest.mark.parametrize("checkpoints", [True, False])
def test_a_teacher_of_an_older_version_saves_its_branch_first(
    checkpoints: bool, tmp_path: Path, finished: Path, caplog: pytest.LogCaptureFixture, capsys
) -> None:
    output = tmp_path / "run"
    assert run(output, "--stages teacher sftn") == 0
    as_older(output)
    if not checkpoints:
        shutil.rmtree(output / "seed0" / "sftn" / "checkpoints")
    assert run(output, "--stages teacher sftn") == 0  # which nothing asks for a branch
    assert not (output / "seed0" / "sftn" / "branch").exists()
    states = experiment.prepare(configure(output, START), output).states
    assert [job.name for job, state in states.items() if state.kept] == ["teacher"]
    assert run(output, f"--dry-run {START}") == 0
    assert ("resumes after epoch 2; " in capsys.readouterr().out) is checkpoints
    assert run(output, START) == 0
    made = "made from the last checkpoint" if checkpoints else "made with the whole job, since it has no checkpoint"
    assert f"seed0/sftn/branch is needed and was never saved; {made}" in caplog.text
    assert ("resumed from step 4, 2 of 2 epochs done" in capsys.readouterr().out) is checkpoints
    assert same(branch_of(output), branch_of(finished))
    assert same(trained(output, "distill-sftn"), trained(finished, "distill-sftn"))


def test_a_student_of_an_older_version_is_refused_or_trained_again(
    tmp_path: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    assert run(output) == 0
    as_older(output)
    assert run(output) == 0
    assert run(output, START) == 2
    assert "init_student: (absent) -> True" in capsys.readouterr().err
    before = result_of(output, "distill-teacher")
    assert run(output, f"{START} --resume force") == 0
    assert result_of(output, "distill-teacher") == before
    assert (output / "replaced" / "seed0" / "distill-sftn.1").is_dir()
    assert same(trained(output, "distill-sftn"), trained(finished, "distill-sftn"))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [flip, Path.unlink, lambda path: shutil.rmtree(path.parent)])
@pytest.mark.parametrize("name", run_files.NETWORK)
def test_a_damaged_branch_is_made_again_before_a_student_starts(
    name: str, damage: Callable[[Path], Any], own: Path, finished: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damage(own / "seed0" / "sftn" / "branch" / name)
    shutil.rmtree(own / "seed0" / "distill-sftn")
    with pytest.raises(DamagedError, match=r"sftn\.init_student needs \S*seed0/sftn/branch, but "):
        runner_of(own, START, OF_SFTN).task()
    runner_of(own, START, OF_SFTN).finish()
    assert f"seed0/sftn/branch/{name}" in caplog.text
    assert same(branch_of(own), branch_of(finished))
    assert same(trained(own, "distill-sftn"), trained(finished, "distill-sftn"))


@pytest.mark.parametrize("job", [Job("sftn", 0), OF_SFTN], ids=lambda job: job.name)
def test_a_stopped_job_ends_with_the_same_bits(
    job: Job, own: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = job.folder(own)
    shutil.rmtree(folder)
    plain = JobRunner.images_for

    def stopping(self: JobRunner, task: Any) -> Any:
        images = plain(self, task)
        return dataclasses.replace(images, train=StoppingLoader(images.train, 3, signal.SIGTERM))

    with monkeypatch.context() as patch:
        patch.setattr(JobRunner, "images_for", stopping)
        with pytest.raises(engine.Interrupted):
            runner_of(own, START, job).finish()
    assert not (folder / "result.json").exists()
    runner_of(own, START, job).finish()
    assert same(trained(own, job.name), trained(finished, job.name))
    assert same(branch_of(own), branch_of(finished))


@pytest.mark.parametrize(
    "options",
    [
        "--student ShuffleV1 --data.image_size 32",
        "--student vgg8 --data.image_size 32 --sftn.share_student true",
        "--sftn.branch_stages [3]",
        "--ema.decay 0.9",
        "--route.anchors 2",
        "--cache_teacher true --methods kd",
        "--methods simkd",
        "--devices cpu,cpu",
    ],
)
def test_it_goes_with(options: str, tmp_path: Path) -> None:
    output, options = tmp_path / "run", f"--stages sftn distill {START} {options}"
    assert run(output, options) == 0
    job = experiment.plan(configure(output, options))[-1]
    start = start_of(output, options, job)
    # Simkd's student has the teacher's classifier in place of its head.
    own = {name: value for name, value in branch_of(output).items() if "simkd" not in options or "head" not in name}
    assert own and all(torch.equal(start[name], value) for name, value in own.items())
    assert result_of(output, job.name)["identity"]["init_student"] is True


def test_all_ranks_start_with_the_same(finished: Path) -> None:
    first, second = on_ranks(2, start_of, finished, START)
    assert same(first, second) and same(first, start_of(finished, START))


def test_a_dry_run_writes_nothing_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "run", f"{START} --dry-run") == 0
    assert "from SFTN teacher, starting as its branch" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--stages teacher distill", "sftn.init_student=true does nothing with stages=[teacher, distill]"),
        ("--stages sftn", "sftn.init_student=true does nothing with stages=[sftn]"),
        ("--stages sftn distill", None),
    ],
)
def test_a_value_that_nothing_reads_is_named(options: str, said: str | None) -> None:
    unread = list(cli.unread.describe_unread(configure(Path("run"), f"{START} {options}"), ["sftn.init_student"]))
    assert unread == ([] if said is None else [said])
