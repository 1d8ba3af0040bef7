"""The limits that the types of a configuration's fields carry, wherever the configuration is built."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest

from sftn_fast import config, validation
from sftn_fast.cli.keys import Key, groups_of, keys_of
from sftn_fast.config import (
    CollaborateConfig,
    Config,
    ConfigError,
    DataConfig,
    EmaConfig,
    EngineConfig,
    OptimConfig,
    RouteConfig,
    SFTNConfig,
    TransferConfig,
    rename_keys,
)
from sftn_fast.validation import Bound, Series, choices_of, members_of, unwrap

KEYS = {name: key for cls in (TransferConfig, Config) for name, key in keys_of(cls).items()}


def build(name: str, value: Any) -> Any:
    """The dataclass that has the key ``name``, with ``value`` for it."""
    group, _, field = name.rpartition(".")
    cls = (
        TransferConfig if name in keys_of(TransferConfig) and name not in keys_of(Config) else groups_of(Config)[group]
    )
    others = {"network": "net"} if cls is TransferConfig else {}
    return cls(**{**others, field: value})


def limited(kind: type) -> list[tuple[str, Any]]:
    """The keys whose type carries a limit of ``kind``, each with its limit."""
    found = []
    for name, key in KEYS.items():
        limits = [rule for member in members_of(key.type) for rule in unwrap(member)[1] if isinstance(rule, kind)]
        found += [(name, rule) for rule in limits]
    return found


@pytest.mark.parametrize(("name", "bound"), limited(Bound), ids=lambda value: value if isinstance(value, str) else "")
def test_a_number_outside_its_bounds_is_refused(name: str, bound: Bound) -> None:
    whole = int in [unwrap(member)[0] for member in members_of(KEYS[name].type)]
    wrong = [bound.minimum - 1]
    wrong += [bound.minimum] if bound.exclusive else []
    wrong += [bound.maximum + 1] if bound.maximum < math.inf else []
    wrong += [bound.below] if bound.below is not None else []
    wrong = [int(value) for value in wrong] if whole else [*map(float, wrong), math.nan, math.inf, -math.inf]
    for value in wrong:
        with pytest.raises(ConfigError) as caught:
            build(name, value)
        assert str(caught.value).startswith(f"{name} must be ") and f"got {value!r}" in str(caught.value)
        assert str(bound) in str(caught.value)


def test_numbers_at_their_bounds_are_taken() -> None:
    assert DataConfig(name="folder", image_size=8).image_size == 8
    assert DataConfig(image_size=512, crop_padding=16, train_size=2, val_size=0, workers=1).crop_padding == 16
    assert OptimConfig(momentum=0.0, weight_decay=0.0, batch_size=2, warmup_epochs=0).momentum == 0
    assert OptimConfig(momentum=0.999, lr=1e-300).lr == 1e-300
    assert EngineConfig(threads=1, keep_checkpoints=2, eval_every=1, log_every=1).threads == 1
    assert Config(epochs=1, devices=1, seeds=(0,), stage_epochs={"sftn": 1}).epochs_of("sftn") == 1
    assert OptimConfig(lr=1, gamma=2, clip_grad=3).lr == 1  # whole numbers, where Python code gives them


@pytest.mark.parametrize(("name", "series"), limited(Series), ids=lambda value: value if isinstance(value, str) else "")
def test_a_list_out_of_order_is_refused(name: str, series: Series) -> None:
    wrong = [(3, 3), (series.minimum - 1,), (series.minimum, series.minimum - 1)]
    wrong += [(5, 4)] if series.increasing else []
    wrong += [] if series.may_be_empty else [()]
    for value in wrong:
        with pytest.raises(ConfigError) as caught:
            build(name, value)
        assert str(caught.value) == f"{name} must be {series}, got {list(value)}"
    if not series.increasing:
        assert dataclasses.asdict(build(name, (5, 4)))[name.rpartition(".")[2]] == (5, 4)


CHOICES = {name: key for name, key in KEYS.items() if any(choices_of(member) for member in members_of(key.type))}


@pytest.mark.parametrize("name", [name for name in CHOICES if name != "resume"])  # which is a path as well
def test_a_text_that_is_no_choice_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name} must be .*, got 'nonsense'$"):
        build(name, "nonsense")


@pytest.mark.parametrize("name", CHOICES)
def test_every_choice_is_taken(name: str) -> None:
    key: Key = KEYS[name]
    for choice in itertools.chain.from_iterable(map(choices_of, members_of(key.type))):
        if name == "data.loader" and choice in ("dali", "torchvision"):
            assert DataConfig(name="folder", loader=choice).loader == choice
        elif name == "ema.networks":
            assert EmaConfig(0.9, networks=choice).networks == choice
        elif name == "export":
            assert Config(ema=EmaConfig(0.9), export=choice).export == choice
        elif name == "data.class_order":
            assert DataConfig(name="folder", class_order=choice).class_order == choice
        elif name == "data.mixed":
            assert DataConfig(cutmix=1.0, mixed=choice).mixed == choice
        else:
            assert dataclasses.asdict(build(name, choice))[name.rpartition(".")[2]] == choice


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DataConfig(name="mnist"), "data.name must be one of digits, fashion_mnist, "),
        (lambda: OptimConfig(lr_scale="sqrt"), "optim.lr_scale must be none or linear, got 'sqrt'"),
        (lambda: EngineConfig(amp="half"), "engine.amp must be one of fp32, bf16, fp16, got 'half'"),
        (lambda: EngineConfig(device="gpu"), "engine.device must be auto, cpu, cuda or cuda:N, got 'gpu'"),
        (lambda: EngineConfig(threads=0), "engine.threads must be from 1 to 1024, auto or null, got 0"),
        (lambda: CollaborateConfig(init="student"), "collaborate.init must be teacher, sftn or null, got 'student'"),
        (lambda: Config(devices=0), "devices must be at least 1 or all, got 0"),
        (
            lambda: Config(stages=("teachers",)),
            "stages must be one of teacher, early, soteacher, sftn, student, ",
        ),
        (lambda: Config(stages=()), "stages must be one or more of teacher, early, "),
        (lambda: Config(stage_epochs={"teacher": 0}), "stage_epochs must be at least 1, got 0"),
        (lambda: Config(stage_epochs={"all": 3}), "stage_epochs must be one of teacher, "),
        (lambda: Config(resume=" "), "resume must be a path, auto, must, never or force, got ' '"),
        (lambda: Config(plugins=("a.py", "")), "plugins must be a path, got ''"),
        (lambda: RouteConfig(anchors=2, epochs=(3,)), "route.anchors must be 0 beside route.epochs, got 2"),
        (lambda: OptimConfig(momentum=0, nesterov=True), "optim.nesterov must be false when optim.momentum is 0"),
        (
            lambda: TransferConfig("net", epochs=9, milestones=(3, 9)),
            "milestones must be increasing epochs from 1 to 8",
        ),
        (
            lambda: Config(epochs=3, sftn=SFTNConfig(kl_warmup_epochs=4)),
            "sftn.kl_warmup_epochs must be at most 3, the epochs of the stage sftn, got 4",
        ),
        (lambda: SFTNConfig(init=""), "sftn.init must be a path, got ''"),
        (lambda: DataConfig(mixup=-0.1), "data.mixup must be a finite number at least 0, got -0.1"),
        (lambda: DataConfig(cutmix=math.nan), "data.cutmix must be a finite number at least 0, got nan"),
        (lambda: DataConfig(cutmix=1, mixup_prob=1.5), "data.mixup_prob must be a finite number from 0 to 1, got 1.5"),
        (lambda: DataConfig(mixup_prob=0.5), "data.mixup_prob must be 1 where data.mixup and data.cutmix are 0, got 0"),
        (
            lambda: DataConfig(cutmix=1, mixup_switch_prob=0.4),
            "data.mixup_switch_prob must be 0.5 unless data.mixup and data.cutmix are both above 0, got 0.4",
        ),
        (
            lambda: DataConfig(mixed="students"),
            "data.mixed must be all where data.mixup, data.cutmix and data.label_smoothing are 0, and ",
        ),
        (
            lambda: DataConfig(class_weights=(0.0, 1.0)),
            "data.class_weights must be a finite number from 1e-06 to 1e+06",
        ),
        (lambda: DataConfig(label_smoothing=1.0), "data.label_smoothing must be a finite number at least 0 and less t"),
        (
            lambda: Config(cache_teacher=True, data=DataConfig(mixup=1)),
            "cache_teacher must be false beside data.mixup and data.cutmix, since logits are kept of single images",
        ),
        (
            lambda: TransferConfig("net", data=DataConfig(cutmix=1.0)),
            "data.cutmix must be 0, since the classifier learns from single images and their labels, got 1.0",
        ),
        (
            lambda: TransferConfig("net", data=DataConfig(auto_augment="trivialaugment")),
            "data.auto_augment must be none unless augment is true, got 'trivialaugment'",
        ),
        (
            lambda: DataConfig("imagenet", loader="dali", auto_augment="randaugment"),
            "data.loader must be auto, memory or torchvision with data.auto_augment=randaugment, which DALI can't app",
        ),
        (
            lambda: DataConfig(auto_augment="trivialaugment", randaugment_magnitude=3),
            "data.randaugment_magnitude must be null with data.auto_augment=trivialaugment; randaugment takes it, got",
        ),
        (
            lambda: DataConfig(random_erasing=math.nan),
            "data.random_erasing must be a finite number from 0 to 1, got na",
        ),
    ],
)
def test_messages(make: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert str(caught.value).startswith(message)


def test_a_key_of_an_earlier_version_is_renamed() -> None:
    assert rename_keys({"sftn": {"init": None, "stages": [1], "kl_weight": 3}, "stages": ["sftn"]}) == {
        "sftn": {"init": None, "branch_stages": [1], "kl_weight": 3},
        "stages": ["sftn"],
    }
    for unchanged in ({}, {"sftn": {"branch_stages": [2]}}, {"sftn": None}, {"stages": [1]}):
        assert rename_keys(unchanged) == unchanged
    assert set(config.RENAMED.values()) <= set(keys_of(Config)) and not set(config.RENAMED) & set(keys_of(Config))


def test_only_the_standard_library_is_imported() -> None:
    for module in (config, validation):
        names = {getattr(value, "__module__", "") or "" for value in vars(module).values()}
        assert {name.partition(".")[0] for name in names} & {"torch", "yaml", "numpy"} == set()


@pytest.mark.parametrize(
    ("optim", "epochs", "message"),
    [
        ({"schedule": "cosine", "warmup_epochs": 5}, 1, "must be less than 1, the epochs of the shortest stage, got 5"),
        ({"schedule": "constant", "warmup_epochs": 4.0}, 4, "must be less than 4, the epochs"),
        ({"warmup_epochs": 8}, 10, "must be at most 6, the first of optim.milestones, got 8"),
        ({"warmup_epochs": 3.5, "milestones": (3, 5)}, 10, "must be at most 3, the first of optim.milestones"),
        ({"warmup_epochs": 10, "milestones": ()}, 10, "must be less than 10, the epochs"),
        ({"warmup_epochs": 1.0}, 1, "must be less than 1, the epochs"),
    ],
)
def test_a_warm_up_that_does_not_end_is_refused(optim: dict[str, Any], epochs: int, message: str) -> None:
    for given in ({"epochs": epochs}, {"epochs": 100, "stage_epochs": {"distill": epochs}}):
        with pytest.raises(ConfigError) as caught:
            Config(optim=OptimConfig(**optim), **given)
        assert str(caught.value).startswith(f"optim.warmup_epochs {message}")


@pytest.mark.parametrize("optim", [{"warmup_epochs": 6}, {"warmup_epochs": 9.5, "schedule": "cosine"}, {}])
def test_a_warm_up_that_ends_is_accepted(optim: dict[str, Any]) -> None:
    assert Config(optim=OptimConfig(**optim), epochs=10).epochs == 10
    assert Config(epochs=1).optim.milestones_of(1) == (1, 1, 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EngineConfig(threads=1_000_000), "engine.threads must be from 1 to 1024, auto or null, got 1000000"),
        (lambda: DataConfig(workers=2000), "data.workers must be from 1 to 1024, got 2000"),
        (lambda: Config(devices=("cpu",) * 1025), "devices must be "),
        (lambda: Config(stages=("student", "student")), "stages must be distinct, got ['student', 'student']"),
    ],
)
def test_too_many_threads_and_equal_stages_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert str(caught.value).startswith(message)
