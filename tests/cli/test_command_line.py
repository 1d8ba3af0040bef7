"""``--help``: every key with its meaning, type, limits and default, in an order that never changes."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable

import pytest

from sftn_fast import __main__ as verbs
from sftn_fast import cli
from sftn_fast.cli.keys import keys_of, name_type, neutral_keys
from sftn_fast.config import Config, ConfigError, TransferConfig
from sftn_fast.utils import safe_yaml

PROGRAMS = {
    "train": (Config, lambda: cli.parse(["--help"])),
    "transfer": (TransferConfig, lambda: cli.parse_transfer(["--help"], "Train a classifier.")),
}


@pytest.fixture(params=PROGRAMS)
def program(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """A program's keys, and a function that prints its help."""
    cls, show = PROGRAMS[request.param]
    monkeypatch.setenv("COLUMNS", "100")

    def printed() -> str:
        with pytest.raises(SystemExit) as left:
            show()
        assert left.value.code == 0
        return capsys.readouterr().out

    return keys_of(cls), printed


def entries(text: str) -> dict[str, str]:
    """The text below each option, in one line."""
    found = re.findall(r"^  (-.+)\n((?: {8}.+\n)+)", text, re.MULTILINE)
    assert len(found) == len(dict(found))
    return {head: " ".join(body.split()) for head, body in found}


def test_every_key_has_its_meaning_type_and_default(program: tuple[dict, Callable[[], str]]) -> None:
    keys, show = program
    shown = entries(show())
    for name, key in keys.items():
        if name == "network":  # given without its name
            continue
        about = shown[f"--{name} {name.rpartition('.')[2].upper()}"]
        meaning, _, rest = about.rpartition(" (")
        assert rest == f"{name_type(key.type)}; default: {safe_yaml.inline(key.default)})"
        assert len(meaning) > 10 and meaning.endswith("."), meaning


def test_the_order_is_that_of_the_configuration(program: tuple[dict, Callable[[], str]]) -> None:
    keys, show = program
    first, second = show(), show()
    assert first == second
    options = re.findall(r"^  --([\w.]+) ", first.partition("\nother options:")[2], re.MULTILINE)
    options = [name for name in options if name in keys]
    groups = list(dict.fromkeys(key.group for key in sorted(keys.values(), key=lambda key: bool(key.group))))
    places = {name: (groups.index(key.group), number) for number, (name, key) in enumerate(keys.items())}
    assert len(options) > 10 and options == sorted(options, key=lambda name: places[name])


def test_no_line_is_wider_than_the_terminal(program: tuple[dict, Callable[[], str]]) -> None:
    assert max(map(len, program[1]().splitlines())) <= 100


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("epochs", "whole number at least 1"),
        ("seeds", "list of distinct numbers from 0 on"),
        ("stages", "list of {teacher, early, soteacher, sftn, student, distill, collaborate}"),
        ("stage_epochs", "{teacher|early|soteacher|sftn|student|distill|collaborate: whole number at least 1}"),
        ("plugins", "list of paths"),
        ("methods", "list of texts"),
        ("output", "path"),
        ("teacher_file", "path or null"),
        ("teacher", "text"),
        ("devices", "whole number at least 1, list of texts or all"),
        ("resume", "path, auto, must, never or force"),
        ("data.image_size", "whole number from 8 to 512 or null"),
        ("data.download", "{true, false}"),
        ("data.flip", "{true, false, null}"),
        ("optim.lr", "number greater than 0 or null"),
        ("optim.momentum", "number at least 0 and less than 1"),
        ("optim.milestones", "list of increasing epochs from 1 on or null"),
        ("sftn.direction", "{teacher_to_branch, branch_to_teacher}"),
        ("engine.device", "auto, cpu, cuda or cuda:N"),
        ("engine.threads", "whole number from 1 to 1024, auto or null"),
        ("engine.channels_last", "{true, false, auto}"),
    ],
)
def test_how_a_type_is_shown(name: str, shown: str) -> None:
    assert name_type(keys_of(Config)[name].type) == shown


def test_entries_of_a_dict_are_options() -> None:
    config = cli.parse(["--stage_epochs.teacher", "3", "--stage_epochs.sftn=4"])[0]
    assert config.stage_epochs == {"teacher": 3, "sftn": 4}
    config = cli.parse(["--stage_epochs.'teacher'", "3"])[0]
    assert config.stage_epochs == {"teacher": 3}


def test_a_list_in_a_dict_needs_no_brackets() -> None:
    for value in ("0.9,0.95", "[0.9,0.95]", "[0.9, 0.95]"):
        config, _ = cli.parse(["--optim.name", "adamw", "--optim.arguments.betas", value])
        assert config.optim.arguments == {"betas": (0.9, 0.95)}


def test_neutral_keys_are_keys() -> None:
    assert neutral_keys(Config).keys() < keys_of(Config).keys()
    assert {"output", "data.root", "engine.threads"} < neutral_keys(Config).keys()
    assert not {"epochs", "seeds", "stages", "optim.lr"} & neutral_keys(Config).keys()


@pytest.mark.parametrize("typed", ["--seeds 0 1 2", "--seeds 0,1,2", "--seeds [0,1,2]", "--seeds=0,1,2"])
def test_numbers_as_people_type_them(typed: str) -> None:
    assert cli.parse(typed.split())[0].seeds == (0, 1, 2)


def test_lists_without_brackets_elsewhere() -> None:
    argv = "--optim.milestones 150,180,210 --stages teacher,distill --seeds 7 --epochs 240 --route.epochs 1 2"
    config = cli.parse(argv.split())[0]
    assert config.optim.milestones == (150, 180, 210) and config.stages == ("teacher", "distill")
    assert config.seeds == (7,) and config.epochs == 240 and config.route.epochs == (1, 2)
    config = cli.parse(["--stages", "student", "--methods", "[kd=1,at=1000]", "--optim.milestones", "null"])[0]
    assert config.stages == ("student",) and config.optim.milestones is None


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--seeds 0,x", "seeds must be"),
        ("--seeds 0,1 teacher", "teacher"),
        ("--epochs 2 3", "3"),
        ("--seeds 0 0", "seeds must be distinct"),
        ("--stages teacher,studnt", "stages must be"),
        ("--seeds 0,,1", "seeds must be"),
    ],
)
def test_lists_that_are_refused(argv: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cli.parse(argv.split())


@pytest.mark.parametrize(
    "verb", ["train", "report", "compare", "predict", "export", "transfer", "verify", "completion"]
)
def test_the_usage_has_the_name_that_was_called(verb, capsys, monkeypatch):
    main = importlib.import_module(f"sftn_fast.{verb}").main
    for caller, call in (
        ("python -m sftn_fast.", main),
        ("sftn ", lambda argv: verbs.main([verb, *argv])),
        ("python -m sftn_fast ", lambda argv: verbs.main([verb, *argv])),
    ):
        monkeypatch.setattr("sys.argv", ["sftn_fast/__main__.py" if caller == "python -m sftn_fast " else "bin/sftn"])
        with pytest.raises(SystemExit):
            call(["--help"])
        assert capsys.readouterr().out.startswith(f"usage: {caller}{verb} ")


@pytest.mark.parametrize(("value", "fault"), [("9" * 20, "a whole number of 20 digits"), ("!!x 1", "the tag !!x")])
def test_what_was_typed_has_no_lines(value, fault):
    with pytest.raises(ConfigError, match=f"^seeds: {fault}"):
        cli.parse(["--seeds", value])
