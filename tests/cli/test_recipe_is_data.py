"""A recipe and a command line are data: whatever stands behind a key, nothing is imported, read or fetched by it."""

from __future__ import annotations

import builtins
import dataclasses
import io
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sftn_fast import cli, train
from sftn_fast.cli.keys import groups_of, keys_of
from sftn_fast.config import Config, ConfigError, TransferConfig
from sftn_fast.data import verify

EVIL = """
import pathlib
pathlib.Path(__file__).with_name('ran').touch()
class X:
    pass
"""
RECIPE = "teacher: resnet8\n"
FORMS = (
    "evil.X",
    {"class_path": "evil.X"},
    {"class_path": "evil.X", "init_args": {"name": "digits"}},
    {"class_path": "evil.X", "dict_kwargs": {}},
    {"__path__": "evil.yaml"},
    {"evil.X": {}},
    ["evil.X"],
    [{"class_path": "evil.X"}],
    "evil",
    "evil.py",
    "evil.yaml",
    "-",
    "/dev/stdin",
    "http://127.0.0.1:9/evil.yaml",
    "memory://evil.yaml",
    "file:evil.yaml",
    "{class_path: evil.X}",
    "!!python/name:evil.X",
)
EVERY_KEY = [
    *keys_of(Config),
    *(key for key in groups_of(Config) if key),
    *cli.COMMAND_LINE_ONLY,
    *("base", "compile", "help", "cfg", "$schema", "__path__", "class_path", "import", "data.help", "optim.class_path"),
]


@pytest.fixture(autouse=True)
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A working directory with code in it, as `python -m` puts in front of the path; no input, no network."""
    (tmp_path / "evil.py").write_text(EVIL)
    (tmp_path / "evil.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "stdin", Unreadable())
    monkeypatch.setattr(socket, "socket", forbidden)
    imports: list[str] = []
    original = builtins.__import__

    def watch(name: str, *args, **kwargs):
        imports.append(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", watch)
    yield
    monkeypatch.undo()
    assert not [name for name in imports if name.partition(".")[0] == "evil"]
    assert "evil" not in sys.modules and not (tmp_path / "ran").exists()


class Unreadable(io.StringIO):
    def read(self, *_):
        raise AssertionError("standard input was read")

    readline = readlines = __next__ = read


def forbidden(*_, **__):
    raise AssertionError("a connection was opened")


def parse(*argv: str) -> str | None:
    """The refusal, if there was one."""
    try:
        cli.parse(argv)
    except ConfigError as error:
        assert "\n" not in str(error)
        return str(error)
    except SystemExit as left:
        assert left.code == 0
    return None


def nested(key: str, value: object) -> dict:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value  # type: ignore[return-value]


@pytest.mark.parametrize("key", EVERY_KEY)
def test_a_recipe_imports_nothing(key: str) -> None:
    for form in FORMS:
        for recipe in (nested(key, form), {key: form})[: 1 + ("." in key)]:
            Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
            refused = parse("--config", "recipe.yaml")
            assert refused is not None or key in TEXTS, (recipe, "was accepted")


TEXTS = {name for name, key in keys_of(Config).items() if str in key.alternatives} | {"plugins", "methods", "base"}
"""Keys to which some of the forms are a text like any other; what it names is looked for when it is needed."""


@pytest.mark.parametrize("key", EVERY_KEY)
def test_the_command_line_imports_nothing(key: str) -> None:
    for form in FORMS:
        text = form if isinstance(form, str) else yaml.safe_dump(form, default_flow_style=True).strip()
        if key != "help":
            parse(f"--{key}={text}")
    parse(f"--{key}.class_path", "evil.X")
    parse(f"--{key}+", "evil.X")
    parse(f"--{key}.help", "evil.X")


@pytest.mark.parametrize("key", [key for key in groups_of(Config) if key])
def test_a_group_takes_no_value(key: str) -> None:
    """Nor as two arguments, which is how most people write."""
    for text in ("evil.X", "evil.yaml", "{name: digits}", "null", "-"):
        assert f"--{key}" in str(parse(f"--{key}", text)) and f"{key}." in str(parse(f"--{key}", text))


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("mode", [["--dry-run"], [], ["--print_config"]], ids=str)
def test_a_whole_start_imports_nothing(form: object, mode: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("recipe.yaml").write_text(yaml.safe_dump({"base": "demo", "data": form, "engine": form}))
    assert train.main(["--config", "recipe.yaml", *mode]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "recipe.yaml" in err


def test_help_imports_nothing() -> None:
    for argv in (["--config", "evil.yaml", "--help"], ["--data", "evil.X", "--help"], ["--help", "evil.X"]):
        with pytest.raises(SystemExit):
            cli.parse(argv)


def test_the_environment_gives_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in keys_of(Config):
        for prefix in ("", "SFTN_", "SFTN_FAST_", "PYTHON_-M_SFTN_FAST_TRAIN_"):
            variable = prefix + name.replace(".", "__").upper()
            if variable not in ("OUTPUT",):
                monkeypatch.setenv(variable, "evil.X")
    monkeypatch.setenv("JSONARGPARSE_DEFAULT_ENV", "true")
    monkeypatch.setenv("SFTN_CONFIG", "evil.yaml")
    assert cli.parse([]) == cli.parse(["--config", "demo"])


@pytest.mark.parametrize("key", [*keys_of(TransferConfig), "data"])
def test_transfer_imports_nothing(key: str) -> None:
    for form in FORMS:
        text = form if isinstance(form, str) else yaml.safe_dump(form, default_flow_style=True).strip()
        for argv in (["NETWORK", f"--{key}", text], [f"--{key}={text}", "NETWORK"], [text]):
            try:
                cli.parse_transfer(argv, "")
            except ConfigError as error:
                assert "\n" not in str(error)


def test_verify_imports_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    for form in FORMS:
        if isinstance(form, str) and not form.startswith("-"):
            assert verify.main([form]) == 2


def test_a_start_in_a_strangers_folder(tmp_path: Path) -> None:
    """As a process, with the working directory in front of the path, as `python -m` has it."""
    Path("recipe.yaml").write_text("data: {class_path: evil.X}\n")
    argv = [sys.executable, "-m", "sftn_fast.train", "--config", "recipe.yaml", "--print_config"]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "ran").exists()


def test_every_key_is_walked() -> None:
    """Nothing of the configuration is left out by the table that the tests above walk."""

    def leaves(value: object, prefix: str = "") -> list[str]:
        if not dataclasses.is_dataclass(value):
            return [prefix.removesuffix(".")]
        fields = [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
        return [leaf for name, inside in fields for leaf in leaves(inside, f"{prefix}{name}.")]

    assert set(leaves(Config())) <= set(EVERY_KEY)
