"""What a finished run is taken for when the same folder is asked for something else, option by option."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sftn_fast import cli, data, engine, report, train
from sftn_fast.cli.keys import neutral_keys
from sftn_fast.config import ClassOrder, Config, ConfigError, DataConfig
from sftn_fast.engine import CheckpointStore, distributed
from sftn_fast.engine.fingerprint import FingerprintMismatch
from sftn_fast.experiment import file_digest, job_state
from sftn_fast.experiment import identity as identities
from sftn_fast.experiment import run as experiment
from sftn_fast.experiment.job_state import JobState
from sftn_fast.experiment.plan import Job

TINY = "--config demo --data.name fake --data.train_size 32 --data.image_size 8 --optim.batch_size 16 --epochs 2"
TINY += " --engine.checkpoint_every null"
TINY += " --seeds [0] --teacher resnet14 --engine.eval_every 1"
ALL = f"{TINY} --stages [teacher,sftn,student,distill,collaborate]"

REFUSED, KEPT, JOINS = "refused", "kept", "joins"
"""What becomes of a finished run: one line says no; nothing is trained; only what is new is trained."""

OUTCOMES = {
    "teacher": ("resnet20", REFUSED),
    "student": ("resnet14", REFUSED),
    "teacher_pretrained": ("true", REFUSED),
    "student_pretrained": ("true", REFUSED),
    "teacher_file": ("{file}", REFUSED),
    "plugins": ("[{plugin}]", REFUSED),
    "stages": ("[teacher,student]", KEPT),
    "teacher_epoch": ("2", REFUSED),  # which the teacher's training did not save
    "distill": ("at", REFUSED),
    "methods": ("[kd,at]", JOINS),
    "cache_teacher": ("true", KEPT),  # since these images are augmented
    "epochs": ("3", REFUSED),
    "stage_epochs": ('{"sftn":3}', REFUSED),
    "seeds": ("[0,1]", JOINS),
    "output": ("elsewhere", KEPT),
    "export": ("best", KEPT),
    "gather": ("true", REFUSED),
    "devices": ("[cpu,cpu]", KEPT),
    "logger": ("tensorboard", KEPT),
    "resume": ("must", KEPT),
    "data.name": ("digits", REFUSED),
    "data.root": ("elsewhere", KEPT),
    "data.download": ("true", KEPT),
    "data.train_size": ("40", REFUSED),
    "data.student_size": ("16", REFUSED),
    "data.val_size": ("10", REFUSED),
    "data.image_size": ("16", REFUSED),
    "data.loader": ("memory", KEPT),  # which auto means for these images
    "data.workers": ("2", KEPT),
    "data.crop_padding": ("1", REFUSED),
    "data.flip": ("true", REFUSED),
    "data.auto_augment": ("trivialaugment", REFUSED),
    "data.randaugment_ops": ("3", REFUSED),
    "data.randaugment_magnitude": ("5", REFUSED),
    "data.random_erasing": ("0.25", REFUSED),
    "data.grey": ("true", REFUSED),
    "data.class_order": ("natural", REFUSED),
    "data.mixup": ("1", REFUSED),
    "data.cutmix": ("1", REFUSED),
    "data.mixup_prob": ("0.5", REFUSED),
    "data.mixup_switch_prob": ("1", REFUSED),
    "data.label_smoothing": ("0.1", REFUSED),
    "data.class_weights": ("balanced", REFUSED),
    "data.mixed": ("students", REFUSED),
    "data.white": ("4095", REFUSED),
    "optim.name": ("adamw", REFUSED),
    "optim.arguments": ("{eps: 1.0e-6}", REFUSED),
    "optim.lr": ("0.01", REFUSED),
    "optim.momentum": ("0.8", REFUSED),
    "optim.nesterov": ("true", REFUSED),
    "optim.weight_decay": ("0.1", REFUSED),
    "optim.decay_norms_and_biases": ("false", REFUSED),
    "optim.batch_size": ("8", REFUSED),
    "optim.accumulate": ("2", REFUSED),
    "optim.lr_scale": ("linear", REFUSED),
    "optim.base_batch_size": ("32", REFUSED),
    "optim.schedule": ("constant", REFUSED),
    "optim.milestones": ("[1]", REFUSED),
    "optim.gamma": ("0.5", REFUSED),
    "optim.warmup_epochs": ("0.5", REFUSED),
    "optim.warmup_lr": ("0.001", REFUSED),
    "optim.min_lr": ("0.001", REFUSED),
    "optim.clip_grad": ("1", REFUSED),
    "optim.dot": ("0.05", REFUSED),
    "ema.decay": ("0.9", REFUSED),
    "ema.warmup": ("false", REFUSED),
    "ema.networks": ("students", REFUSED),
    "sftn.teacher_weight": ("2", REFUSED),
    "sftn.ce_weight": ("2", REFUSED),
    "sftn.kl_weight": ("2", REFUSED),
    "sftn.kl_warmup_epochs": ("1", REFUSED),
    "sftn.kl_gradient": ("branches", REFUSED),
    "sftn.temperature": ("2", REFUSED),
    "sftn.direction": ("branch_to_teacher", REFUSED),
    "sftn.branch_reduction": ("sum", REFUSED),
    "sftn.branch_stages": ("[1]", REFUSED),
    "sftn.share_student": ("true", REFUSED),
    "sftn.init": ("teacher", REFUSED),
    "sftn.init_student": ("true", REFUSED),
    "sftn.branch_lr": ("0.5", REFUSED),
    "sftn.branch_weight_decay": ("0.1", REFUSED),
    "soteacher.lipschitz": ("1", KEPT),
    "soteacher.consistency": ("2", KEPT),
    "route.anchors": ("2", REFUSED),
    "route.epochs": ("[1]", REFUSED),
    "collaborate.method": ("kdcl", REFUSED),
    "collaborate.networks": ("[resnet8,resnet14]", REFUSED),
    "collaborate.init": ("teacher", REFUSED),
    "collaborate.temperature": ("2", REFUSED),
    "collaborate.weight": ("2", REFUSED),
    "collaborate.ce_weight": ("2", REFUSED),
    "collaborate.peers": ("mean", REFUSED),
    "collaborate.ensemble": ("minlogit", REFUSED),
    "collaborate.own_views": ("true", REFUSED),
    "engine.device": ("cpu", KEPT),
    "engine.amp": ("bf16", REFUSED),
    "engine.threads": ("2", KEPT),
    "engine.channels_last": ("false", REFUSED),
    "engine.cudnn_benchmark": ("true", KEPT),
    "engine.compile": ("true", REFUSED),
    "engine.cuda_graphs": ("false", KEPT),
    "engine.sync_batchnorm": ("true", REFUSED),
    "engine.eval_every": ("2", REFUSED),
    "engine.log_every": ("7", KEPT),
    "engine.checkpoint_every": ("3", KEPT),
    "engine.keep_checkpoints": ("3", KEPT),
    "engine.tensorboard": ("true", KEPT),
}
"""Another value of each key of a configuration, and the outcome."""


def keys(kind: type = Config, prefix: str = "") -> list[str]:
    found = []
    for field in dataclasses.fields(kind):
        default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        group = dataclasses.is_dataclass(default)
        found += keys(type(default), f"{prefix}{field.name}.") if group else [prefix + field.name]
    return found


def configure(output: Path, options: str) -> Config:
    return cli.parse([*options.split(), "--output", str(output)])[0]


def run(output: Path, options: str) -> int:
    return train.main([*options.split(), "--output", str(output)])


@pytest.fixture(scope="module", autouse=True)
def quick():
    """No pictures, which take as long as the training, and images that are built once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report.writer, "draw", lambda *args: ([], "no plot"))
        patch.setattr(data, "build", lru_cache(maxsize=None)(data.build))
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("finished") / "run"
    assert run(output, ALL) == 0
    return output


