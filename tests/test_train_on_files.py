"""``python -m sftn_fast.train`` on images that are decoded on demand: stopped, resumed, on two ranks."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from pathlib import Path

import numpy as np
import programs
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
    """Return a folder of 24 + 6 images of two classes and several sizes. One more is no image and is in skip.txt."""
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


def train(root: Path, output: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return programs.train(*command(root, output, *options))


def stop_in(stage: str, root: Path, output: Path, *options: str) -> tuple[int | None, str]:
    """Start the run and send SIGTERM to all its processes after it has trained some steps of ``stage``."""
    metrics = output / "seed0" / stage / "metrics.jsonl"
    with programs.Train(*command(root, output, *options)) as process:
        for _ in process.stdout:
            if metrics.is_file() and metrics.stat().st_size:
                os.killpg(process.pid, signal.SIGTERM)
                break
        _, errors = process.communicate()
    return process.returncode, errors


def train_on_two_ranks(root: Path, output: Path, *options: str) -> str:
    """Train as under torchrun, whose variables each process is given; return the standard output of both."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    told = ""
    with contextlib.ExitStack() as stack:
        ranks = [
            stack.enter_context(programs.Train(*command(root, output, *options), RANK=rank, LOCAL_RANK=rank, **shared))
            for rank in ("0", "1")
        ]
        for process in ranks:
            out, errors = process.communicate()
            assert process.returncode == 0, errors
            told += out
    return told


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
    """Resume with either loader. On the CPU both decode ordinary JPEGs to the same bits, so both end the same."""
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
    options = ("--stages", "[student]", "--data.loader", "dali")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert train_on_two_ranks(root, whole, *options).count("images are decoded on demand") == 1
    # A run killed in the second epoch leaves a checkpoint in the middle of it.
    kept = whole / "seed0" / "student" / "checkpoints"
    assert sorted(path.name for path in kept.iterdir()) == ["step_000000005", "step_000000006"]
    whole.replace(broken)
    before = weights(broken), losses(broken)
    (broken / "seed0" / "student" / "result.json").unlink()
    (broken / "seed0" / "student" / "model.safetensors").unlink()
    for path in sorted((broken / "seed0" / "student" / "checkpoints" / "step_000000006").iterdir()):
        path.unlink()
    assert "resumed from step 5" in train_on_two_ranks(root, broken, *options)
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
