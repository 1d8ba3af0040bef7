"""Stages side by side: the same results as one after the other, and an end that is clean whatever happens."""

from __future__ import annotations

import io
import json
import os
import re
import signal
from pathlib import Path

import programs
import pytest
import torch
from safetensors.torch import load_file

from sftn_fast import cli, engine
from sftn_fast.config import Config, ConfigError
from sftn_fast.experiment import run as experiment
from sftn_fast.experiment.worker import PrefixedLines
from sftn_fast.train import run as run_experiment

TINY = ["--config", "demo", "--data.name", "fake", "--data.train_size", "32", "--data.image_size", "8"]
TINY += ["--engine.checkpoint_every", "null"]
TINY += ["--optim.batch_size", "16", "--epochs", "2", "--seeds", "[0, 1]", "--teacher", "resnet14"]
TINY += ["--stages", "[teacher, student, distill]", "--engine.threads", "1", "--engine.log_every", "1"]
STAGES = {"teacher", "student", "distill-teacher"}
TWO = ["--devices", "[cpu, cpu]"]


def on_two(output: Path, *options: str) -> list[str]:
    return [*TINY, *TWO, "--output", str(output), *options]


def configured(output: Path, *options: str) -> Config:
    return cli.parse([*TINY, "--output", str(output), *options])[0]


def computed(output: Path) -> dict[str, object]:
    """All that the stages computed, without what depends on the clock."""
    found: dict[str, object] = {}
    for path in sorted(output.glob("seed*/*/result.json")):
        result = json.loads(path.read_text())
        timed = ("seconds", "images_per_second", "data_wait_share", "environment", "files", "digest")  # logs have times
        name = f"{path.parent.parent.name}/{path.parent.name}"
        found[name] = {key: value for key, value in result.items() if key not in timed}
        weights = load_file(path.parent / "model.safetensors")
        found[f"{name}/weights"] = {key: value.numpy().tobytes() for key, value in weights.items()}
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run in one process."""
    output = tmp_path_factory.mktemp("alone") / "run"
    run_experiment(configured(output))
    return output


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The run in two processes, and what it printed."""
    output = tmp_path_factory.mktemp("together") / "run"
    done = programs.train(*on_two(output))
    assert done.returncode == 0, done.stderr
    return output, done.stdout


def test_two_processes_compute_what_one_does(alone: Path, together: tuple[Path, str]) -> None:
    assert len(computed(alone)) == 2 * 2 * len(STAGES)
    assert computed(together[0]) == computed(alone)


def test_lines_say_whose_they_are(together: tuple[Path, str]) -> None:
    for seed in (0, 1):
        for name in STAGES:
            assert f"seed {seed} {name} | epoch 2/2  done" in together[1]
    assert "[6/6]" in together[1] and "on cpu" in together[1]
    last = next(line for line in together[1].splitlines() if line.startswith("[6/6]"))
    assert last.endswith(" left in all")
    assert "\x1b" not in together[1]


def test_one_process_goes_on_with_what_two_finished(
    together: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    run_experiment(configured(together[0]))
    assert capsys.readouterr().out.count("not trained again") == 6


def test_ctrl_c_stops_all_and_the_run_goes_on_to_the_same_end(alone: Path, tmp_path: Path) -> None:
    output, often = tmp_path / "run", ["--engine.checkpoint_every", "1"]
    with programs.Train(*on_two(output, *often)) as process:
        # Every step prints a line, so that two stages are under way when each has printed one.
        seen: set[str] = set()
        for line in process.stdout:
            seen |= {line.split(" | ")[0]} if " | epoch" in line else set()
            if len(seen) == 2:
                os.killpg(process.pid, signal.SIGINT)
                break
        _, errors = process.communicate()
    assert process.returncode == 130, errors
    assert "run the same command to resume" in errors and "Traceback" not in errors
    assert len(list(output.glob("seed*/*/result.json"))) < 6, "stopped too late to test anything"
    assert list(output.glob("seed*/*/checkpoints/*"))
    run_experiment(configured(output, *often))
    assert computed(output) == computed(alone)


def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    output = tmp_path / "run"
    with programs.Train(*on_two(output, "--epochs", "2000")) as process:
        next(line for line in process.stdout if " | epoch" in line)
        process.send_signal(signal.SIGKILL)
        # The workers hold the other end of the pipe: it ends when they have.
        process.communicate()
    with engine.RunFolder(output):
        assert list(output.glob("seed*/*/checkpoints/*")), "no checkpoint was written at the end"


def test_a_stage_that_goes_wrong_fails_the_run(tmp_path: Path) -> None:
    done = programs.train(*on_two(tmp_path / "run", "--optim.lr", "1e30"))
    assert done.returncode == 1
    *_, last = done.stderr.splitlines()
    assert last.startswith("error: seed ") and " teacher: not finite" in last
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "run").glob("seed*/distill*")), "a stage began although its teacher has failed"


