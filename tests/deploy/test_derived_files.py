"""Files made from a network's weights: what happens to them when other weights replace these."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sftn_fast import models, transfer
from sftn_fast.export import formats
from sftn_fast.export import main as export_main
from sftn_fast.predict.command import main as predict_main
from sftn_fast.utils.derived_files import RECORD, SUFFIXES

PREPROCESSING = {"resize": 8, "crop": 8, "mean": [0.5] * 3, "std": [0.25] * 3, "white": None}
NETWORK = {"config.json", "model.safetensors"}


def save(folder: Path, seed: int) -> None:
    torch.manual_seed(seed)
    meta = {"preprocessing": PREPROCESSING, "image_size": 8}
    models.save(models.build("resnet8", num_classes=10), folder, meta=meta)


def export(folder: Path, *options: str) -> None:
    assert export_main([str(folder), "--format", "state_dict", *options]) == 0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(tmp_path / "net", 0)
    return tmp_path / "net"


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - NETWORK


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("sftn_fast")]


@pytest.mark.parametrize("format_name", ["torchscript", "state_dict"])
def test_deployed_files_go_with_their_weights(format_name, folder, caplog):
    (folder / "sub").mkdir()
    assert export_main([str(folder), "--format", format_name]) == 0
    assert export_main([str(folder), "--format", format_name, "--output", str(folder / "sub" / "mine.pt")]) == 0
    suffix = formats.WRITERS[format_name].suffix
    save(folder, 0)  # the same weights: what is made from them stays
    assert names(folder) == {f"deployed{suffix}", "sub/mine.pt", RECORD} and warnings(caplog) == []
    save(folder, 1)
    assert names(folder) == set()
    (line,) = warnings(caplog)
    assert f"deployed{suffix}, sub/mine.pt removed from {folder}" in line and "\n" not in line


def test_a_file_that_is_not_ours_any_more_is_named_and_kept(folder, tmp_path, caplog):
    for name in ("changed", "copied", "linked", "gone"):
        export(folder, "--output", str(folder / f"{name}.safetensors"))
    (folder / "changed.safetensors").write_bytes(b"of the user")
    (folder / "copied.safetensors").rename(folder / "renamed.safetensors")
    shutil.move(folder / "linked.safetensors", tmp_path / "target")
    (folder / "linked.safetensors").symlink_to(tmp_path / "target")
    (folder / "gone.safetensors").unlink()
    (folder / "notes.txt").write_text("not of weights")
    save(folder, 1)
    kept = {"changed.safetensors", "linked.safetensors", "renamed.safetensors"}
    assert names(folder) == kept | {"notes.txt", RECORD} and (tmp_path / "target").is_file()
    (line,) = warnings(caplog)
    assert line.startswith(f"{', '.join(sorted(kept))} kept in {folder}, but may be made from weights")


@pytest.mark.parametrize("content", ["", "[]", "{", '{"files": []}', '{"files": {"notes.txt": {"of": 1}}}'])
def test_a_damaged_record_removes_nothing(content, folder, caplog):
    export(folder)
    (folder / RECORD).write_text(content)
    save(folder, 1)
    assert names(folder) == {"deployed.safetensors", RECORD}
    assert "deployed.safetensors kept in" in warnings(caplog)[0]


def test_a_record_reaches_no_file_outside_its_folder(folder, tmp_path):
    export(folder)
    record = json.loads((folder / RECORD).read_text())
    shutil.copy(folder / "deployed.safetensors", tmp_path / "precious")
    (entry,) = record["files"].values()
    (folder / "up").symlink_to(tmp_path)
    outside = ("../precious", str(tmp_path / "precious"), "up/precious", "model.safetensors")
    (folder / RECORD).write_text(json.dumps({"files": dict.fromkeys(outside, entry)}))
    save(folder, 1)
    assert (tmp_path / "precious").is_file() and models.load(folder)


def test_files_elsewhere_are_not_recorded(folder, tmp_path):
    export(folder, "--output", str(tmp_path / "x.safetensors"))
    assert names(folder) == set()


def test_results_are_named_and_kept(folder, tmp_path, caplog, capsys):
    (tmp_path / "images").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "images" / "a.png")
    assert predict_main([str(folder), str(tmp_path / "images"), "--output", str(folder / "found")]) == 0
    options = "--data.name fake --data.train_size 32 --epochs 1 --batch_size 16"
    assert transfer.main([str(folder), *options.split(), "--output", str(folder / "moved")]) == 0
    save(folder, 1)
    assert names(folder) == {"found", "moved", RECORD}
    assert warnings(caplog)[-1].startswith(f"found, moved kept in {folder}")


def test_every_format_is_known_by_its_suffix():
    assert {Path(f"x{each.suffix}").suffix for each in formats.WRITERS.values()} <= {*SUFFIXES}


@pytest.mark.parametrize("program", ["export", "transfer plugin", "transfer image"])
def test_an_output_that_is_read_is_refused(program, folder, tmp_path, capsys):
    read = tmp_path / "data" / "read.py"
    read.parent.mkdir()
    read.write_text("")
    options = ["--output", str(read), "--plugins", str(read)]
    if program == "export":
        assert export_main([str(folder), *options, "--overwrite", "--format", "state_dict"]) == 2
    else:
        data = ["--data.name", "fake", "--data.train_size", "32", "--data.root", str(read.parent)]
        given = options if program == "transfer plugin" else options[:2]
        assert transfer.main([str(folder), *data, *given, "--overwrite", "true"]) == 2
    assert "output must be another file than those" in capsys.readouterr().err and read.read_text() == ""
