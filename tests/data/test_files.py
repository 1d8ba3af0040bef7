from __future__ import annotations

import fcntl
import threading

import pytest

from sftn_fast.data.files import exclusive


def test_the_folder_is_held_until_the_end_and_nothing_is_left(tmp_path):
    folder = tmp_path / "a" / "b"
    with exclusive(folder) as scratch:
        (scratch / "half").write_text("written")
        with (folder / ".lock").open("w") as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with (folder / ".lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert [path.name for path in folder.iterdir()] == [".lock"]


def test_a_folder_that_another_run_holds_is_waited_for(tmp_path):
    def enter():
        with exclusive(tmp_path):
            entered.set()

    entered, waiting = threading.Event(), threading.Thread(target=enter)
    with exclusive(tmp_path):
        waiting.start()
        assert not entered.wait(0.3)
    assert entered.wait(30)
    waiting.join()


def test_an_error_releases_the_folder(tmp_path):
    with pytest.raises(RuntimeError, match="no network"), exclusive(tmp_path):
        raise RuntimeError("no network")
    with exclusive(tmp_path):
        assert len(list(tmp_path.iterdir())) == 2
