"""A whole experiment on small synthetic images: what it trains, what it leaves alone, what it refuses."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest
import torch

from sftn_fast import cli, data, models, predict, train
from sftn_fast.config import Config, ConfigError
from sftn_fast.experiment import run as experiment
from sftn_fast.experiment.clock import Clock, read_seconds
from sftn_fast.experiment.plan import Job

TINY = ["--config", "demo", "--data.name", "fake", "--data.train_size", "32", "--data.image_size", "8"]
TINY += ["--engine.checkpoint_every", "null"]
TINY += ["--optim.batch_size", "16", "--epochs", "1", "--seeds", "[0]", "--teacher", "resnet14"]


def tiny(output: Path, *options: str) -> Config:
    return cli.parse([*TINY, "--output", str(output), *options])[0]


def stamps(output: Path) -> dict[str, int]:
    return {
        str(path.parent.relative_to(output)): path.stat().st_mtime_ns for path in output.glob("seed*/*/result.json")
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("a run") / "tiny"
    train.run(tiny(output))
    return output


def test_plan_trains_teachers_before_their_students() -> None:
    config, _ = cli.parse(["--seeds", "[3, 5]"])
    names = [(stage.seed, stage.name) for stage in experiment.plan(config)]
    expected = ["teacher", "sftn", "student", "distill-teacher", "distill-sftn"]
    assert names == [(seed, name) for seed in (3, 5) for name in expected]


@pytest.mark.parametrize(
    "method", ["../../kd", "kd=1:temperature=2", "/kd", "kd\n/../at", "..", ".", "kd=" + 500 * "1", "größe/..\\kd"]
)
def test_a_methods_folder_is_one_name(method: str, tmp_path: Path) -> None:
    name = Job("distill", 0, "teacher", method).name
    assert (tmp_path / name).resolve().parent == tmp_path.resolve()
    (tmp_path / name).mkdir()


def test_plan_refuses_a_student_without_a_teacher() -> None:
    with pytest.raises(ConfigError, match="teacher"):
        experiment.plan(Config(stages=("student", "distill")))
    with pytest.raises(ConfigError, match=r"sftn\.init"):
        experiment.plan(cli.parse(["--stages", "[sftn]", "--sftn.init", "teacher"])[0])
    adopted = experiment.plan(Config(stages=("distill",), teacher_file="somewhere"))
    assert [stage.name for stage in adopted] == ["teacher", "distill-teacher"]


def test_every_stage_leaves_its_result_and_its_network(finished: Path) -> None:
    names = ["distill-sftn", "distill-teacher", "sftn", "student", "teacher"]
    assert sorted(path.name for path in (finished / "seed0").iterdir() if path.is_dir()) == names
    for name in names:
        result = json.loads((finished / "seed0" / name / "result.json").read_text())
        assert 0 <= result["last"]["top1"] <= result["best"]["top1"] <= 100
        assert (result["kl"] is None) == (name in ("teacher", "sftn"))
        network = models.load(finished / "seed0" / name)
        assert network.name == ("resnet14" if name in ("teacher", "sftn") else "resnet8")
        assert sum(p.numel() for p in network.parameters()) == result["parameters"]
        assert result["devices"] == 1 and result["environment"]["torch"] == torch.__version__
    for name in ("report.md", "report.html", "report.png", "results.csv", "config.yaml"):
        assert (finished / name).is_file()


def test_no_export_holds_a_branch(finished: Path) -> None:
    plain, aware = models.load(finished / "seed0" / "teacher"), models.load(finished / "seed0" / "sftn")
    assert plain.state_dict().keys() == aware.state_dict().keys()


def test_the_exported_student_is_the_one_of_the_sftn_teacher(finished: Path) -> None:
    images = torch.randn(3, 3, 8, 8)
    exported = models.load(finished / "student").eval()
    trained = models.load(finished / "seed0" / "distill-sftn").eval()
    assert torch.equal(exported(images), trained(images))


def test_the_last_line_is_a_command_that_classifies_a_test_image(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def last_words() -> list[str]:
        train.run(tiny(finished))
        return shlex.split(capsys.readouterr().out.splitlines()[-1])

    words = last_words()
    assert words[:4] == ["next:", "python", "-m", "sftn_fast.predict"]
    assert predict.main(words[4:]) == 0
    assert capsys.readouterr().out.startswith(f"{finished / 'samples' / '0-pattern_0.png'}: pattern ")
    assert len(list((finished / "samples").iterdir())) == 10
    monkeypatch.setattr(data, "sample_files", lambda images: {})
    assert last_words()[-1] == "IMAGE"


def test_finished_stages_are_not_trained_again(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = stamps(finished)
    train.run(tiny(finished, "--engine.log_every", "3"))
    assert stamps(finished) == before
    assert capsys.readouterr().out.count("not trained again") == 5


def test_the_images_are_read_once_for_a_seed(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    build = data.build
    monkeypatch.setattr(
        data, "build", lambda *args, **options: (built.append(options["seed"]), build(*args, **options))[1]
    )
    train.run(tiny(finished))
    assert built == [0]


def test_a_missing_stage_is_trained_alone(finished: Path) -> None:
    before = stamps(finished)
    (finished / "seed0" / "student" / "result.json").unlink()
    train.run(tiny(finished))
    after = stamps(finished)
    assert {name for name in after if after[name] != before[name]} == {"seed0/student"}


def test_another_configuration_is_refused_with_the_fields_that_differ(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, settings = stamps(finished), (finished / "config.yaml").read_text()
    with pytest.raises(ConfigError, match=r"batch_size.*8|weight_decay"):
        train.run(tiny(finished, "--optim.batch_size", "8"))
    with pytest.raises(ConfigError, match="never"):
        train.run(tiny(finished, "--resume", "never"))
    with monkeypatch.context() as context:
        context.setenv("TORCHELASTIC_RESTART_COUNT", "1")  # what is there is this run's own
        train.run(tiny(finished, "--resume", "never"))
    assert stamps(finished) == before
    assert (finished / "config.yaml").read_text() == settings


def test_a_teacher_from_a_file_is_measured_and_used(finished: Path, tmp_path: Path) -> None:
    file = finished / "seed0" / "teacher" / "model.safetensors"
    config = tiny(tmp_path / "run", "--teacher_file", str(file), "--stages", "[distill]")
    train.run(config)
    theirs = json.loads((finished / "seed0" / "teacher" / "result.json").read_text())
    ours = json.loads((tmp_path / "run" / "seed0" / "teacher" / "result.json").read_text())
    assert ours["last"]["top1"] == theirs["last"]["top1"]
    assert (tmp_path / "run" / "seed0" / "distill-teacher" / "result.json").is_file()


def test_a_teacher_file_of_another_network_is_refused(finished: Path, tmp_path: Path) -> None:
    file = finished / "seed0" / "student" / "model.safetensors"
    with pytest.raises(ValueError, match=r"stages|blocks|shape|missing|keys"):
        train.run(tiny(tmp_path / "run", "--teacher_file", str(file), "--stages", "[distill]"))


def test_fine_tuning_starts_from_the_standard_teacher(finished: Path, tmp_path: Path) -> None:
    file = finished / "seed0" / "teacher" / "model.safetensors"
    options = ["--teacher_file", str(file), "--stages", "[sftn]", "--sftn.init", "teacher", "--optim.lr", "1e-12"]
    train.run(tiny(tmp_path / "run", *options))
    # With next to no learning rate the fine-tuned teacher's weights are still the ones that it started from.
    before = dict(models.load(finished / "seed0" / "teacher").named_parameters())
    after = dict(models.load(tmp_path / "run" / "seed0" / "sftn").named_parameters())
    assert all(torch.allclose(after[name], before[name], atol=1e-6) for name in before)


def test_unknown_networks_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"teacher.*resnet9000"):
        train.run(tiny(tmp_path / "run", "--teacher", "resnet9000"))


def test_a_missing_safetensors_is_noticed_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ConfigError, match="pip install safetensors"):
        train.run(tiny(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_an_unwritable_output_is_refused(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("not a folder")
    with pytest.raises(ConfigError, match="file"):
        train.run(tiny(blocker / "run"))


def test_the_time_of_a_stopped_run_counts(tmp_path: Path) -> None:
    path = tmp_path / "seconds"
    with pytest.raises(KeyboardInterrupt), Clock(path) as first:
        raise KeyboardInterrupt
    assert read_seconds(path) == pytest.approx(first.seconds, abs=1e-3)
    path.write_text("100")  # as older versions wrote it
    with Clock(path) as second:
        pass
    assert 100 <= second.seconds < 110


@pytest.mark.parametrize(
    ("amp", "devices", "warned"),
    [("fp16", ["cpu"], True), ("fp16", ["cuda:0"], False), ("bf16", ["cpu"], False), ("fp16", ["cuda:0", "cpu"], True)],
)
def test_slow_arithmetic_is_named(
    amp: str,
    devices: list[str],
    warned: bool,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    config = cli.parse(["--engine.amp", amp])[0]
    experiment.say_precision(config, [torch.device(name) for name in devices])
    out = capsys.readouterr().out
    assert out.startswith("warning: engine.amp fp16 is slow on a CPU") == warned and out.count("\n") == warned


@pytest.mark.parametrize(
    ("amp", "device", "capabilities", "offered"),
    [
        ("fp32", "cpu", {"avx512_bf16": True, "amx_bf16": True}, "2 to 3 times"),
        ("bf16", "cpu", {"amx_bf16": True}, None),
        ("fp32", "cuda:0", {"amx_bf16": True}, None),
        ("fp32", "cpu", {"avx512_bf16": True, "amx_bf16": False}, "up to twice"),
        ("fp32", "cpu", {"avx512_f": True}, None),
        ("fp32", "cpu", {"architecture": "aarch64"}, None),
    ],
)
def test_bfloat16_is_offered_where_the_cpu_multiplies_it(
    amp: str,
    device: str,
    capabilities: dict[str, object],
    offered: str | None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    config = cli.parse(["--engine.amp", amp])[0]
    experiment.say_precision(config, [torch.device(device)])
    out = capsys.readouterr().out
    assert f"--engine.amp bf16 may be {offered} as fast, unless" in out if offered else not out
    assert out.count("\n") == bool(offered)