def results(output: Path) -> dict[str, bytes]:
    return {str(path.relative_to(output)): path.read_bytes() for path in output.glob("seed*/*/result.json")}


def identity_of(output: Path, name: str) -> dict[str, Any]:
    return json.loads((output / "seed0" / name / "result.json").read_text())["identity"]


def outcome(config: Config, root: Path) -> str:
    """What the run would do, of which nothing is trained."""
    try:
        prepared = experiment.prepare(config, root)
    except ConfigError as error:
        assert "--resume force" in str(error) and "--output" in str(error) and "\n" not in str(error)
        return REFUSED
    assert not any(each.differing for each in prepared.states.values())
    return KEPT if all(prepared.states[stage].kept for stage in prepared.jobs) else JOINS


OF_FOLDERS = ("data.white", "data.grey", "data.class_order")
"""Keys that only image files have."""
OF_RANDAUGMENT = ("data.randaugment_ops", "data.randaugment_magnitude")
"""Keys that only that policy has."""
OF_MIXING = ("data.mixup_prob", "data.mixup_switch_prob", "data.mixed")
"""Keys that only mixed images have."""
NEEDING = ("optim.arguments", "optim.warmup_lr", "ema.warmup", "ema.networks")
"""Keys that are refused beside the other settings of the finished run."""
OF_PUBLISHED = ("teacher_pretrained", "student_pretrained")
"""Keys of networks that somebody publishes weights for."""
ELSEWHERE = (*OF_PUBLISHED, *OF_FOLDERS, *OF_RANDAUGMENT, *OF_MIXING, *NEEDING)
"""Keys of which tests of their own notice other values."""


