"""Lists on the command line: every option that takes one reads it in the same forms."""

from __future__ import annotations

import pytest

from sftn_fast import cli
from sftn_fast.cli.keys import is_list, keys_of
from sftn_fast.config import Config, ConfigError, TransferConfig

VALUES = {
    "seeds": (0, 1, 2),
    "stages": ("teacher", "student"),
    "plugins": ("mine.py", "my folder/other.py"),
    "devices": ("cpu", "cpu"),
    "collaborate.networks": ("resnet8", "resnet14"),
    "optim.milestones": (1, 2),
    "route.epochs": (3, 4),
    "sftn.branch_stages": (1, 2),
    "data.class_weights": (1.5, 2.0),
    "logger": ("tensorboard", "mlflow"),
}
WITH_COMMAS = {"methods": ("kd = 0.9,ce=0.1", "at=1000,kd=1")}


def value_of(key: str, *argv: str) -> object:
    found: object = cli.parse([*argv, "--epochs", "9"])[0]
    for part in key.split("."):
        found = getattr(found, part)
    return found


def test_every_list_is_tried() -> None:
    assert {name for name, key in keys_of(Config).items() if is_list(key)} == {*VALUES, *WITH_COMMAS}


@pytest.mark.parametrize("key", VALUES)
def test_forms_of_a_list(key: str) -> None:
    texts = [str(value) for value in VALUES[key]]
    option, commas = f"--{key}", ",".join(texts)
    quoted = "[" + ", ".join(f'"{text}"' if isinstance(VALUES[key][0], str) else text for text in texts) + "]"
    for argv in (
        [option, *texts],
        [option, commas],
        [option, commas.replace(",", ", ")],
        [option, *(text + "," for text in texts)],
        [f"{option}={commas}"],
        [option, quoted],
        [option, *quoted.replace(", ", ",\0").split("\0")],
    ):
        assert value_of(key, *argv) == VALUES[key], argv


def test_a_list_of_one() -> None:
    for key in ("seeds", "stages", "plugins", "devices", "optim.milestones"):
        one = VALUES[key][:1]
        assert value_of(key, f"--{key}", str(one[0])) == one


def test_losses_keep_their_commas() -> None:
    methods = WITH_COMMAS["methods"]
    assert value_of("methods", "--methods", *methods) == methods
    assert value_of("methods", "--methods", "at=1000,kd=1") == ("at=1000,kd=1",)
    assert value_of("methods", "--methods", '["kd", "at,kd=1"]') == ("kd", "at,kd=1")
    assert value_of("methods", "--methods", "[]") == ()


def test_values_that_are_no_lists() -> None:
    assert value_of("devices", "--devices", "2") == 2
    assert value_of("devices", "--devices", "all") == "all"
    assert value_of("optim.milestones", "--optim.milestones", "null") is None


def test_a_list_ends_at_the_next_option() -> None:
    argv = ["--stages", "teacher", "student", "--stage_epochs.teacher", "3", "--seeds", "0", "1"]
    config, _ = cli.parse(argv)
    assert (config.stages, config.stage_epochs, config.seeds) == (("teacher", "student"), {"teacher": 3}, (0, 1))


def test_the_argument_without_a_name_is_no_element() -> None:
    for argv in (["--plugins", "a.py,b.py", "NET"], ["NET", "--plugins", "a.py,b.py"]):
        config = cli.parse_transfer([*argv, "--milestones", "10", "20"], "")
        assert config == TransferConfig("NET", plugins=("a.py", "b.py"), milestones=(10, 20))
    assert cli.parse_transfer(["--milestones", "10", "20", "NET"], "").network == "NET"


@pytest.mark.parametrize("text", ["1e3", "0x10", "3.0", "0-4", "true", "0,,1", "", "{a: 1}", "0;1", "[0"])
def test_what_is_no_whole_number(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        cli.parse(["--seeds", text])
    assert str(caught.value) == f"seeds must be a list of whole numbers, as in 0 1 2, got {text!r}"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--optim.milestones", "[1.5]"],
            r"must be a list of whole numbers, as in 0 1 2 or null, got '\[1\.5\]'",
        ),
        (["--stages", "teacher", "Student"], r"stages must be .*, got 'teacher Student'; did you mean student\?"),
        (["--seeds"], "option --seeds needs a value"),
        (["--seeds", "--epochs", "3"], "option --seeds needs a value"),
        (["--devices", "gpu0", "gpu1"], r"devices must be .*, got \['gpu0', 'gpu1'\]"),
        (["--stages", "teacher", "teacher"], r"stages must be distinct, got \['teacher', 'teacher'\]"),
    ],
)
def test_refused(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cli.parse(argv)
