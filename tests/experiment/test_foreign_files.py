"""A run writes into no folder with files of its names that it has not written: they may be the user's only copy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sftn_fast import report, train
from sftn_fast.config import ConfigError
from sftn_fast.engine import RunFolder
from sftn_fast.utils import run_files
from sftn_fast.utils.checksummed import seal_text
from sftn_fast.utils.foreign_files import is_run, refuse_foreign_files

NAMES = (*(name for name in run_files.OWN if name != "replaced"), "student/config.json", "student/notes.txt")
NAMES += ("replaced/old.txt", "seed0/teacher/model.safetensors", "seed7/images/1.png", "seed0/student/result.json")
RESULT = json.dumps({"name": "teacher", "seed": 0, "network": "resnet8", "last": {}})


def place(path: Path, text: str = "mine\n") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_the_users_is_named(tmp_path: Path, name: str) -> None:
    place(tmp_path / name)
    with pytest.raises(ConfigError, match=f"would overwrite {name.partition('/')[0]} there; choose") as caught:
        refuse_foreign_files(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [[], ["--dry-run"], ["--resume", "force"], ["--resume", "never"]])
def test_a_run_is_refused_before_anything_is_read_or_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    """With a recipe of the user's, which a run in this folder would replace by its own configuration."""
    monkeypatch.chdir(tmp_path)
    for name in ("config.yaml", "report.md", "results.csv", "student/config.json", "train.py"):
        place(tmp_path / name)
    place(tmp_path / "config.yaml", "base: demo  # my settings\ndata: {name: fake}\n")
    before = contents(tmp_path)
    assert train.main(["--config", "config.yaml", "--output", ".", *options]) == 2
    out, err = capsys.readouterr()
    assert err.count("\n") == 1 and err.endswith("--output NAME\n") and "1 classes" not in out
    assert all(name in err for name in ("config.yaml", "report.md", "results.csv", "student")) and "train.py" not in err
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["config.yml", "seed0.bak/a", "seeds/0", "students/a", "report.txt", "my report.md"])
def test_other_files_are_left_alone(tmp_path: Path, name: str) -> None:
    place(tmp_path / name)
    (tmp_path / "seed0" / "teacher").mkdir(parents=True)  # nothing to lose
    refuse_foreign_files(tmp_path)
    refuse_foreign_files(tmp_path / "new")
    refuse_foreign_files(tmp_path / name)  # a file, which the run itself refuses


@pytest.mark.parametrize("name", [".cache.7.tmp", ".tmp_cache", ".tmp_cache/file"])
def test_temporary_files_of_other_programs_are_kept(tmp_path: Path, name: str) -> None:
    place(tmp_path / name)
    with RunFolder(tmp_path):
        assert contents(tmp_path)[name] == "mine\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.yaml", seal_text("teacher: resnet8\n")),
        ("seed0/teacher/result.json", RESULT),
        ("seed3/distill-sftn-kd/checkpoints/step_000000001/state.pt", ""),
        ("seed3/distill-sftn-ab/init-ab/checkpoints/step_000000001/state.pt", ""),
        (".tmp_resume/resumed-from", "/elsewhere\n"),
    ],
)
def test_the_folder_of_a_run_is_recognised(tmp_path: Path, name: str, text: str) -> None:
    place(tmp_path / "report.md")
    assert not is_run(tmp_path)
    place(tmp_path / name, text)
    refuse_foreign_files(tmp_path)


@pytest.mark.parametrize("text", ["", "123 on a.b-c\n"])
def test_the_lock_of_a_run_that_wrote_nothing_else(tmp_path: Path, text: str) -> None:
    place(tmp_path / ".lock", text)
    refuse_foreign_files(tmp_path)


def test_a_recipe_made_of_a_runs_configuration_is_the_users(tmp_path: Path) -> None:
    place(tmp_path / "config.yaml", seal_text("epochs: 3\n").replace("3", "4"))
    with pytest.raises(ConfigError, match=r"overwrite config\.yaml"):
        refuse_foreign_files(tmp_path)


@pytest.mark.parametrize("name", ["report.md", "results.csv", "seed0/student/config.json"])
def test_a_report_leaves_such_a_folder_alone(tmp_path: Path, name: str) -> None:
    place(tmp_path / name)
    with pytest.raises(ConfigError, match="no finished training"):
        report.write(tmp_path)
    assert contents(tmp_path) == {name: "mine\n"}