def test_every_key_has_an_outcome() -> None:
    assert list(OUTCOMES) == keys()


@pytest.mark.parametrize("key", [key for key in OUTCOMES if key not in ELSEWHERE])
def test_another_value_is_noticed_or_documented(
    key: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiment, "_try_jobs", lambda *args: None)  # which builds networks, and is not asked here
    plugin = tmp_path / "plugin.py"
    plugin.write_text("")
    value, expected = OUTCOMES[key]
    value = value.replace("{file}", str(finished / "seed0" / "teacher")).replace("{plugin}", str(plugin))
    changed = cli.parse([*ALL.split(), "--output", str(finished), f"--{key}", value])[0]
    assert changed != cli.load(finished / "config.yaml")
    assert outcome(changed, finished) == expected


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        ("--optim.name adamw", "--optim.arguments.eps 1e-6"),
        ("--optim.warmup_epochs 1", "--optim.warmup_lr 0.001"),
        ("--ema.decay 0.9", "--ema.warmup false"),
        ("--ema.decay 0.9 --ema.networks students", "--ema.decay 0.8"),
    ],
)
def test_another_value_beside_what_it_needs_is_noticed(options: str, changed: str, tmp_path: Path) -> None:
    def identity(options: str) -> dict[str, Any]:
        job, config = Job("student", 0), configure(tmp_path, f"{TINY} {options}")
        return identities.identity_of(config, job, tmp_path, {}, augments=True, ranks=1)

    before = identity(options)
    assert identities.compare(before, identity(options)) == []
    key, _, _ = changed.removeprefix("--").partition(" ")
    assert [each[0] for each in identities.compare(before, identity(f"{options} {changed}"))] == [key]


