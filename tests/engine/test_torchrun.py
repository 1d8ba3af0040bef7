"""Runs under a real torchrun: signals, a rank that dies, the command line."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
from pathlib import Path

import programs
import pytest
import torch
import yaml
from torch import Tensor
from torch.distributed.run import get_args_parser

from sftn_fast import cli, data, engine, models
from sftn_fast.config import ConfigError
from sftn_fast.engine import distributed, process_group, read_checkpoint
from sftn_fast.engine.process_group import backend
from sftn_fast.experiment import similarity

from .ranks import TORCHRUN, environment, on_ranks, torchrun
from .under_torchrun import train

PROGRAM = ("-m", "engine.under_torchrun")


def newest(folder: Path) -> Path:
    return max((folder / "checkpoints").iterdir())


def weights(folder: Path) -> dict[str, Tensor]:
    return read_checkpoint(newest(folder))["task"]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_torchrun_ends_the_step_everywhere_and_saves(tmp_path, signum):
    options = torchrun(2, *PROGRAM, str(tmp_path), "endless")
    if signum == signal.SIGUSR1:
        options.insert(0, "--signals-to-handle=SIGTERM,SIGINT,SIGUSR1")
    with programs.Program(TORCHRUN, *options, **environment()) as process:
        next(line for line in process.stdout if "step 13 " in line)
        process.send_signal(signum)
        rest, errors = process.communicate()
    stopped = sorted(line for line in rest.splitlines() if line.startswith("rank"))
    assert stopped == [f"rank {rank} stopped by {signum.value}" for rank in (0, 1)], errors
    assert process.returncode != 0
    step = int(newest(tmp_path).name.removeprefix("step_"))
    assert step >= 13
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == step


def test_a_rank_that_dies_costs_the_steps_since_the_last_checkpoint(tmp_path):
    on_ranks(2, train, tmp_path / "unbroken")
    options = torchrun(2, *PROGRAM, str(tmp_path / "broken"), "die", restarts=1)
    done = programs.run(TORCHRUN, *options, **environment())
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("resumed from step 12") == 1
    ours, theirs = weights(tmp_path / "broken"), weights(tmp_path / "unbroken")
    assert newest(tmp_path / "broken").name == "step_000000040"
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


TINY = ["--config", "demo", "--data.name", "fake", "--data.train_size", "32", "--data.image_size", "8"]
TINY += ["--optim.batch_size", "16", "--epochs", "1", "--seeds", "[0]", "--teacher", "resnet14"]


def command_line(output: Path, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = torchrun(2, "-m", "sftn_fast.train", *TINY, "--output", str(output), *options)
    return programs.run(TORCHRUN, *command, **environment(), **variables)


def test_an_experiment_on_two_ranks(tmp_path):
    distill = "crd:negatives=8,rkd,vid=0.1,ft=1:init_epochs=1"
    stages = "[teacher,sftn,student,distill,collaborate]"
    done = command_line(tmp_path, "--stages", stages, "--distill", distill, "--gather", "true")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 ranks, 16 images a step, 8 a rank") == 1
    lines = [line for line in done.stdout.splitlines() if line.startswith("[")]
    assert [line.split("]")[0] for line in lines] == [f"[{number}/6" for number in range(1, 7)]
    assert done.stdout.count("recipe demo") == done.stdout.count("exported student") == 1
    config = cli.load(tmp_path / "config.yaml")
    images = data.build(config.data, seed=0, batch_size=16, device="cpu")
    for stage in ("teacher", "sftn", "student", "distill-teacher", "distill-sftn", "collaborate"):
        folder = tmp_path / "seed0" / stage
        result = json.loads((folder / "result.json").read_text())
        scores = engine.evaluate(models.load(folder), images.test, engine.Layout(torch.device("cpu")))
        assert {name: result["last"][name] for name in ("top1", "ce")} == pytest.approx(
            {name: scores[name] for name in ("top1", "ce")}, rel=1e-5
        )
        if result["agreement"] is not None:
            teacher = "sftn" if stage == "distill-sftn" else "teacher"
            likeness = similarity.measure(models.load(folder), models.load(tmp_path / "seed0" / teacher), images.test)
            for name in ("agreement", "agreement5", "kl", "calibration_error"):
                assert result[name] == pytest.approx(getattr(likeness, name), rel=1e-5, abs=1e-6)
    assert models.load(tmp_path / "student").name == "resnet8"


def test_what_every_rank_refuses_is_said_once(tmp_path):
    done = command_line(tmp_path, "--optim.batch_size", "15", **{programs.COLD: "1"})
    assert done.returncode != 0
    assert done.stderr.count("optim.batch_size must be divisible by the 2 ranks, got 15") == 1
    assert "rank 1: error" not in done.stderr
    assert done.stderr.count("Traceback") == 1, "that of torchrun itself"


def test_one_process_needs_no_group(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with process_group("cpu"):
        assert distributed.world_size() == 1 and not torch.distributed.is_initialized()


@pytest.mark.parametrize(
    ("device", "devices", "local_rank", "expected"),
    [
        ("cpu", 2, 1, "gloo"),
        ("auto", 0, 1, "gloo"),
        ("auto", 2, 1, "cpu:gloo,cuda:nccl"),
        ("cuda", 2, 0, "cpu:gloo,cuda:nccl"),
    ],
)
def test_backends(monkeypatch, device, devices, local_rank, expected):
    chosen = []
    monkeypatch.setenv("LOCAL_RANK", str(local_rank))
    monkeypatch.setattr("torch.cuda.is_available", lambda: devices > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: devices)
    monkeypatch.setattr("torch.cuda.set_device", chosen.append)
    assert backend(device) == expected
    assert chosen == ([local_rank] if "nccl" in expected else [])


@pytest.mark.parametrize(
    ("device", "local_rank", "message"),
    [("cuda:1", 0, "engine.device must be auto, cpu or cuda"), ("auto", 2, "2 CUDA devices, and torchrun started 3")],
)
def test_devices_that_ranks_can_not_have(monkeypatch, device, local_rank, message):
    monkeypatch.setenv("LOCAL_RANK", str(local_rank))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(ConfigError, match=message):
        backend(device)


PAGE = (Path(__file__).parents[2] / "docs" / "guide" / "many-gpus.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL)


def test_the_commands_of_the_page_are_understood():
    launched = [block.replace("\\\n", " ") for block in BLOCKS]
    found = re.findall(r"torchrun (.*?) -m sftn_fast\.train (.*?)(?: &)?$", "\n".join(launched), flags=re.MULTILINE)
    assert len(found) == len(BLOCKS) == 3
    for launcher_options, options in found:
        cli.parse(shlex.split(options))
        # As the shell would pass them, with numbers in place of SLURM's variables.
        words = shlex.split(re.sub(r"\$SLURM_\w+", "2", launcher_options))
        assert get_args_parser().parse_args([*words, "-m", "sftn_fast.train"]).training_script == "sftn_fast.train"


@pytest.mark.parametrize("block", BLOCKS, ids=["one machine", "several", "slurm"])
def test_the_scripts_of_the_page_are_shell(block):
    assert subprocess.run(["bash", "-n"], input=block, text=True, capture_output=True).stderr == ""


def test_the_options_that_the_page_names_exist():
    known = yaml.safe_load(cli.dump(cli.parse([])[0]))
    named = set(re.findall(r"(?:--|`)((?:optim|engine|data)\.\w+|gather|resume)\b", PAGE))
    assert len(named) >= 8
    for option in named:
        section, _, key = option.rpartition(".")
        assert key in (known[section] if section else known), option
