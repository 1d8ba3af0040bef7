"""Files that count as images, and the notice about those that do not."""

from __future__ import annotations

import os

import pytest

Image = pytest.importorskip("PIL.Image")
import pictures  # noqa: E402

from sftn_fast.config import ConfigError, DataConfig  # noqa: E402
from sftn_fast.data import verify as verify_module  # noqa: E402
from sftn_fast.data.decode import FORMATS  # noqa: E402
from sftn_fast.data.folders import MAX_DEPTH, class_names, image_files  # noqa: E402
from sftn_fast.data.ignored_files import ENDINGS, IgnoredFiles  # noqa: E402
from sftn_fast.data.image_files import find  # noqa: E402

SYSTEM = ("@eaDir", "#recycle", ".thumb", "__MACOSX", "lost+found", "$RECYCLE.BIN", ".ipynb_checkpoints", "@Recycle")


def make(root, classes=("cat", "dog")):
    for split in ("train", "val"):
        for name in classes:
            pictures.write(root / split / name / "a.png")
    return root


def find_in(root, name="folder"):
    return find(DataConfig(name, root=str(root), image_size=8))


def test_every_ending_that_pillow_has_for_what_we_decode():
    Image.init()
    theirs = {ending for ending, name in Image.registered_extensions().items() if name in (*FORMATS, "MPO")}
    assert theirs == ENDINGS


@pytest.mark.parametrize("name", ["folder", "imagenet", "tiny_imagenet"])
@pytest.mark.parametrize("ending", [".jfif", ".JPE", ".Jpg", ".TIF", ".webp", ".AVIF", ".jp2", ".apng", ".pbm"])
def test_endings_in_every_data_set(ending, name, tmp_path):
    make(tmp_path)
    pictures.write(tmp_path / "train" / "cat" / f"b{ending}", format="PNG")
    if name == "tiny_imagenet":
        pictures.write(tmp_path / "val" / "images" / f"v{ending}", format="PNG")
        (tmp_path / "val" / "val_annotations.txt").write_text(f"v{ending}\tdog\n")
    files = find_in(tmp_path, name)
    assert [path.name for path in files.train.paths] == ["a.png", f"b{ending}", "a.png"]
    assert files.class_names == ["cat", "dog"]
    if name == "tiny_imagenet":
        assert [path.name for path in files.test.paths] == [f"v{ending}"]


@pytest.mark.parametrize("place", ["train", "train/cat"])
def test_folders_of_a_system_are_left_out_and_named(place, tmp_path, capsys):
    make(tmp_path)
    for name in SYSTEM:
        pictures.write(tmp_path / place / name / "thumbnail.png")
    assert len(find_in(tmp_path).train.paths) == 2
    line = capsys.readouterr().err
    assert "ignored folders #recycle, $RECYCLE.BIN, .ipynb_checkpoints, .thumb, @Recycle and 3 more" in line
    assert verify_module.verify(tmp_path, workers=1)[0] == 4
    assert "ignored folders #recycle" not in capsys.readouterr().err  # printed once per process


@pytest.mark.parametrize("name", ["@home", "#1", "~old", "$dollar", "recycle", "thumbs", "_private", "-dash", "a b "])
def test_a_class_that_is_named_oddly_is_a_class(name, tmp_path, capsys):
    assert name in find_in(make(tmp_path, ("cat", name))).class_names
    assert "ignored" not in capsys.readouterr().err


def test_files_that_are_none_are_counted_by_their_endings(tmp_path, capsys):
    make(tmp_path)
    names = ["notes.txt", "more.TXT", "Thumbs.db", "desktop.ini", "a.heic", "b.heic", "c.heic", "README", ".DS_Store"]
    for name in names:
        (tmp_path / "train" / "cat" / name).write_bytes(b"")
    (tmp_path / "val" / "dog" / "._a.png").write_bytes(b"")
    pictures.write(tmp_path / "train" / "beside.png")
    find_in(tmp_path)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    expected = "8 files that are not images (.heic 3, .txt 2, .db 1, .ini 1, no ending 1), 2 hidden files, "
    assert f"{tmp_path}: ignored {expected}1 image in no class folder (beside.png)\n" == said