@pytest.mark.parametrize("loader", ["memory", "torchvision"])
def test_another_reading_of_image_files_is_noticed(loader: str, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for split in ("train", "val"):
        for number in range(4):
            path = tmp_path / split / ("class2", "class10")[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.fromarray(np.full((8, 8), 1000 + 100 * number, dtype=np.uint16)).save(path)

    def fingerprint(white: float, order: ClassOrder = "name", *, grey: bool = False) -> dict[str, Any]:
        options: dict[str, Any] = {"loader": loader, "white": white, "class_order": order, "grey": grey}
        config = DataConfig(name="folder", root=str(tmp_path), image_size=8, **options)
        return data.build(config, seed=0, batch_size=2, device="cpu").fingerprint()

    assert fingerprint(4095) == fingerprint(4095) != fingerprint(2047)
    assert fingerprint(4095, "natural") != fingerprint(4095)
    assert fingerprint(4095, grey=True) != fingerprint(4095)


@pytest.mark.parametrize("key", OF_RANDAUGMENT)
def test_another_strength_of_randaugment_is_noticed(key: str) -> None:
    def fingerprint(*options: str) -> dict[str, Any]:
        config = configure(Path("run"), f"{TINY} --data.auto_augment randaugment {' '.join(options)}").data
        return data.build(config, seed=0, batch_size=16, device="cpu").fingerprint()

    assert fingerprint() != fingerprint(f"--{key}", OUTCOMES[key][0])


def test_how_images_are_mixed_is_noticed(tmp_path: Path) -> None:
    mixed, output = f"{TINY} --stages teacher --epochs 1 --data.mixup 1 --data.cutmix 1", tmp_path / "run"
    assert run(output, mixed) == 0
    assert outcome(configure(output, mixed), output) == KEPT
    for key in OF_MIXING:
        value, expected = OUTCOMES[key]
        assert outcome(configure(output, f"{mixed} --{key} {value}"), output) == expected, key


def test_the_page_lists_what_does_not_matter() -> None:
    whole = (Path(__file__).parents[2] / "docs" / "runs.md").read_text()
    page = whole.partition("## Settings that do not matter")[2]
    assert dict(re.findall(r"^\| `([\w.]+)` \| (.+) \|$", page, re.MULTILINE)) == neutral_keys(Config)
    others = {"stages", "methods", "seeds", "cache_teacher", "data.loader"}  # which are explained beside the table
    others |= {"soteacher.lipschitz", "soteacher.consistency"}
    assert {key for key, (_, expected) in OUTCOMES.items() if expected != REFUSED} == neutral_keys(
        Config
    ).keys() | others
    for key in others:
        assert f"`{key}`" in page, key


def test_kept_logits_of_images_that_are_never_augmented_are_other_bits(tmp_path: Path) -> None:
    plain = f"{TINY} --stages [teacher,distill] --data.crop_padding 0 --data.flip false --epochs 1"
    assert run(tmp_path, plain) == 0
    assert outcome(configure(tmp_path, f"{plain} --cache_teacher true"), tmp_path) == REFUSED


@pytest.mark.parametrize("options", ["--optim.lr 0.2", "--epochs 3", "--data.flip true --engine.log_every 3"])
def test_a_refusal_changes_nothing(options: str, own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def contents() -> dict[str, bytes]:
        files = (path for path in own.rglob("*") if path.is_file() and path.name != ".lock")
        return {str(path.relative_to(own)): path.read_bytes() for path in files}

    before = contents()
    capsys.readouterr()
    assert run(own, f"{ALL} {options}") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "seed0/teacher" in said and "->" in said
    assert contents() == before


def test_what_does_not_matter_trains_nothing_and_stays_unwritten(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, settings = results(own), (own / "config.yaml").read_bytes()
    assert run(own, f"{ALL} --engine.log_every 3 --engine.threads 2 --resume force") == 0
    assert capsys.readouterr().out.count("not trained again (threads 1 then, 2 now)") == 6
    assert results(own) == before and (own / "config.yaml").read_bytes() == settings


def test_force_trains_again_what_differs_and_keeps_the_rest(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = results(own)
    assert run(own, f"{ALL} --sftn.kl_weight 2 --resume force") == 0
    after = results(own)
    changed = {Path(name).parent.name for name in before if before[name] != after[name]}
    assert changed == {"sftn", "distill-sftn"}, "its student learned from another teacher"
    assert identity_of(own, "sftn")["sftn"]["kl_weight"] == 2
    assert cli.load(own / "config.yaml") == configure(own, f"{ALL} --sftn.kl_weight 2")
    for name in changed:
        assert (own / "replaced" / "seed0" / f"{name}.1" / "result.json").read_bytes() == before[
            f"seed0/{name}/result.json"
        ]
    said = capsys.readouterr().out
    assert "sftn.kl_weight: 3.0 -> 2.0" in said and said.count("not trained again") == 4
    # Once more: it agrees now, and nothing is moved.
    old = own / "replaced"
    assert cli.load(old / "config.yaml.1").sftn.kl_weight == 3
    assert {path.name for path in old.iterdir()} == {"seed0", *(f"{name}.1" for name in job_state.OF_THE_RUN)} - {
        "report.png.1", "curves.png.1", "loggers.json.1"
    }  # fmt: skip
    assert run(own, f"{ALL} --sftn.kl_weight 2 --resume force") == 0
    assert results(own) == after and len(list((old / "seed0").iterdir())) == 2


def test_a_student_alone_is_compared_with_the_teacher_that_there_is(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = f"{TINY} --stages [teacher,student]"
    before = json.loads(results(own)["seed0/student/result.json"])
    assert run(own, f"{settings} --stage_epochs.teacher 1 --resume force") == 0
    after = json.loads(results(own)["seed0/student/result.json"])
    assert "compared again" in capsys.readouterr().out
    assert after["compared_with"] != before["compared_with"] and after["kl"] != before["kl"]
    assert {**after, "compared_with": 0} | {key: 0 for key in after if after[key] != before[key]} == {
        **before, "compared_with": 0
    } | {key: 0 for key in after if after[key] != before[key]}  # fmt: skip
    assert after["last"] == before["last"]


def stopping_behind(patch: pytest.MonkeyPatch, stages: int) -> None:
    announce, begun = experiment._announce, []

    def stop(*args: Any) -> None:
        begun.append(1)
        if len(begun) > stages:
            raise engine.Interrupted(15)
        announce(*args)

    patch.setattr(experiment, "_announce", stop)


def test_stopped_half_way_the_folder_holds_nothing_of_other_settings(own: Path, tmp_path: Path) -> None:
    new = f"{ALL} --optim.lr 0.01"
    with pytest.MonkeyPatch.context() as patch:
        stopping_behind(patch, stages=2)
        assert run(own, f"{new} --resume force") == 143
    assert {Path(name).parent.name for name in results(own)} == {"teacher", "sftn"}
    assert all(identity_of(own, name)["optim"]["lr"] == 0.01 for name in ("teacher", "sftn"))
    assert cli.load(own / "config.yaml") == configure(own, new)
    assert not (own / "report.md").exists() and not (own / "student").exists()  # they were of the old settings
    assert [row.name for row in report.read_results(own)] == ["teacher", "sftn"]
    # Neither the old settings nor force are needed to go on.
    assert run(own, ALL) == 2
    assert run(own, new) == 0
    assert len(results(own)) == 6


def test_stages_that_the_run_does_not_name_are_left_out_of_its_report(tmp_path: Path) -> None:
    output, old = tmp_path / "run", f"{TINY} --epochs 1 --stages [student]"
    assert run(output, f"{old} --seeds [0,1]") == 0
    assert run(output, f"{old} --seeds [0]") == 0  # nothing to train: the page is still that of both
    assert [len(row.results) for row in report.read_results(output)] == [2]
    new = f"{old} --seeds [0] --optim.lr 0.01"
    assert run(output, f"{new} --resume force") == 0
    (row,) = report.read_results(output)
    assert [result["identity"]["optim"]["lr"] for result in row.results] == [0.01]
    page = (output / "report.md").read_text()
    assert "seed1/student" in page and "left out" in page
    assert len((output / "results.csv").read_text().splitlines()) == 2
    assert run(output, f"{new} --seeds [0,1]") == 2


def test_methods_that_the_run_does_not_name_are_left_out(own: Path) -> None:
    assert run(own, f"{TINY} --stages [teacher,distill] --methods [kd,at]") == 0
    assert {row.name for row in report.read_results(own)} == {"teacher", "distill-teacher-kd", "distill-teacher-at"}
    assert "distill-sftn" in (own / "report.md").read_text().partition("left out")[2]


@pytest.fixture(scope="module")
def with_files(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a teacher from a file, a student-friendly one that began with a file, and a plugin."""
    folder = tmp_path_factory.mktemp("with files")
    for name in ("teacher", "init"):
        shutil.copyfile(finished / "seed0" / "teacher" / "model.safetensors", folder / f"{name}.safetensors")
    (folder / "plugin.py").write_text("A = 1\n")
    assert train.main(file_options(folder)) == 0
    return folder


def file_options(folder: Path, **names: str) -> list[str]:
    given = {"teacher": "teacher.safetensors", "init": "init.safetensors", "plugin": "plugin.py", **names}
    options = f"{TINY} --epochs 1 --stages [sftn,distill]".split()
    options += ["--teacher_file", str(folder / given["teacher"]), "--sftn.init", str(folder / given["init"])]
    return [*options, "--plugins", json.dumps([str(folder / given["plugin"])]), "--output", str(folder / "run")]


def other_weights(path: Path) -> None:
    tensors = load_file(path)
    tensors["head.fc.bias"] = tensors["head.fc.bias"] + 1
    save_file(tensors, path)


CHANGES = {
    "teacher.safetensors": ("teacher_file", other_weights),
    "init.safetensors": ("sftn.init", other_weights),
    "plugin.py": ("plugins", lambda path: path.write_text("A = 2\n")),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_file_is_what_it_holds(name: str, with_files: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(with_files, tmp_path / "copy"))
    key, change = CHANGES[name]
    config, _ = cli.parse(file_options(folder))
    assert outcome(config, folder / "run") == KEPT
    change(folder / name)
    with pytest.raises(FingerprintMismatch, match=rf"{key}: \S*sha256"):
        experiment.prepare(config, folder / "run")
    shutil.copyfile(with_files / name, folder / f"again {name}")
    renamed, _ = cli.parse(file_options(folder, **{Path(name).stem: f"again {name}"}))
    assert outcome(renamed, folder / "run") == KEPT


def test_the_same_command_with_another_file_there(with_files: Path, tmp_path: Path, capsys) -> None:
    folder = Path(shutil.copytree(with_files, tmp_path / "copy"))
    other_weights(folder / "teacher.safetensors")
    assert train.main(file_options(folder)) == 2
    said = capsys.readouterr().err
    assert "teacher_file" in said and said.count("\n") == 1
    assert train.main([*file_options(folder), "--resume", "force"]) == 0
    wanted = file_digest.of_file(folder / "teacher.safetensors")
    assert identity_of(folder / "run", "teacher")["teacher_file"] == wanted
    used = load_file(folder / "run" / "seed0" / "teacher" / "model.safetensors")["head.fc.bias"]
    assert torch.equal(used, load_file(folder / "teacher.safetensors")["head.fc.bias"])
    assert train.main(file_options(folder)) == 0


def test_a_file_that_is_gone_is_not_missed_by_what_was_made_of_it(with_files: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(with_files, tmp_path / "copy"))
    (folder / "teacher.safetensors").unlink()
    config, _ = cli.parse(file_options(folder))
    assert outcome(config, folder / "run") == KEPT


def test_how_a_teacher_from_a_file_would_be_trained_does_not_matter_to_it(with_files: Path) -> None:
    config, _ = cli.parse([*file_options(with_files), "--optim.lr", "0.5", "--stages", "[sftn]"])
    with pytest.raises(FingerprintMismatch, match="seed0/sftn"):  # and not the teacher
        experiment.prepare(config, with_files / "run")
    assert json.loads((with_files / "run/seed0/teacher/result.json").read_text())["epochs"] == 0


def test_published_weights_count_by_their_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "resnet18-abc.pth"
    monkeypatch.setattr(file_digest, "cached_file", lambda path, network: file)
    assert file_digest.of_weights("torchvision:DEFAULT", "resnet18") is None  # not fetched yet
    file.write_bytes(b"one")
    one = file_digest.of_weights("torchvision:DEFAULT", "resnet18")
    assert (
        one
        == file_digest.of_weights("torchvision:IMAGENET1K_V1", "resnet18")
        == file_digest.of_weights(str(file), "resnet18")
    )
    file.write_bytes(b"two")
    assert file_digest.of_weights("torchvision:DEFAULT", "resnet18") != one


def test_a_plugin_that_is_a_package_counts_with_all_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "my_networks"
    package.mkdir()
    (package / "__init__.py").write_text("from . import inner\n")
    (package / "inner.py").write_text("A = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = file_digest.of_plugins(["my_networks"])
    assert before == file_digest.of_plugins(["my_networks"]) and before != [None]
    (package / "inner.py").write_text("A = 2\n")
    assert file_digest.of_plugins(["my_networks"]) != before


def survey(options: str, root: Path) -> dict[Job, JobState]:
    config = configure(root, options)
    prepared = experiment.prepare(config, root / "nowhere")
    assert prepared.worker is not None
    return job_state.survey(config, prepared.jobs, root, prepared.worker.images_of(0))


def test_fewer_images_for_students_leave_their_teachers_as_they_are(finished: Path) -> None:
    states = survey(f"{ALL} --data.student_size 16 --resume force", finished)
    again = {job.name: {field for field, *_ in state.differing} for job, state in states.items() if not state.kept}
    assert set(again) == {"student", "distill-teacher", "distill-sftn", "collaborate"}
    assert all(fields == {"data.num_train", "data.content"} for fields in again.values())


def test_mixing_for_students_leaves_their_teachers_as_they_are(finished: Path) -> None:
    states = survey(f"{ALL} --data.cutmix 1 --data.mixed students --resume force", finished)
    again = {job.name: {field for field, *_ in state.differing} for job, state in states.items() if not state.kept}
    assert set(again) == {"student", "distill-teacher", "distill-sftn", "collaborate"}
    fields = {f"data.{name}" for name in ("mixup", "cutmix", "mixup_prob", "mixup_switch_prob")}
    assert all(each == fields for each in again.values())


def test_other_ranks_are_named_and_refused(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configure(finished, ALL)
    prepared = experiment.prepare(config, finished)
    assert prepared.worker is not None
    images = prepared.worker.images_of(0)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(FingerprintMismatch, match="ranks: 1 -> 2"):
        job_state.survey(config, prepared.jobs, finished, images)


def test_a_result_in_the_place_of_another_is_refused(own: Path) -> None:
    shutil.copytree(own / "seed0", own / "seed1")
    with pytest.raises(FingerprintMismatch, match="seed: 0 -> 1"):
        experiment.prepare(configure(own, f"{ALL} --seeds [0,1]"), own)


def stopped(own: Path, place: str, **changed: Any) -> None:
    """Have the student be one that was stopped, with a checkpoint of its own settings but for those ``changed``."""
    identity = {**identity_of(own, "student"), **changed}
    (own / "seed0" / "student" / "result.json").unlink()
    shutil.rmtree(own / "seed0" / "student" / "checkpoints")
    state = {"fingerprint": {**identity, "run": {"ranks": 1}}, "position": [1, 0, 2]}
    CheckpointStore(own / "seed0" / "student" / place).save(2, state)


@pytest.mark.parametrize("place", ["checkpoints", "init-ab/checkpoints"])
def test_a_stopped_stage_is_looked_at_like_a_finished_one(place: str, own: Path) -> None:
    stopped(own, place)
    assert outcome(configure(own, ALL), own) == JOINS
    assert outcome(configure(own, f"{ALL} --optim.lr 0.01"), own) == REFUSED
    assert outcome(configure(own, f"{ALL} --engine.log_every 3"), own) == JOINS
    with pytest.raises(ConfigError, match="resume is never"):
        experiment.prepare(configure(own, f"{ALL} --resume never"), own)


def test_force_trains_a_stopped_stage_of_other_settings_from_the_start(own: Path) -> None:
    stopped(own, "checkpoints", amp="bf16")
    assert run(own, ALL) == 2
    assert run(own, f"{ALL} --resume force") == 0
    assert identity_of(own, "student")["amp"] == "fp32"
    assert (own / "replaced" / "seed0" / "student.1" / "checkpoints" / "step_000000002").is_dir()
    assert json.loads((own / "seed0/student/metrics.jsonl").read_text().splitlines()[0])["epoch"] == 1


NEW = ("format", "plugins", "ranks", "eval_every")
"""Fields that identities had not before they had a format."""


def rewrite(path: Path, result: dict[str, Any]) -> None:
    """Write a result as older versions did, without checksums."""
    path.write_text(json.dumps({key: value for key, value in result.items() if key not in ("digest", "files")}))


def as_older(identity: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in identity.items() if key not in NEW}


def test_a_run_of_an_older_version_is_reported_and_gone_on_with(own: Path) -> None:
    for path in own.glob("seed0/*/result.json"):
        result = json.loads(path.read_text())
        rewrite(path, {**result, "identity": as_older(result["identity"])})
    assert len(report.read_results(own)) == 6
    assert outcome(configure(own, ALL), own) == KEPT
    assert outcome(configure(own, f"{ALL} --optim.lr 0.01"), own) == REFUSED
    stopped(own, "checkpoints")
    store = CheckpointStore(own / "seed0" / "student" / "checkpoints")
    found = store.load_newest()
    assert found is not None
    store.save(2, {**found[1], "fingerprint": as_older(found[1]["fingerprint"])})
    assert outcome(configure(own, ALL), own) == JOINS
    assert outcome(configure(own, f"{ALL} --optim.lr 0.01"), own) == REFUSED


def test_an_older_run_says_how_many_ranks_it_had(own: Path) -> None:
    path = own / "seed0" / "teacher" / "result.json"
    result = json.loads(path.read_text())
    rewrite(path, {**result, "devices": 2, "identity": as_older(result["identity"])})
    with pytest.raises(FingerprintMismatch, match="ranks: 2 -> 1"):
        experiment.prepare(configure(own, ALL), own)


def test_versions_and_devices_are_named_and_do_not_matter(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = own / "seed0" / "teacher" / "result.json"
    result = json.loads(path.read_text())
    result["environment"] |= {"torch": "2.11.0", "device": "another processor"}
    rewrite(path, result)
    assert run(own, ALL) == 0
    said = capsys.readouterr().out
    assert "torch 2.11.0 then" in said and "another processor then" in said and said.count(" then, ") == 2
