"""Settings that a user gives and that nothing reads: each declaration, and where a value comes from."""

from __future__ import annotations

import dataclasses
from itertools import product
from pathlib import Path

import pytest

from sftn_fast import cli, train
from sftn_fast.cli.keys import keys_of
from sftn_fast.cli.unread import describe_unread, marks_of
from sftn_fast.config import STAGES, Config, EmaConfig, TransferConfig
from sftn_fast.experiment.kinds import KINDS
from sftn_fast.validation import ENTRY, look_up

BASE = "--config demo --data.name fake --teacher resnet14 --seeds 0"
READ_AND_NOT = {
    # property or key of a declaration: options with which its fields are read, and with which they are not
    "stages": ("--stages teacher soteacher sftn student distill collaborate", "--stages teacher"),
    "data.name": ("--data.name cifar10", "--data.name fake"),
    "data.streams": ("--data.name imagenet", "--data.name imagenet --data.loader memory"),
    "data.auto_augment": ("--data.auto_augment randaugment", None),
    "data.mixes": ("--data.mixup 1", "--data.label_smoothing 0.1"),
    "data.mixup": ("--data.mixup 1 --data.cutmix 1", "--data.cutmix 1"),
    "data.cutmix": ("--data.mixup 1 --data.cutmix 1", "--data.mixup 1"),
    "data.mixup_prob": ("--data.mixup 1 --data.cutmix 1", "--data.mixup 1 --data.cutmix 1 --data.mixup_prob 0"),
    "data.alters": ("--data.mixup 1", ""),
    "reaches": ("--stages teacher student", "--stages teacher --data.mixup 1 --data.mixed students"),
    "augment": (None, None),  # a setting of sftn transfer
    "optim.name": ("--optim.name sgd", "--optim.name adamw"),
    "optim.lr_scale": ("--optim.lr_scale linear", "--optim.lr_scale none"),
    "optim.schedule": ("--optim.schedule milestones", "--optim.schedule constant"),
    "optim.rises": ("--optim.warmup_epochs 1", None),
    "ema.decay": ("--ema.decay 0.9", "--ema.decay 0"),
    "averages": ("--ema.decay 0.9", "--ema.decay 0.9 --ema.networks students --stages teacher"),
    "sftn.kl_weight": ("--sftn.kl_weight 1", "--sftn.kl_weight 0"),
    "collaborate.method": (
        "--stages collaborate --collaborate.method dml", "--stages collaborate --collaborate.method kdcl"
    ),
}  # fmt: skip
MARKED = [(key.name, mark) for key in keys_of(Config).values() for mark in marks_of(key, Config)]


def config_of(options: str) -> Config:
    return cli.parse([*BASE.split(), *options.split()])[0]


