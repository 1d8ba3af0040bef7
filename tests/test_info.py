from __future__ import annotations

import platform
import sys

import pytest
import torch

import sftn_fast
from sftn_fast import info


def test_prints_versions_libraries_and_devices(capsys):
    assert info.main([]) == 0
    facts = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert facts["sftn_fast"] == sftn_fast.__version__
    assert facts["python"].startswith(platform.python_version())
    assert facts["torch"].startswith(torch.__version__)
    assert facts["CPU"].startswith("kernels")
    assert "threads" in facts["cpu"]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("__version__ = '7.1'", "7.1"),
        ("1 / 0", "broken (ZeroDivisionError"),
        ("import nowhere", "not installed (No module"),
    ],
)
def test_optional_packages_may_be_missing_or_broken(tmp_path, monkeypatch, source, said):
    (tmp_path / "some_optional_package.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "some_optional_package", raising=False)
    assert info.version_of("some_optional_package").startswith(said)
