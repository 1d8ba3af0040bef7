"""YAML from anywhere: the same values as ever, and a bound on all that a file can ask for."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import yaml

from sftn_fast import cli, train
from sftn_fast.config import ConfigError
from sftn_fast.experiment.settings import read_settings
from sftn_fast.utils import safe_yaml

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)
LONG = {
    "lists": "seeds: " + "[" * 20_000 + "]" * 20_000,
    "open lists": "seeds: " + "[" * 20_000,
    "block lists": "seeds:\n" + "- " * 20_000 + "1",
    "mappings": "data: " + "{name: " * 8_000,
    "complex keys": "? " * 20_000 + "a",
    "digits": "epochs: " + "9" * 5_000,
    "quoted": 'seeds: "' + "[" * 20_000 + '"',
    "laughs": LAUGHS,
    "laughs in a key": LAUGHS + "seeds: *a11\n",
    "chain": "\n".join(f"k{n}: &k{n} [{f'*k{n - 1}' if n else 1}]" for n in range(2_000)),
    "itself": "seeds: &a [*a]",
    "merges": "data: &a {name: digits}\noptim: {<<: *a}",
    "items": "seeds: [" + "1, " * 15_000 + "1]",
    "bytes": "# " + "x" * safe_yaml.MAX_BYTES + "\nepochs: 1",
    "comments": "#\n" * safe_yaml.MAX_BYTES,
}


@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
@pytest.mark.timeout(60)
def test_a_recipe_beyond_a_bound_is_one_line(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(text)
    assert train.main(["--config", "recipe.yaml"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: recipe.yaml") and err.count("\n") == 1 and len(err) < 400


@pytest.mark.parametrize("text", ["[" * 20_000, "9" * 5_000, "{a: " * 9_000, "&a [*a]", LAUGHS])
def test_an_option_beyond_a_bound_is_one_line(text: str) -> None:
    for key in ("--seeds", "--epochs", "--stage_epochs", "--devices", "--data.flip", "--stage_epochs.teacher"):
        with pytest.raises(ConfigError) as caught:
            cli.parse([key, text])
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"epochs: 1\0\n", "U+0000"),
        (b'output: "a\\0b"\n', "U+0000"),
        (b'output: "a\\nb"\n', "U+000A"),
        (b'distill: "kd\\e[31m"\n', "U+001B"),
        (b"output: \xff\xfe\n", "byte 8 is not UTF-8"),
        ("epochs: 1\n".encode("utf-16"), "not UTF-8"),
        (b"epochs: 1\nseeds: [0]\nepochs: 2\n", "line 3: key epochs is given twice, first in line 1"),
        (b"optim:\n  lr: 1\n  lr: 2\n", "line 3: key lr is given twice"),
        (b"optim: {lr: 1}\noptim.lr: 2\n", "optim.lr is given twice"),
        (b"compile: true\nengine: {compile: false}\n", "engine.compile is given twice"),
        (b"stage_epochs: {teacher: 1, teacher: 2}\n", "teacher is given twice"),
        (
            b"stages: null\n",
            "stages must be a list, as in [a,b], of teacher, early, soteacher, sftn, student, distill, collaborate, "
            "got null",
        ),
        (b"seeds:\n", "seeds must be a list of whole numbers, as in [0,1,2], got null"),
        (b"methods: ~\n", "methods must be a list"),
        (b"route: {epochs: null}\n", "route.epochs must be a list"),
        (b"collaborate: {networks: null}\n", "collaborate.networks must be a list"),
        (b"epochs: null\n", "epochs must be a whole number (int), got null"),
        (b"stage_epochs: null\n", "stage_epochs must be keys and values"),
        (b"stage_epochs: {teacher: null}\n", "stage_epochs must be keys and values"),
        (b"data: null\n", "data is a group"),
        (b"optim:\n", "optim is a group"),
        (b"optim: [1]\n", "optim is a group"),
        (b"data: {name: {a: 1}}\n", "data.name must be one of digits, fashion_mnist, "),
        (b"1: 2\n", "unknown key '1'"),
        (b"null: 2\n", "unknown key 'None'"),
        (b"? [a]\n: 1\n", "a key is not text"),
        (b"epochs: 010\n", "epochs must be a whole number (int), got '010'"),
        (b"epochs: 1:30\n", "epochs must be a whole number (int), got '1:30'"),
        (b"epochs: 0x10\n", "epochs must be a whole number"),
        (b"epochs: true\n", "epochs must be a whole number (int), got True"),
        (b"epochs: 9999999999999999999\n", "19 digits"),
        (b"seeds: [123456789012345678901]\n", "21 digits"),
        (b"teacher: no\n", "teacher must be text, got False"),
        (b"output: 3\n", "output must be text, got 3"),
        (b"seeds: !!set {1, 2}\n", "tag !!set is not allowed"),
        (b"output: !!binary aGk=\n", "tag !!binary"),
        (b"output: !mine x\n", "tag !mine"),
        (b"--- \nepochs: 1\n--- \nepochs: 2\n", "another document"),
        (b"epochs: *nothing\n", "undefined alias"),
        (b"\tepochs: 1\n", "line 1"),
        (b"seeds: [1\nepochs: 2\n", "line 2"),
    ],
)
def test_a_recipe_that_is_refused_names_file_and_place(
    content: bytes, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_bytes(content)
    assert train.main(["--config", "recipe.yaml"]) == 2
    _, err = capsys.readouterr()
    assert err.startswith("error: recipe.yaml") and err.count("\n") == 1
    assert says in err


def test_a_recipe_with_a_mark_of_its_byte_order(tmp_path: Path) -> None:
    path = tmp_path / "windows.yaml"
    path.write_bytes("\ufeffepochs: 3\r\noutput: d\u00fc\r\n".encode())
    config, _ = cli.parse(["--config", str(path)])
    assert (config.epochs, config.output) == (3, "d\u00fc")


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in (tmp_path / "pipe", tmp_path, Path("/dev/zero"), Path("/dev/stdin"), Path("-")):
        with pytest.raises(ConfigError, match="config must be an existing YAML file"):
            cli.parse(["--config", str(name)])


def test_numbers_are_those_of_yaml_1_2() -> None:
    text = "[1e-3, .5, 1., 1_000, 1.5e3, -3, +4, .inf, -.inf, 0.1, 123456789012345678]"
    assert safe_yaml.load(text, "") == [
        1e-3,
        0.5,
        1.0,
        1000,
        1500.0,
        -3,
        4,
        math.inf,
        -math.inf,
        0.1,
        123456789012345678,
    ]
    assert math.isnan(safe_yaml.load(".nan", ""))
    assert safe_yaml.load("[yes, off, true, ~, null, , x]".replace(", ,", ","), "") == [
        True,
        False,
        True,
        None,
        None,
        "x",
    ]


@pytest.mark.parametrize(
    "value", ["010", "1e-3", "yes", "", "~", "null", "1:30", "2001-01-01", "0x10", "1_0", "- x", "=", "a: b"]
)
def test_text_stays_text(value: str) -> None:
    text = safe_yaml.dump({"a": value})
    assert safe_yaml.load(text, "") == {"a": value} == yaml.safe_load(text)
    assert safe_yaml.load(safe_yaml.inline([value]), "") == [value]


@pytest.mark.parametrize(
    "text",
    [
        *(text for name, text in LONG.items() if name != "quoted"),
        "teacher: !!python/object/apply:os.getcwd []",
        "- a",
        "",
        "a: 1\0",
    ],
)
def test_a_report_reads_no_more_of_a_configuration(text: str, tmp_path: Path) -> None:
    """Of somebody else's run, whose folder holds what they like."""
    (tmp_path / "config.yaml").write_text(text)
    assert read_settings(tmp_path) == {}
