"""``--dry-run``: says what the run would do, and does none of it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import programs
import pytest
import torch

from sftn_fast import cli, data, engine, models, train
from sftn_fast.experiment import dry_run, job_state
from sftn_fast.experiment import run as experiment
from sftn_fast.experiment.dry_run import _activations
from sftn_fast.tasks import SupervisedTask

FAKE = "--data.name fake --data.train_size 32 --data.image_size 8 --optim.batch_size 16 --epochs 7"
SMALL = f"{FAKE} --teacher resnet14"


def dry(output: Path, options: str, capsys: pytest.CaptureFixture[str]) -> str:
    code = train.main(["--dry-run", "--output", str(output), *options.split()])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    assert not output.exists()
    return printed.out


CASES = {
    "demo": "--optim.batch_size 8",
    "matrix": f"--config matrix {FAKE} --seeds [0]",
    "fashion_mnist": f"--config fashion_mnist {SMALL}",
    "a pair of the paper": f"--config resnet56_resnet20 {FAKE}",
    "two processes": f"{SMALL} --devices [cpu,cpu]",
    "initialisations": f"{SMALL} --methods [ab,ft] --stages [teacher,distill]",
    "together": f"{SMALL} --stages [teacher,collaborate] --collaborate.init teacher",
    "together on views of their own": f"{SMALL} --stages [collaborate] --collaborate.method kdcl",
    "along the route": f"{SMALL} --stages [teacher,distill] --route.anchors 2",
    "fine-tuned": f"{SMALL} --stages [teacher,sftn] --sftn.init teacher",
    "half precision in parts": f"{SMALL} --engine.amp bf16 --optim.accumulate 4 --stages [student]",
}


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_every_kind_of_run_is_described(options: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "run"
    said = dry(output, options, capsys)
    config, _ = cli.parse(["--output", str(output), *options.split()])
    assert cli.dump(config) in said
    stages = experiment.plan(config)
    for number, stage in enumerate(stages, start=1):
        assert f"[{number}/{len(stages)}] seed {stage.seed}: {stage.behaviour.describe(config, stage)}" in said
    assert "memory: " in said and "an estimate from 3 steps" in said
    assert said.count("\ntime: about ") == 1


def test_networks_branches_adapters_and_pairs_are_those_of_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = f"{SMALL} --seeds [0] --epochs 1 --distill crd:negatives=4 --stages [teacher,sftn,distill]"
    said = dry(tmp_path / "dry", options, capsys)
    train.run(cli.parse(["--output", str(tmp_path / "run"), *options.split()])[0])
    pairs = re.findall(r"  teacher stage .*", capsys.readouterr().out)
    assert pairs and all(pair in said for pair in pairs)
    for name in ("resnet14", "resnet8"):
        network = models.build(name, num_classes=10)
        assert f"{sum(p.numel() for p in network.parameters()):,} parameters" in said
    assert re.search(r"resnet14 [\d,]+, branches [\d,]+", said) and re.search(r"resnet8 [\d,]+, adapters [\d,]+", said)
    assert "CRD's banks 32.8 kB" in said  # 2 x 32 x 128 float32, and two normalisers


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("finished") / "run"
    train.run(cli.parse(["--output", str(output), *DONE.split()])[0])
    return output


DONE = f"{SMALL} --epochs 1 --seeds [0] --stages [teacher,student,distill]"


def names(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def test_what_has_its_result_takes_no_time(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = names(finished)
    capsys.readouterr()
    assert train.main(["--dry_run", "--output", str(finished), *DONE.split()]) == 0
    said = capsys.readouterr().out
    assert said.count("has its result already") == 3 and "time: nothing left" in said
    assert names(finished) == before


def test_of_a_stopped_job_the_rest_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = f"{SMALL} --epochs 4 --stages [student] --seeds [0] --engine.checkpoint_every 5"
    train.run(cli.parse(["--output", str(tmp_path), *options.split()])[0])
    folder = tmp_path / "seed0" / "student"
    (folder / "result.json").unlink()
    shutil.rmtree(max((folder / "checkpoints").iterdir()))  # one within the third epoch is left
    capsys.readouterr()
    assert train.main(["--dry-run", "--output", str(tmp_path), *options.split()]) == 0
    said = capsys.readouterr().out
    assert "  resumes after epoch 2; " in said and said.count("resumes") == 1
    config = cli.parse(options.split())[0]
    state = job_state.JobState(experiment.plan(config)[0], begun=True, epochs=2)
    rest = dry_run._rest(config, state, state.job, tmp_path)
    assert rest.seconds(dry_run.Cost(seconds=10.0, memory=0, disk=0, first_seconds=30.0)) == 5.0


def test_what_initialisations_cost_is_apart(tmp_path: Path) -> None:
    config = cli.parse(
        f"{SMALL} --seeds [0] --stages [teacher,distill] --distill ab --output {tmp_path / 'run'}".split()
    )[0]
    checked, _, jobs, devices, _, _ = experiment.prepare(config, tmp_path / "run")
    worker = experiment.worker_on(devices[0], checked, tmp_path / "run")
    probe = dry_run.CostProbe(checked, jobs[-1], tmp_path / "run", devices[0], worker.images_of(0))
    assert probe.cost().first_seconds > 0


@pytest.mark.parametrize("checkpoints", [True, False])
def test_what_is_damaged_is_made_again(
    checkpoints: bool,
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    output = tmp_path / "run"
    shutil.copytree(finished, output)
    folder = output / "seed0" / "student"
    (folder / "model.safetensors").write_bytes(b"damaged")
    if not checkpoints:
        shutil.rmtree(folder / "checkpoints")
    before = names(output)
    for dry in (True, False):
        capsys.readouterr()
        assert train.main([*["--dry-run"][: int(dry)], "--output", str(output), *DONE.split()]) == 0
        said = capsys.readouterr()
        source = "from the last checkpoint" if checkpoints else "with the whole job, since it has no checkpoint"
        assert f"; made again {source}" in (said.out if dry else caplog.text)
        assert said.out.count("has its result already") == (2 if dry else 0)
        assert not dry or names(output) == before


@pytest.mark.parametrize("option", ["--optim.lr 0.3", "--student resnet14", "--distill at", "--resume never"])
def test_it_refuses_what_the_run_refuses(option: str, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refusals = []
    for flags in ([], ["--dry-run"]):
        capsys.readouterr()
        code = train.main([*flags, "--output", str(finished), *f"{DONE} {option}".split()])
        refusals.append((code, capsys.readouterr().err))
    assert refusals[0] == refusals[1]
    assert refusals[0][0] == 2 and refusals[0][1].count("\n") == 1


def test_it_says_what_force_trains_again(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = names(finished)
    options = f"{DONE} --optim.lr 0.3 --resume force"
    assert train.main(["--dry-run", "--output", str(finished), *options.split()]) == 0
    said = capsys.readouterr().out
    assert said.count("trained again, since optim.lr: 0.05 -> 0.3") == 3 and "has its result" not in said
    assert names(finished) == before


def test_a_teacher_from_a_file_is_looked_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models.save(models.build("resnet14", num_classes=10), tmp_path / "teacher")
    file = tmp_path / "teacher" / "model.safetensors"
    options = f"{SMALL} --stages [distill] --teacher_file {file}"
    assert "fits; it is measured and not trained" in dry(tmp_path / "run", options, capsys)
    assert train.main(["--dry-run", *f"{options} --teacher resnet20".split()]) == 2
    assert "teacher_file" in capsys.readouterr().err


def test_activations_grow_with_the_images_of_a_step() -> None:
    kept = []
    for count, accumulate in ((16, 1), (32, 1), (32, 2)):
        config, _ = cli.parse([*SMALL.split(), "--optim.batch_size", str(count), "--optim.accumulate", str(accumulate)])
        task = SupervisedTask(models.build("resnet8", num_classes=10))
        step = engine.build_step(task, engine.Schedule(config.optim, 0.1, 1, 1), config.engine, torch.device("cpu"))
        images = data.build(config.data, seed=0, batch_size=count, device="cpu")
        kept.append(_activations(task, step, next(iter(images.train.epoch(0)))))
    assert kept[0] > 16 * 16 * 8 * 8 * 4  # more than the stem's output alone
    assert kept[1:] == [pytest.approx(2 * kept[0], rel=0.05), pytest.approx(kept[0], rel=0.05)]


@pytest.mark.parametrize(("flag", "code"), [("--dry-run", 0), ("--dry-runs", 2)])
def test_as_a_command(flag: str, code: int, tmp_path: Path) -> None:
    done = programs.train(flag, *SMALL.split(), "--stages", "[student]", "--output", str(tmp_path / "run"))
    assert done.returncode == code, done.stderr
    assert ("nothing was trained, nothing written" in done.stdout) == (code == 0)
    assert not (tmp_path / "run").exists()
