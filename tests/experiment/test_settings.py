"""The settings of a run are read from its file each time, though a text is parsed once."""

from __future__ import annotations

from pathlib import Path

import pytest

from sftn_fast.experiment.settings import read_settings
from sftn_fast.utils import safe_yaml
from sftn_fast.utils.checksummed import seal_text

SETTINGS = {"seeds": [0, 1], "optim": {"lr": 0.1}}


def test_a_text_is_parsed_once_and_a_changed_one_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed, load = [], safe_yaml.load
    monkeypatch.setattr(safe_yaml, "load", lambda text, where: parsed.append(text) or load(text, where))
    path = tmp_path / "config.yaml"
    path.write_text(seal_text(safe_yaml.dump(SETTINGS)))
    found = read_settings(tmp_path)
    assert found == SETTINGS
    found["optim"]["lr"] = 9.0
    found["seeds"].append(9)
    assert read_settings(tmp_path) == SETTINGS
    assert len(parsed) == 1
    path.write_text(seal_text(safe_yaml.dump(SETTINGS | {"seeds": [2]})))
    assert read_settings(tmp_path)["seeds"] == [2]
    assert len(parsed) == 2
