"""``python -m sftn_fast.train`` on images that are decoded on demand: stopped, resumed, on two ranks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_train import losses, weights

pytest.importorskip("nvidia.dali.fn")
pytest.importorskip("torchvision.io")

OPTIONS = ["--config", "demo", "--data.name", "imagenet", "--data.image_size", "64", "--data.train_size", "null"]
OPTIONS += ["--teacher", "resnet14", "--student", "resnet8", "--stages", "[teacher, distill]", "--epochs", "2"]
OPTIONS += ["--distill", "kd=0.9,crd=0.8:negatives=8", "--optim.batch_size", "8", "--seeds", "[0]"]
OPTIONS += ["--engine.checkpoint_every", "1", "--engine.log_every", "1", "--data.workers", "1"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 + 6 images of two classes, of several sizes, and one that is no image and listed in skip.txt."""
    root, draws = tmp_path_factory.mktemp("Bilder für ImageNet"), np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 3)):
        for name, colour in (("n01", 60), ("n02", 190)):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = (colour + draws.normal(0, 20, (18 + i, 24 + i % 5, 3))).clip(0, 255).astype(np.uint8)
                image = Image.fromarray(pixels).resize((80 + 3 * i, 70 + 5 * i))
                image.save(root / split / name / f"{i}.JPEG", format="JPEG")
    (root / "train" / "n01" / "bad.JPEG").write_text("no image")
    (root / "skip.txt").write_text("train/n01/bad.JPEG\n")
    return root


def command(root: Path, output: Path, *options: str) -> list[str]:
    return [*OPTIONS, "--data.root", str(root), "--output", str(output), *options]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def train(root: Path, output: Path, *options: str, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", *launcher, "sftn_fast.train", *command(root, output, *options)]
    return subprocess.run(argv, capture_output=True, text=True, env=environment())


def stop_in(stage: str, root: Path, output: Path, *options: str) -> tuple[int, str]:
    """Start the job and send SIGTERM to all its processes once it has trained some steps of ``stage``."""
    argv = [sys.executable, "-m", "sftn_fast.train", *command(root, output, *options)]
    metrics = output / "seed0" / stage / "metrics.jsonl"
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(), start_new_session=True
    ) as process:
        assert process.stdout is not None
        for _ in process.stdout:
            if metrics.is_file() and metrics.stat().st_size:
                os.killpg(process.pid, signal.SIGTERM)
                break
        _, errors = process.communicate()
    return process.returncode, errors


@pytest.fixture(scope="module")
def unbroken(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("unbroken") / "run"
    done = train(root, output)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("images are decoded on demand by DALI in 1 thread") == 1
    return output


def assert_equal_runs(ours: Path, theirs: Path) -> None:
    first, second = weights(ours), weights(theirs)
    assert first.keys() == second.keys() == {"teacher", "distill-teacher"}
    different = [
        (stage, name)
        for stage in first
        for name in first[stage]
        if not (first[stage][name] == second[stage][name]).all()  # type: ignore[attr-defined]
    ]
    assert not different
    assert losses(ours) == losses(theirs)


@pytest.mark.parametrize("loader", ["dali", "torchvision"])
def test_a_stopped_run_goes_on_to_the_same_end(loader: str, root: Path, unbroken: Path, tmp_path: Path) -> None:
    """On the CPU both loaders decode ordinary JPEGs to the same bits, so there is one end for both."""
    output = tmp_path / "run"
    returncode, errors = stop_in("distill-teacher", root, output, "--data.loader", loader)
    assert returncode == 143, errors
    assert "Traceback" not in errors
    assert not (output / "seed0" / "distill-teacher" / "result.json").is_file(), "stopped too late to test anything"
    done = train(root, output, "--data.loader", loader)
    assert done.returncode == 0, done.stderr
    assert "resumed from step" in done.stdout
    assert_equal_runs(output, unbroken)


def test_another_loader_is_another_run(root: Path, unbroken: Path) -> None:
    done = train(root, unbroken, "--data.loader", "torchvision")
    assert done.returncode == 2
    assert "data.loader: dali -> torchvision" in done.stderr


def test_two_ranks_resume_in_mid_epoch(root: Path, tmp_path: Path) -> None:
    launcher = ("torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m")
    options = ("--stages", "[student]", "--data.loader", "dali")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    done = train(root, whole, *options, launcher=launcher)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("images are decoded on demand") == 1
    # What a run killed in the second epoch has left: a checkpoint in its middle.
    kept = whole / "seed0" / "student" / "checkpoints"
    assert sorted(path.name for path in kept.iterdir()) == ["step_000000005", "step_000000006"]
    whole.replace(broken)
    before = weights(broken), losses(broken)
    (broken / "seed0" / "student" / "result.json").unlink()
    (broken / "seed0" / "student" / "model.safetensors").unlink()
    for path in sorted((broken / "seed0" / "student" / "checkpoints" / "step_000000006").iterdir()):
        path.unlink()
    done = train(root, broken, *options, launcher=launcher)
    assert done.returncode == 0, done.stderr
    assert "resumed from step 5" in done.stdout
    after = weights(broken), losses(broken)
    assert after[1] == before[1]
    assert all((after[0]["student"][name] == tensor).all() for name, tensor in before[0]["student"].items())  # type: ignore[attr-defined]


def test_a_damaged_file_is_exit_code_2_and_one_line(root: Path, tmp_path: Path) -> None:
    copy = tmp_path / "set"
    for split in ("train", "val"):
        (copy / split).mkdir(parents=True)
        for name in ("n01", "n02"):
            (copy / split / name).symlink_to(root / split / name)
    done = train(copy, tmp_path / "run")
    assert done.returncode == 2
    assert str(copy / "train" / "n01" / "bad.JPEG") in done.stderr and "sftn_fast.data.verify" in done.stderr
    assert done.stderr.count("\n") == 1
