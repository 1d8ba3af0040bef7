"""``--methods all``: every method that can serve the pair, once, in its authors' settings for it."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from sftn_fast import cli, data, distillers
from sftn_fast.config import Config
from sftn_fast.data import ImageData
from sftn_fast.distillers.spec import known
from sftn_fast.experiment import every_method


def images_of(config: Config) -> ImageData:
    return data.build(config.data, seed=0, batch_size=8, device=torch.device("cpu"))


def expanded(*options: str) -> tuple[Config, list[str]]:
    config, _ = cli.parse(["--data.name", "digits", "--methods", "all", *options])
    return every_method.expand(config, images_of(config))


def test_every_method_is_there_or_left_out_with_its_reason() -> None:
    config, lines = expanded("--teacher", "wrn_16_2", "--student", "resnet8")
    names = {distillers.parse(each).methods[0].name for each in config.methods}
    assert len(config.methods) + len(lines) == len(known()) and {"kd", "crd", "dkd"} <= names
    assert {line.split()[4].split(",")[0] for line in lines} == {"fsp", "kdsvd"}  # they need equal channels
    assert all("needs the same channels" in line and "\n" not in line for line in lines)


def test_authors_settings_are_used_for_their_pair_alone() -> None:
    pair, _ = cli.parse(["--config", "resnet56_resnet20"])
    assert every_method.settings_of("dkd", pair) == "dkd=18:beta=2:temperature=3:standardize=true"
    assert every_method.settings_of("dkd", dataclasses.replace(pair, student="resnet8")) == "dkd"
    assert every_method.settings_of("at", pair) == "at,kd=1"


def test_a_method_that_is_given_is_not_repeated() -> None:
    config, _ = expanded("at=60,kd=1", "kd=0.5:temperature=2")
    assert config.methods[:2] == ("at=60,kd=1", "kd=0.5:temperature=2")
    assert not [each for each in config.methods[2:] if each.startswith("at,")]
    assert "kd" in config.methods, "another setting of KD leaves its usual one"


def test_methods_that_cannot_use_cached_logits_are_left_out() -> None:
    config, lines = expanded("--cache_teacher", "true")
    assert "crd" not in config.methods and "kd" in config.methods
    assert any("crd needs more of the teacher than its logits" in line for line in lines)


def test_the_help_names_every_method_in_its_family(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.parse(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for family, names in distillers.registry.by_family().items():
        assert f"{family}: {', '.join(names)}" in text