def test_nothing_left_out_is_not_said(tmp_path, capsys):
    find_in(make(tmp_path))
    assert capsys.readouterr().err == ""


def test_a_class_of_files_that_are_none_says_what_they_are(tmp_path):
    make(tmp_path)
    for split in ("train", "val"):
        (tmp_path / split / "dog" / "a.png").rename(tmp_path / split / "dog" / "a.heic")
    with pytest.raises(ConfigError, match=r"without images: dog \(ignored 1 file that is not an image \(.heic 1\)\)"):
        find_in(tmp_path)


def test_odd_names_do_not_reach_the_terminal_as_they_are(tmp_path, capsys):
    make(tmp_path, ("cat", "dog\x1b[31m\nred"))
    (tmp_path / "train" / "cat" / "x.\x1b[2J").write_bytes(b"")
    find_in(tmp_path)
    printed = "".join(capsys.readouterr())
    assert "\x1b" not in printed and r"dog\x1b[31m\nred 1 + 1" in printed


def test_folders_nested_too_deep(tmp_path, capsys):
    make(tmp_path)
    deep = tmp_path / "train" / "cat"
    for _ in range(MAX_DEPTH - 2):
        deep = deep / "x"
    pictures.write(deep / "deep.png")
    assert len(image_files(tmp_path / "train" / "cat")) == 2
    here = os.open(deep, os.O_RDONLY)
    for _ in range(300):
        os.mkdir("folder within", dir_fd=here)
        last, here = here, os.open("folder within", os.O_RDONLY, dir_fd=here)
        os.close(last)
    os.close(here)
    for call in (lambda: find_in(tmp_path), lambda: verify_module.verify(tmp_path, workers=1)):
        with pytest.raises(ConfigError, match=f"can't be read .folders are nested more than {MAX_DEPTH} deep") as error:
            call()
        assert "\n" not in str(error.value) and len(str(error.value)) < 700
    assert verify_module.main([str(tmp_path)]) == 2


def test_links_that_lead_to_millions_of_places(tmp_path):
    """Thirty folders, each with two links to the next, have a billion paths without a cycle."""
    for number in range(30):
        folder = tmp_path / "farm" / str(number)
        folder.mkdir(parents=True)
        for name in ("left", "right"):
            (folder / name).symlink_to(tmp_path / "farm" / str(number + 1), target_is_directory=True)
    pictures.write(tmp_path / "farm" / "30" / "a.png")
    with pytest.raises(ConfigError, match=r"links lead to .* by more than 100 paths"):
        image_files(tmp_path / "farm" / "0")


def test_one_rank_says_it(tmp_path, monkeypatch, capsys):
    make(tmp_path)
    (tmp_path / "train" / "cat" / "notes.txt").write_bytes(b"")
    monkeypatch.setenv("RANK", "1")
    find_in(tmp_path)
    assert "".join(capsys.readouterr()) == ""
    monkeypatch.setenv("RANK", "0")
    find_in(tmp_path)
    find_in(tmp_path)
    captured = capsys.readouterr()
    assert captured.err.count("ignored 1 file") == captured.out.count(": 2 classes") == 1


def test_discovery_asks_the_system_nothing_of_a_plain_file(tmp_path, monkeypatch):
    """A stat of each of a million files would take minutes on a network drive."""
    for number in range(50):
        (tmp_path / "train" / "cat" / f"{number}.png").parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "train" / "cat" / f"{number}.png").write_bytes(b"")
    asked = []
    stat = os.stat
    monkeypatch.setattr(os, "stat", lambda path, **options: asked.append(path) or stat(path, **options))
    ignored = IgnoredFiles()
    assert class_names(tmp_path / "train", ignored) == ["cat"]
    assert len(image_files(tmp_path / "train" / "cat", ignored)) == 50
    assert not [path for path in asked if str(path).endswith(".png")]
