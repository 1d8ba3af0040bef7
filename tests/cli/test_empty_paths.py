"""An empty text in place of a path, which to the system is the working folder: every verb refuses it."""

from __future__ import annotations

from pathlib import Path

import pytest

from sftn_fast import __main__ as verbs

LINES = [
    *(f"predict {rest}" for rest in ("@ x", "S @", "S x @", "S x --output @", "S x --plugins @")),
    *(f"export {rest} --format pt2" for rest in ("@", "S --output @", "S --plugins @")),
    *(f"compare {rest}" for rest in ("@ x", "x @", "x y --output @")),
    *("report @", "report x @", "verify @", "info @", "completion @", "@"),
    *(f"transfer {rest}" for rest in ("@", "x --data.root @", "x --output @", "x --plugins @", "x --device @")),
    *(
        f"train --{key} @"
        for key in ("output", "config", "data.root", "teacher_file", "plugins", "resume", "sftn.init")
    ),
    *(f"train --{key} @" for key in ("teacher", "student", "logger", "devices", "engine.device", "stages", "methods")),
    *(f"train --{key}=" for key in ("output", "config", "data.root", "teacher_file", "plugins", "resume", "logger")),
]


@pytest.mark.parametrize("blank", ["", " "])
@pytest.mark.parametrize("line", LINES)
def test_nothing_is_no_path(line, blank, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [blank if word == "@" else word for word in line.split()]
    try:
        code = verbs.main(arguments)
    except SystemExit as stopped:  # of argparse
        code = int(stopped.code or 0)
    out, error = capsys.readouterr()
    assert code == 2 and out == "" and "does not exist" not in error, (out, error)
    assert not [*tmp_path.iterdir()]
    assert error.count("\n") == 1 or error.startswith("usage: ")
