"""``--cache_teacher`` from the command line: the same students without the teacher's passes, or a line that says no."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from engine import fake_cuda_graph
from safetensors.torch import load, load_file
from torch import Tensor

from sftn_fast import cli, report, train
from sftn_fast.data import loaders
from sftn_fast.distillers import distiller
from sftn_fast.engine import step
from sftn_fast.experiment import run as experiment
from sftn_fast.experiment.teacher_cache.store import TeacherLogits

# 33 images in batches of 8: one is left out of each epoch, another one each time.
TINY = "--config demo --data.name fake --data.train_size 33 --data.image_size 8 --optim.batch_size 8 --epochs 3"
TINY += " --engine.checkpoint_every null"
TINY += " --seeds [0] --teacher resnet14 --stages [teacher,distill] --engine.log_every 1 --engine.checkpoint_every 1"
PLAIN = ("--data.crop_padding", "0", "--data.flip", "false")
CACHED = ("--cache_teacher", "true")
TIMED = ("images_per_second", "data_wait", "seconds", "time", "eta")


def run(output: Path, methods: str, *options: str) -> int:
    return train.main([*TINY.split(), "--methods", methods, "--output", str(output), *options])


def weights(output: Path, method: str) -> dict[str, Tensor]:
    return load_file(output / "seed0" / f"distill-teacher-{method}" / "model.safetensors")


def losses(output: Path, method: str) -> list[dict[str, Any]]:
    lines = (output / "seed0" / f"distill-teacher-{method}" / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith(TIMED)} for line in lines]


def files(output: Path) -> list[str]:
    return sorted(path.name for path in (output / "seed0" / "teacher-logits" / "teacher").iterdir())


def assert_equal(ours: Path, theirs: Path, *methods: str) -> None:
    for method in methods:
        mine, reference = weights(ours, method), weights(theirs, method)
        assert mine.keys() == reference.keys()
        assert [name for name in mine if not torch.equal(mine[name], reference[name])] == []
        assert losses(ours, method) == losses(theirs, method)


@pytest.fixture(scope="module", autouse=True)
def no_report() -> Iterator[None]:
    """Nothing here looks at a run's report, which takes as long as the run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "write", lambda root, **_: "")
        yield


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("usual") / "run"
    assert run(output, "[kd,dkd,dist]") == 0
    return output


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("cached") / "run"
    assert run(output, "[kd,dkd]", *CACHED) == 0
    return output


@pytest.fixture
def no_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that runs the teacher is an error."""
    monkeypatch.setattr(experiment, "_try_jobs", lambda *args: None)  # where an untrained teacher runs once

    def never(net):
        raise AssertionError("the teacher ran")

    monkeypatch.setattr(distiller, "teacher_mode", never)


def test_every_student_is_the_one_without_the_cache_bit_for_bit(usual, cached):
    assert_equal(cached, usual, "kd", "dkd")
    assert files(cached) == [f"epoch000{epoch}.safetensors" for epoch in (1, 2, 3)]


def test_in_half_precision_too(tmp_path):
    half = ("--engine.amp", "bf16", "--epochs", "1")
    for name, options in (("ours", ("[kd,dkd]", *CACHED)), ("theirs", ("[dkd]",))):
        assert run(tmp_path / name, *options, *half) == 0
    assert_equal(tmp_path / "ours", tmp_path / "theirs", "dkd")
    (file,) = (tmp_path / "ours" / "seed0" / "teacher-logits" / "teacher").iterdir()
    assert load_file(file)["logits"].dtype == torch.bfloat16


def test_a_further_method_needs_no_pass_of_the_teacher(usual, cached, no_teacher, tmp_path, capsys):
    output = tmp_path / "run"
    shutil.copytree(cached, output)
    assert run(output, "[kd,dkd,dist]", *CACHED) == 0
    assert_equal(output, usual, "kd", "dkd", "dist")
    assert f"teacher's logits: 3 of 3 epochs are in {output}" in capsys.readouterr().out


def test_a_damaged_file_costs_a_warning_and_the_passes_of_its_epoch(usual, cached, tmp_path, caplog):
    output = tmp_path / "run"
    shutil.copytree(cached, output)
    file = output / "seed0" / "teacher-logits" / "teacher" / "epoch0002.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert run(output, "[dist]", *CACHED) == 0
    assert_equal(output, usual, "dist")
    assert [f"{file} is not used" in message for message in caplog.messages] == [True]
    # The image that the epoch leaves out has no logits.
    torch.testing.assert_close(load_file(file), load(content), rtol=0, atol=0, equal_nan=True)


def test_a_replayed_step_reads_and_writes_like_any_other(usual, cached, tmp_path, monkeypatch):
    output = tmp_path / "run"
    shutil.copytree(cached, output)
    (output / "seed0" / "teacher-logits" / "teacher" / "epoch0002.safetensors").unlink()
    monkeypatch.setattr(step, "recorder", lambda choice, device: fake_cuda_graph.record)
    assert run(output, "[dist]", *CACHED) == 0
    assert_equal(output, usual, "dist")
    ours, theirs = (load_file(path / "seed0/teacher-logits/teacher/epoch0002.safetensors") for path in (output, cached))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Send this process a SIGTERM in the middle of that step of the next student."""
    calls, call = [], TeacherLogits.__call__

    def stopping(self, index, teacher):
        calls.append(1)
        if len(calls) == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return call(self, index, teacher)

    monkeypatch.setattr(TeacherLogits, "__call__", stopping)


