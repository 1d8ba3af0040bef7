"""Paths that no file can have are refused before anything is trained, whichever key they stand behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sftn_fast import cli, train
from sftn_fast.config import LONGEST_PATH, ConfigError, check_path
from sftn_fast.utils import safe_yaml

KEYS = ("output", "data.root", "teacher_file", "sftn.init", "plugins", "resume")
TRANSFER_KEYS = ("output", "data.root", "plugins", "network")
WRONG = {
    "byte": "runs/\udcff",
    "nul": "runs/a\0b",
    "line": "runs/a\nb",
    "escape": "runs/\x1b[31m",
    "name": "runs/" + "x" * 256,
    "letters": "runs/" + "\u00fc" * 128,
    "path": "runs/" + "/".join(["x" * 200] * (LONGEST_PATH // 200 + 1)),
    "user": "~nosuchuser/runs",
    "surrogate": "runs/\ud800",
}


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("key", KEYS)
def test_refused_behind_every_key(
    key: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert train.main([f"--{key}", safe_yaml.inline([text]) if key == "plugins" else text]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"error: {key} must be ") and err.count("\n") == 1 and len(err) < 400
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("key", TRANSFER_KEYS)
def test_refused_behind_every_key_of_transfer(key: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        cli.parse_transfer(
            [text] if key == "network" else ["NET", f"--{key}", safe_yaml.inline([text]) if key == "plugins" else text],
            "",
        )
    assert str(caught.value).startswith(f"{key} must be ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["output", "data.root", "teacher_file", "sftn.init", "resume"])
def test_refused_in_a_recipe_that_names_it(key: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    for text in ('"a\\0b"', "~nosuchuser/x", "x" * 300):
        path.write_text(f"{key}: {text}\n")
        with pytest.raises(ConfigError, match=f"{path}: {key} must be "):
            cli.parse(["--config", str(path)])


@pytest.mark.parametrize(
    "text", ["runs/a b", "runs/größe", "~/runs", "/", ".", "x" * 255, "\u65e5\u672c/\U0001f600", "a:b*?"]
)
def test_what_a_file_can_have_is_taken(text: str) -> None:
    check_path("output", text)
    assert cli.parse(["--output", text])[0].output == text


def test_a_locale_without_the_letters() -> None:
    """Where the file system's encoding is ASCII, other letters are refused at once, and shown without them."""
    code = "from sftn_fast.config import check_path\ntry: check_path('output', 'gr\\u00f6\\u00dfe')\n"
    code += "except ValueError as error: print(error)"
    environment = {
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONPATH": str(Path(cli.__file__).parents[1]),
    }
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    if done.stdout:  # not where Python takes UTF-8 for every file system
        assert "locale (ascii" in done.stdout and "gr\\xf6\\xdfe" in done.stdout
