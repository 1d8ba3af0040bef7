"""The launcher's variables: those that agree are believed, all others refused in one line."""

from __future__ import annotations

import pytest

from sftn_fast import train, transfer
from sftn_fast.config import ConfigError
from sftn_fast.utils import launcher

VARIABLES = (*launcher.DEFAULTS, *launcher.NEEDED, "TORCHELASTIC_RESTART_COUNT")
TORCHRUN = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
TORCHRUN |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500", "TORCHELASTIC_RESTART_COUNT": "0"}


def set_variables(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str | None]) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        if value is not None:
            monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("variables", "world_size"),
    [
        ({}, 1),
        ({"WORLD_SIZE": ""}, 1),
        ({"WORLD_SIZE": "1"}, 1),
        ({"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}, 1),
        ({"RANK": "0"}, 1),
        ({"MASTER_ADDR": "localhost"}, 1),
        (TORCHRUN, 2),
        (TORCHRUN | {"RANK": "0", "LOCAL_RANK": "0"}, 2),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": None}, 2),
        (TORCHRUN | {"WORLD_SIZE": "4", "RANK": "3"}, 4),
    ],
)
def test_what_agrees_is_believed(variables, world_size, monkeypatch) -> None:
    set_variables(monkeypatch, variables)
    launcher.check()
    assert launcher.world_size() == world_size


WRONG = [
    ({"WORLD_SIZE": "2"}, "WORLD_SIZE is 2, but RANK and LOCAL_RANK and MASTER_ADDR and MASTER_PORT not set"),
    *((TORCHRUN | {name: None}, f"but {name} not set") for name in launcher.NEEDED),
    *((TORCHRUN | {name: ""}, f"but {name} not set") for name in launcher.NEEDED),
    *((TORCHRUN | {name: "two"}, name) for name in VARIABLES if name != "MASTER_ADDR"),
    *((TORCHRUN | {name: "-1"}, name) for name in VARIABLES if name != "MASTER_ADDR"),
    *((TORCHRUN | {name: "9" * 5000}, name) for name in VARIABLES if name != "MASTER_ADDR"),
    *((TORCHRUN | {name: "\u0662"}, name) for name in launcher.DEFAULTS),
    ({"RANK": "1"}, "RANK is 1, which must be from 0 to below WORLD_SIZE, 1, which is not set"),
    (TORCHRUN | {"RANK": "2"}, "RANK is 2"),
    (TORCHRUN | {"WORLD_SIZE": "0"}, "WORLD_SIZE, 0"),
    (TORCHRUN | {"WORLD_SIZE": "1"}, "RANK is 1"),
    (TORCHRUN | {"LOCAL_RANK": "2"}, "LOCAL_RANK is 2 of LOCAL_WORLD_SIZE 2"),
    (TORCHRUN | {"LOCAL_WORLD_SIZE": "3"}, "LOCAL_WORLD_SIZE 3"),
    (TORCHRUN | {"LOCAL_WORLD_SIZE": "0"}, "LOCAL_WORLD_SIZE 0"),
    ({"LOCAL_RANK": "1"}, "LOCAL_RANK is 1"),
    (TORCHRUN | {"MASTER_PORT": "0"}, "MASTER_PORT must be from 1"),
    (TORCHRUN | {"MASTER_PORT": "70000"}, "MASTER_PORT must be from 1"),
]


@pytest.mark.parametrize(("variables", "says"), WRONG)
def test_what_does_not_agree_is_refused(variables, says, monkeypatch, capsys) -> None:
    set_variables(monkeypatch, variables)
    with pytest.raises(ConfigError) as caught:
        launcher.check()
    assert says in str(caught.value) and "torchrun" in str(caught.value)
    assert train.main(["--print_config"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "error: " in err and err.count("\n") == 1 and len(err) < 300


def test_one_process_is_not_started_twice(monkeypatch, capsys) -> None:
    set_variables(monkeypatch, TORCHRUN)
    assert transfer.main(["NETWORK", "--data.name", "fake"]) == 2
    assert "start it without torchrun" in capsys.readouterr().err