def test_stopped_in_mid_epoch_and_gone_on_with_it_ends_with_the_same_bits(usual, tmp_path, monkeypatch, capsys):
    output = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(patch, 6)
        assert run(output, "[kd,dkd]", *CACHED) == 143
    assert files(output) == ["epoch0001.safetensors"]
    assert run(output, "[kd]", *CACHED) == 0
    assert "resumed from step 6, 1 of 3 epochs done" in capsys.readouterr().out
    assert files(output) == ["epoch0001.safetensors", "epoch0003.safetensors"], "the second was not wholly seen"
    with monkeypatch.context() as patch:
        stop_at(patch, 6)
        assert run(output, "[kd,dkd]", *CACHED) == 143
        assert run(output, "[kd,dkd]", *CACHED) == 0
    assert_equal(output, usual, "kd", "dkd")
    assert run(output, "[kd,dkd,dist]") == 0, "the cache is no part of what a stage is"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("plain") / "run"
    assert run(output, "[kd,dkd]", *PLAIN, *CACHED) == 0
    return output


def test_images_that_are_never_augmented_differ_by_rounding_alone(plain, tmp_path):
    assert files(plain) == ["every.safetensors"]
    assert run(tmp_path / "run", "[dkd]", *PLAIN) == 0
    for name, tensor in weights(plain, "dkd").items():
        torch.testing.assert_close(tensor, weights(tmp_path / "run", "dkd")[name], rtol=1e-3, atol=1e-4)


def test_images_that_are_never_augmented_need_no_pass_in_any_step(plain, no_teacher, tmp_path, monkeypatch):
    output = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(patch, 6)
        assert run(output, "[kd]", *PLAIN, *CACHED) == 143
    assert run(output, "[kd]", *PLAIN, *CACHED) == 0
    assert_equal(output, plain, "kd")


def test_a_stage_on_such_images_does_not_change_between_the_two(plain, capsys):
    assert run(plain, "[kd,dkd]", *PLAIN) == 2
    assert "cache_teacher: True -> (absent)" in capsys.readouterr().err


def refusal(capsys: pytest.CaptureFixture[str], output: Path) -> str:
    message = capsys.readouterr().err
    assert message.startswith("error: cache_teacher must be false ") and message.count("\n") == 1
    assert not list(output.glob("seed*/*/checkpoints/*"))
    return message


REFUSED = {
    "feature maps": ("[kd,'at,kd=1']", (), "with at,kd=1, since at needs more of the teacher than its logits"),
    "pooled vectors": ("[crd]", (), "since crd needs"),
    "pre-activations": ("[oh]", (), "since oh needs"),
    "images of its own": ("[sskd]", (), "since sskd needs"),
    "no teacher": ("[ab]", (), "which needs no teacher during training"),
    "a route": ("[kd]", ("--route.anchors", "2"), "beside route"),
}


@pytest.mark.parametrize(("methods", "options", "words"), REFUSED.values(), ids=REFUSED)
def test_what_it_can_not_serve(methods, options, words, tmp_path, capsys):
    assert run(tmp_path / "run", methods, *options, *CACHED) == 2
    assert words in refusal(capsys, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_several_ranks_are_refused(tmp_path, monkeypatch, capsys):
    torchrun = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    for name, value in torchrun.items():
        monkeypatch.setenv(name, value)
    assert run(tmp_path / "run", "[kd]", *CACHED) == 2
    assert "where torchrun starts 2 processes" in refusal(capsys, tmp_path / "run")


def test_a_plugins_method_is_refused_unless_it_says_that_logits_suffice(tmp_path, capsys, forgotten_plugins):
    plugin = tmp_path / "my_method.py"
    plugin.write_text(
        "from sftn_fast import distillers\nfrom sftn_fast.distillers.method import Method\n"
        "@distillers.register('mine')\nclass Mine(Method):\n    '''Mine.'''\n"
    )
    assert run(tmp_path / "run", "[mine]", "--plugins", f"[{plugin}]", *CACHED) == 2
    assert "since mine needs" in refusal(capsys, tmp_path / "run")


def test_images_that_nobody_says_can_be_had_again_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loaders.TrainLoader, "deterministic", False)
    assert run(tmp_path / "run", "[kd]", *CACHED) == 2
    assert "fake, whose loader does not declare" in refusal(capsys, tmp_path / "run")


@pytest.mark.parametrize("dry", [(), ("--dry-run",)], ids=["run", "dry run"])
def test_a_disk_without_room_is_refused(dry, tmp_path, monkeypatch, capsys):
    needed = 3 * 33 * 10 * 4
    usage = namedtuple("usage", "total used free")
    for free, code in ((needed - 1, 2), (needed, 0)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: usage(10**9, 0, free))
        assert run(tmp_path / "run", "[kd]", *dry, *CACHED) == code
        if code:
            assert "the run would write 4.0 kB of logits, and " in refusal(capsys, tmp_path / "run")


def test_a_dry_run_says_what_it_takes(cached, capsys):
    before = sorted(cached.rglob("*"))
    for seeds, size in (("[0]", "0 bytes"), ("[0,1]", "4.0 kB")):
        assert run(cached, "[kd]", "--dry-run", *CACHED, "--seeds", seeds) == 0
        assert f"disk: {size} of teachers' logits that are not there yet" in capsys.readouterr().out
    assert sorted(cached.rglob("*")) == before


def test_it_is_off_unless_asked_for(usual):
    assert not cli.parse([])[0].cache_teacher
    assert not (usual / "seed0" / "teacher-logits").exists()