@pytest.mark.parametrize(("name", "mark"), MARKED, ids=[f"{name} {mark.key}" for name, mark in MARKED])
def test_a_field_is_read_with_what_its_declaration_names_and_not_without(name, mark):
    key = keys_of(Config)[name]
    entry = "sftn" if ENTRY in mark.values else ""
    read, unread = READ_AND_NOT[mark.key]
    if mark.key == "optim.schedule" and "cosine" in mark.values:
        read = "--optim.schedule cosine"
    if "kdcl" in mark.values:
        read, unread = unread, read
    assert read is None or mark.holds(config_of(read), entry)
    if unread is None:  # another value than null is refused there
        assert key.default is None
        return
    config = config_of(unread)
    assert not mark.holds(config, entry)
    if not look_up(config, name):  # past all checks: such a value may be refused today
        group, _, field = name.rpartition(".")
        object.__setattr__(look_up(config, group) if group else config, field, {"sftn": 1} if entry else 1)
    (line,) = describe_unread(config, [name])
    assert line.startswith(f"{name}{'.sftn' * bool(entry)}=") and " does nothing with " in line and "\n" not in line
    shown = [each for each in mark.shown if each != name and look_up(config, each) is not None]
    assert shown and all(f"{each}=" in line for each in shown)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ("--optim.milestones 3", "optim.milestones=[3] does nothing with optim.schedule=cosine"),
        ("--optim.schedule constant --optim.gamma 0.1", "optim.gamma=0.1 does nothing with optim.schedule=constant"),
        ("--optim.name adamw --optim.momentum 0.9", "optim.momentum=0.9 does nothing with optim.name=adamw"),
        ("--data.mixup 0.4 --data.mixup_prob 0", "data.mixup=0.4 does nothing with data.mixup_prob=0.0"),
        ("--data.cutmix 1 --data.mixup_switch_prob 0.5", "data.mixup_switch_prob=0.5 does nothing with data.mixup=0.0"),
        ("--stages student --sftn.kl_weight 2", "sftn.kl_weight=2.0 does nothing with stages=[student]"),
        ("--stages student --stage_epochs.sftn 2", "stage_epochs.sftn=2 does nothing with stages=[student]"),
        (
            "--stages student --ema.decay 0.9 --ema.networks teachers",
            "ema.networks=teachers does nothing with stages=[student]",
        ),
        ("--ema.warmup true", "ema.warmup=true does nothing with ema.decay=0.0"),
        ("--stages student --method at", "distill=at,kd=1 does nothing with stages=[student]"),
        ("--data.name digits --data.root x", "data.root=x does nothing with data.name=digits"),
    ],
)  # fmt: skip
def test_a_run_names_what_it_does_not_read(options, line):
    assert line in cli.read([*BASE.split(), *options.split()]).unread


@pytest.mark.parametrize(
    "options",
    [
        "--ema.decay 0",
        "--data.mixup 0",
        "--optim.min_lr 0",
        "--optim.milestones null",
        "--stages teacher --gather false",
    ],
)
def test_what_is_switched_off_needs_no_reader(options):
    assert cli.read([*BASE.split(), *options.split()]).unread == []


def test_what_a_base_or_a_printed_configuration_sets_is_not_the_users_choice(tmp_path: Path, capsys):
    own = tmp_path / "own.yaml"
    own.write_text("base: demo\noptim: {gamma: 0.5}\nstages: [student]\nsftn: {kl_weight: 2}\n")
    named = [line.partition("=")[0] for line in cli.read(["--config", str(own)]).unread]
    assert named == ["optim.gamma", "sftn.kl_weight"]
    more = tmp_path / "more.yaml"
    more.write_text(f"base: {own}\nepochs: 2\n")
    assert cli.read(["--config", str(more)]).unread == []
    with pytest.raises(SystemExit):
        cli.read(["--config", str(own), "--print_config"])
    printed = tmp_path / "printed.yaml"
    printed.write_text(capsys.readouterr().out)
    assert cli.read(["--config", str(printed)]).unread == []
    assert [cli.read(["--config", name]).unread for name in cli.recipe_names()] == [[] for _ in cli.recipe_names()]


def test_a_run_says_it_once_at_its_start(monkeypatch, capsys):
    monkeypatch.setattr(train, "run", lambda config, server: print("trained"))
    assert train.main([*BASE.split(), "--stages", "student", "--optim.gamma", "0.5", "--output", "runs/x"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "recipe demo, output in runs/x",
        "warning: optim.gamma=0.5 does nothing with optim.schedule=cosine",
        "trained",
    ]


def test_the_configuration_and_the_kinds_of_jobs_agree_on_who_is_averaged():
    for stage, file, networks in product(STAGES, (None, "x.pth"), ("all", "teachers", "students")):
        config = Config(stages=(stage,), teacher_file=file, ema=EmaConfig(decay=0.9, networks=networks))
        planned = [kind for kind in KINDS.values() if kind.name in config.stages]
        assert config.averages == any(kind.ema(config) is not None for kind in planned)


def test_transfer_has_no_stages_and_its_own_augment():
    given = ["data.crop_padding", "data.student_size", "data.root"]
    config = TransferConfig("net", data=dataclasses.replace(TransferConfig("net").data, crop_padding=2))
    assert [line.partition("=")[0] for line in describe_unread(config, given)] == ["data.root", "data.crop_padding"]
    assert not list(describe_unread(dataclasses.replace(config, augment=True), ["data.crop_padding"]))
