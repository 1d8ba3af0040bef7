"""skip.txt: training skips exactly the files that `verify` lists, whatever their names, also after edits by a user."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("PIL.Image")
import pictures

from sftn_fast.config import ConfigError, DataConfig
from sftn_fast.data import verify as verify_module
from sftn_fast.data.image_files import find
from sftn_fast.data.skip_list import read_skip_list, write_names

ODD = [
    "two\nlines.png",
    "carriage\rreturn.png",
    "carriage at the end\r\n.png",
    " leading.png",
    "blank before the ending .png",
    '"quoted".png',
    "#comment.png",
    "\ufeffmark.png",
    "ünïcode 画.png",
    "line\u2028separator.png",
    "back\\slash.png",
    "\x1b[31m.png",
    os.fsdecode(b"caf\xe9.png"),
    os.fsdecode(b"\xff\xfe\xe9.png"),
    "\\n.png",
    "null.png",
]


def make(root):
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            pictures.write(root / split / name / "fine.png")
    return root


def find_in(root):
    return find(DataConfig("folder", root=str(root), image_size=8))


def names_of(files):
    return {path.name for path in files.train.paths}


def test_what_verify_lists_training_leaves_out(tmp_path, capsys):
    make(tmp_path)
    for name in ODD:
        pictures.damaged(tmp_path / "train" / "cat" / "whole.png", "empty").rename(tmp_path / "train" / "cat" / name)
    # Also in ROOT itself, where the line begins with the name.
    for name in ODD:
        pictures.damaged(tmp_path / "whole.png", "empty").rename(tmp_path / name)
    assert verify_module.main([str(tmp_path), "--workers", "1"]) == 1
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2 * len(ODD) + 1
    listed = read_skip_list(tmp_path)
    assert listed == {folder / name for name in ODD for folder in (tmp_path, tmp_path / "train" / "cat")}
    assert names_of(find_in(tmp_path)) == {"fine.png"}
    said = capsys.readouterr().err
    assert f"images skipped, as listed in {tmp_path / 'skip.txt'}: {len(ODD)}\n" in said
    assert "match no image" not in said


EDITED = {
    "a mark": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "Windows' lines": lambda text: text.replace("\n", "\r\n").encode(),
    "Windows' lines and a mark": lambda text: b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode(),
    "UTF-16": lambda text: text.encode("utf-16"),
    "UTF-16, big-endian": lambda text: b"\xfe\xff" + text.encode("utf-16-be"),
    "UTF-16 without its mark": lambda text: text.encode("utf-16-le"),
    "trailing blanks": lambda text: text.replace("\n", "  \t\n").encode(),
    "no end of the last line": lambda text: text.rstrip("\n").encode(),
    "empty lines and comments": lambda text: ("# damaged\n\n" + text.replace("\n", "\n\n#\n")).encode(),
}


@pytest.mark.parametrize("kind", EDITED)
def test_a_list_that_was_edited(kind, tmp_path, capsys):
    make(tmp_path)
    for name in ("bad.png", "schlecht ü.png"):
        pictures.damaged(tmp_path / "train" / "cat" / name, "empty")
    text = "train/cat/bad.png\ntrain/cat/schlecht ü.png\n"
    (tmp_path / "skip.txt").write_bytes(EDITED[kind](text))
    assert names_of(find_in(tmp_path)) == {"fine.png"}
    said = capsys.readouterr().err
    assert f"images skipped, as listed in {tmp_path / 'skip.txt'}: 2\n" in said and "match no image" not in said


def test_lines_that_match_nothing_are_said_and_not_counted(tmp_path, capsys):
    make(tmp_path)
    pictures.damaged(tmp_path / "train" / "cat" / "bad.png", "empty")
    pictures.write(tmp_path / "elsewhere" / "kept.png")
    lines = ["train/cat/bad.png", "train/cat/gone.png", "train/cat", "train\\cat\\bad.png", "elsewhere/kept.png"]
    (tmp_path / "skip.txt").write_text("\n".join([*lines, "train/cat/bad.png", '"unfinished']))
    find_in(tmp_path)
    said = capsys.readouterr().err
    assert f"images skipped, as listed in {tmp_path / 'skip.txt'}: 1\n" in said
    assert r'lists 4 paths that match no image: "unfinished, train/cat, train/cat/gone.png, train\cat\bad.png' in said


def test_an_absolute_path_and_one_by_way_of_a_dot(tmp_path):
    make(tmp_path)
    for name in ("a.png", "b.png"):
        pictures.damaged(tmp_path / "train" / "cat" / name, "empty")
    (tmp_path / "skip.txt").write_text(f"{tmp_path}/train/cat/a.png\n./train/cat/b.png\n")
    assert names_of(find_in(tmp_path)) == {"fine.png"}


@pytest.mark.parametrize("kind", ["folder", "half a character of UTF-16"])
def test_a_list_that_can_not_be_read(kind, tmp_path):
    make(tmp_path)
    if kind == "folder":
        (tmp_path / "skip.txt").mkdir()
    else:
        (tmp_path / "skip.txt").write_bytes(b"\xff\xfea\0b")
    with pytest.raises(ConfigError, match=r"skip.txt can't be read \("):
        find_in(tmp_path)


def test_plain_names_stand_as_they_are(tmp_path):
    plain = ["train/cat/a b.png", "train/cat/ü-画.png", "train/#1/x.png", 'train/"a".png', "train/it's.png"]
    assert write_names(plain).decode().splitlines() == plain


def test_what_a_killed_check_left_is_removed(tmp_path):
    pictures.write(tmp_path / "a.png")
    (tmp_path / ".skip.txt.123.tmp").write_text("half a li")
    assert verify_module.main([str(tmp_path), "--workers", "1"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
