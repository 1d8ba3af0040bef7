"""The checksum that identifies image files which are decoded on demand."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

pytest.importorskip("PIL.Image")
pytest.importorskip("torchvision.io")

import pictures

from sftn_fast import data
from sftn_fast.config import DataConfig
from sftn_fast.data import file_contents
from sftn_fast.data.file_contents import digest_of_files


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    paths = [tmp_path / f"{number}.bmp" for number in range(7)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]) * 1000)
    return list(map(str, paths))


def test_one_byte_of_one_file_counts(files: list[str]) -> None:
    before = digest_of_files(files)
    content = bytearray(Path(files[4]).read_bytes())
    content[500] ^= 1
    Path(files[4]).write_bytes(content)
    assert digest_of_files(files) != before


def test_names_and_dates_do_not_count(files: list[str], tmp_path: Path) -> None:
    before = digest_of_files(files)
    os.utime(files[0], (0, 0))
    moved = [shutil.copyfile(path, tmp_path / f"other{number}") for number, path in enumerate(files)]
    assert digest_of_files(files) == before == digest_of_files(list(map(str, moved)))
    assert digest_of_files(files[::-1]) != before


@pytest.mark.parametrize(("changed", "noticed"), [(4, True), (5, False)])
def test_of_many_bytes_every_nth_file_is_read(
    changed: int, noticed: bool, files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_contents, "MAX_BYTES_READ", 3500)  # of 7000: every second file
    before = digest_of_files(files)
    Path(files[changed]).write_bytes(b"x" * 1000)
    assert (digest_of_files(files) != before) == noticed
    Path(files[changed]).write_bytes(b"x" * 1001)  # the sizes are all compared
    assert digest_of_files(files) != before


def test_what_can_not_be_read_is_passed_over(files: list[str], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.bmp")
    (tmp_path / "nowhere.bmp").symlink_to(tmp_path / "gone")
    odd = [*files, str(tmp_path / "pipe.bmp"), str(tmp_path / "nowhere.bmp")]
    assert digest_of_files(odd) == digest_of_files(odd) != digest_of_files(files)


@pytest.mark.parametrize("split", ["train", "val"])
def test_other_pixels_under_the_same_names(split: str, tmp_path: Path) -> None:
    for part, count in (("train", 3), ("val", 2)):
        for name in ("a", "b"):
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(count):
                pictures.write(tmp_path / part / name / f"{number}.bmp", pictures.noise((16, 16), seed=number))

    def fingerprint() -> dict[str, str | int]:
        config = DataConfig("folder", root=str(tmp_path), image_size=16, loader="torchvision", workers=1)
        return data.build(config, seed=0, batch_size=2, device="cpu").fingerprint()

    before = fingerprint()
    assert fingerprint() == before
    pictures.write(tmp_path / split / "b" / "0.bmp", pictures.noise((16, 16), seed=99))
    assert {key for key, value in fingerprint().items() if before[key] != value} == {"files"}
