"""The folder that a run gets where no ``--output`` names one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from sftn_fast import cli
from sftn_fast.cli import output_folder
from sftn_fast.cli.keys import neutral_keys
from sftn_fast.config import Config


def output(*argv: str) -> str:
    return cli.parse(argv)[0].output


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], "runs/demo"),
        (["--config", "demo"], "runs/demo"),
        (["--epochs", "4"], "runs/demo-epochs=4"),
        (["--epochs=4", "--epochs", "30"], "runs/demo"),  # the recipe's own number
        (["--optim.lr", "0.1", "--epochs", "4"], "runs/demo-epochs=4-optim.lr=0.1"),
        (["--epochs", "3", "--seeds", "[0, 1]"], "runs/demo-epochs=3"),
        (["--methods", '["kd", "rkd"]', "--engine.threads", "2"], "runs/demo-methods=kd+rkd"),
        (["--config", "matrix", "--method", "crd"], "runs/matrix-distill=crd-methods=none"),
        (["--compile"], "runs/demo-engine.compile=true"),
        (["--stage_epochs", '{"sftn": 7}'], "runs/demo-stage_epochs.sftn=7"),
        (["--epochs", "4", "--output", "x"], "x"),
        (["--epochs", "4", "--output=runs/demo"], "runs/demo"),
    ],
)
def test_the_name_says_what_the_command_line_changes(argv: list[str], expected: str) -> None:
    assert output(*argv) == expected


def test_a_recipe_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("base: demo\nepochs: 7\n")
    assert output("--config", str(path)) == "runs/mine"
    assert output("--config", str(path), "--epochs", "8") == "runs/mine-epochs=8"
    assert output("--config", str(path), "--output", "elsewhere") == "elsewhere"
    path.write_text("base: demo\noutput: ~/results/mine\n")
    assert output("--config", str(path), "--epochs", "8") == "~/results/mine-epochs=8"
    path.write_text("base: demo\noutput: .\n")
    assert output("--config", str(path), "--epochs", "8") == "epochs=8"


def test_the_configuration_in_a_folder_leads_back_to_it(tmp_path: Path) -> None:
    config, _ = cli.parse(["--epochs", "4"])
    path = tmp_path / "config.yaml"
    path.write_text(cli.dump(config))
    assert cli.load(path) == config


@pytest.mark.parametrize(
    "value",
    ["a/../../b", "c:\\d", "größe", 300 * "x", "a\nb", "a b", '<>:"|?*', "\udcff", "ResNet50", "trailing...", ""],
)
def test_every_name_is_one_safe_name(value: str) -> None:
    made = output_folder.folder_for(Path("runs/demo"), {"key": None}, {"key": value})
    assert made.parent == Path("runs") and len(made.name) < 130 and made.name.isascii() and made.name.isprintable()
    assert not set(made.name) & set('/\\<>:"|?* ') and not made.name.endswith((".", " "))


def test_two_commands_share_no_folder() -> None:
    """Not even where letters are replaced, cut, or not told from capitals."""
    values: list[Any] = ["a:b", "a;b", "a_b", 200 * "x", 201 * "x", "ResNet50", "resnet50", None, "null ", 1, 1.5, True]
    values += [["a", "b"], ["a+b "], [], {"a": 1}]
    names = [str(output_folder.folder_for(Path("r"), {"key": 0}, {"key": value})).lower() for value in values]
    assert len(set(names)) == len(values)


def test_what_decides_nothing_changes_no_name() -> None:
    plain = cli.to_dict(Config())
    for key in neutral_keys(Config):
        group, _, name = key.rpartition(".")
        other = {**plain, group: {**plain[group], name: "other"}} if group else {**plain, name: "other"}
        assert output_folder.changes(plain, other) == {}, key


def test_print_config_shows_the_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.parse(["--epochs", "4", "--print_config"])
    assert yaml.safe_load(capsys.readouterr().out)["output"] == "runs/demo-epochs=4"


def test_every_recipe_has_a_folder_of_its_own() -> None:
    folders = [output("--config", name) for name in cli.recipe_names()]
    assert len(set(folders)) == len(folders)
    assert {field.name for field in dataclasses.fields(Config)} >= {key.split(".")[0] for key in neutral_keys(Config)}