def test_a_plugin_that_fails_in_a_process_alone_is_one_line(tmp_path: Path) -> None:
    plugin = tmp_path / "first_only.py"
    once = str(tmp_path / "imported")
    plugin.write_text(f"try:\n    open({once!r}, 'x')\nexcept OSError:\n    raise OSError('\\x1b[31mred')")
    done = programs.train(*on_two(tmp_path / "run", "--plugins", str(plugin)))
    assert done.returncode == 2, done.stderr
    *_, last = done.stderr.splitlines()
    assert re.match(rf"error: seed [01] teacher: plugins: {re.escape(str(plugin))} can't be imported: OSError", last)
    assert "Traceback" not in done.stderr and "\x1b" not in done.stderr


def test_a_refused_configuration_comes_back_as_such(together: tuple[Path, str]) -> None:
    before = computed(together[0])
    with pytest.raises(ConfigError, match=r"seed0/teacher in .*weight_decay"):  # before a process is started
        run_experiment(configured(together[0], *TWO, "--optim.weight_decay", "0.1"))
    assert computed(together[0]) == before


def test_each_stage_waits_for_what_it_reads() -> None:
    config, _ = cli.parse(["--seeds", "[3]", "--sftn.init", "teacher", "--methods", '["kd", "at,kd=1"]'])
    waits = {stage.name: stage.behaviour.needs(config, stage) for stage in experiment.plan(config)}
    assert waits == {
        "teacher": set(),
        "sftn": {"teacher"},
        "student": {"teacher"},
        "distill-teacher-kd": {"teacher"},
        "distill-sftn-kd": {"sftn"},
        "distill-teacher-at_kd=1": {"teacher"},
        "distill-sftn-at_kd=1": {"sftn"},
    }
    options = ["--seeds", "[3]", "--stages", "[sftn, collaborate]", "--collaborate.init", "sftn"]
    peers, _ = cli.parse(options)
    assert [stage.behaviour.needs(peers, stage) for stage in experiment.plan(peers)] == [set(), {"sftn"}]


@pytest.mark.parametrize(
    ("devices", "gpus", "expected"),
    [
        (1, 2, "cpu"),
        (1, 0, "cpu"),
        ("all", 0, "cpu"),
        ("all", 1, "cpu"),
        (2, 3, "cuda:0 cuda:1"),
        ("all", 3, "cuda:0 cuda:1 cuda:2"),
        (("cpu", "cpu"), 0, "cpu cpu"),
        (("cuda:1", "cuda:0", "cuda:1"), 2, "cuda:1 cuda:0 cuda:1"),
    ],
)
def test_devices(monkeypatch: pytest.MonkeyPatch, devices: object, gpus: int, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert " ".join(map(str, engine.resolve_devices(devices, "cpu"))) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--devices", "0"], ["devices", "at least 1"]),
        (["--devices", "[]"], ["devices", "[]"]),
        (["--devices", "[tpu]"], ["devices", "tpu"]),
        (["--devices", "[auto, cpu]"], ["devices", "auto"]),
        (["--devices", "some"], ["devices", "some"]),
        (["--devices", "[cpu, cpu]", "--engine.device", "cpu"], ["engine.device", "auto"]),
    ],
)
def test_devices_that_can_not_be(options: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        cli.parse(options)
    assert all(word in str(caught.value) for word in words), caught.value


def test_more_gpus_than_there_are_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="devices is 3, but there are 0"):
        engine.resolve_devices(3, "auto")


def test_methods_that_are_the_same_are_refused() -> None:
    with pytest.raises(ConfigError, match="methods must differ"):
        experiment.plan(Config(methods=("at,kd=1", "at, kd=1")))


def test_a_method_that_refuses_the_networks_does_so_before_they_are_trained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'fsp' can't teach vgg8 from resnet14"):
        run_experiment(configured(tmp_path / "run", "--student", "vgg8", "--methods", '["kd", "fsp"]'))
    assert not (tmp_path / "run").exists()


def test_prefixed_lines_are_written_whole() -> None:
    stream = io.StringIO()
    lines = PrefixedLines(stream)
    lines.prefix = "a | "
    print("one", end="", file=lines)
    assert stream.getvalue() == ""
    print(" line\nand another", file=lines)
    assert stream.getvalue() == "a | one line\na | and another\n"
