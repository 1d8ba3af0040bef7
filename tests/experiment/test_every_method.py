"""``--methods all``: every method that can serve the pair, once, in its authors' settings for it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from sftn_fast import cli, data, distillers
from sftn_fast.config import Config, ConfigError
from sftn_fast.data import ImageData
from sftn_fast.distillers.normal_form import refuse_equal
from sftn_fast.distillers.spec import known
from sftn_fast.experiment import every_method
from sftn_fast.experiment import run as experiment
from sftn_fast.report.published import PAIRS


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


@pytest.mark.parametrize("pair", PAIRS)
def test_methods_and_their_variants_differ_for_every_pair(pair: tuple[str, str]) -> None:
    config, _ = cli.parse(["--config", "_".join(pair)])
    specs = [every_method.settings_of(name, config) for name in known()]
    refuse_equal(specs)
    assert {"kd", "kd=0.9"} & set(specs), "KD itself is there, whatever is published for its variant"


def test_variants_have_their_own_published_settings() -> None:
    config, _ = cli.parse(["--config", "wrn_40_2_wrn_16_2"])
    found = {name: every_method.settings_of(name, config) for name in ("kd", "lskd", "ttm", "wttm")}
    assert found == {
        "kd": "kd",
        "lskd": "kd=9:temperature=2:standardize=true",
        "ttm": "ttm=101:gamma=0.1",
        "wttm": "wttm=4:gamma=0.1",
    }


def test_a_method_that_is_given_is_not_repeated() -> None:
    given = ("at=60,kd=1", "kd=0.5:temperature=2", "wttm=50", "crd,rkd,kd=1")
    config, _ = expanded(*given)
    assert config.methods[:4] == given
    others = config.methods[4:]
    assert not [each for each in others if each.startswith("at,") or each in ("kd", "wttm")]
    assert {"lskd", "ttm", "crd", "rkd,kd=1"} <= set(others), "a variant is a method of its own, a sum is none"
    refuse_equal(config.methods)


def test_all_is_not_expanded_where_nothing_is_distilled(tmp_path: Path) -> None:
    options = ["--data.name", "digits", "--methods", "all", "--stages", "student", "--output", str(tmp_path / "run")]
    config, _ = cli.parse(options)
    assert {job.name for job in experiment.prepare(config, tmp_path / "run").jobs} == {"student"}


def test_an_unknown_method_beside_all_is_named_by_its_key() -> None:
    with pytest.raises(ConfigError, match=r"^methods: in 'foo', unknown method 'foo'"):
        cli.parse(["--methods", "all", "foo"])


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
