"""Archives of sessions on a lent GPU: packed while programs write, damaged, read twice, of two GPUs."""

from __future__ import annotations

import json
import re
import sys
import tarfile
from pathlib import Path

import pytest
import torch

from bench import record
from bench.gpu import archive, page
from bench.gpu import read as reading


def names_in(path: Path) -> list[str]:
    with tarfile.open(path) as opened:
        return opened.getnames()


def finished(
    tmp_path: Path,
    device: str = "cuda",
    ratio: float = 4.0,
    *,
    run: str = "first",
    processor: str = "GPU X",
    date: str = "2026-12-01",
    outcomes: list[dict] | None = None,
) -> Path:
    """Write the archive of a session that measured one case."""
    folder = tmp_path / "session"
    about = {"date": date, "device": device, "processor": processor, "driver": "580.1", "graphs": True}
    about |= {"threads": 16, "torch": torch.__version__}
    times = {"n": 3, "p20": 1.0, "p80": 3.0, "peak_bytes": 2**20, "launches": 1, "bandwidth_share": None}
    rows = [
        {"case": "KD", "implementation": "eager", "p50": 2.0 * ratio, "ratio": 1.0, "graph": False, **times},
        {"case": "KD", "implementation": "ours", "p50": 2.0, "ratio": ratio, "graph": True, **times},
    ]
    record.save_rows(f"logits-{device}-graph", about, rows, folder / "records")
    (folder / "ncu.md").write_text("| kernel |\n")
    if outcomes is None:
        outcomes = [{"name": "table", "result": "ok", "seconds": 20.0, "detail": "90 of 90 cases right"}]
    said = {"run": run, "device": device, "date": date, "conditions": about, "outcomes": outcomes}
    (folder / "session.json").write_text(json.dumps(said))
    archive.write(folder, tmp_path / "first.tar.gz")
    return tmp_path / "first.tar.gz"


def test_an_archive_is_read_back(tmp_path):
    results = tmp_path / "results"
    assert reading.read(finished(tmp_path), results) == ["logits-cuda-graph"]
    about, rows = record.read("logits-cuda-graph", results)
    assert (about["processor"], about["driver"], about["torch"]) == ("GPU X", "580.1", torch.__version__)
    assert [row["ratio"] for row in rows] == [1.0, 4.0]
    assert "| KD | eager\\* |" in (results / "logits-cuda-graph.md").read_text()
    assert (results / "logits-cuda-graph.png").stat().st_size > 5000
    assert "90 of 90 cases right" in (results / "session-cuda-first.md").read_text()
    assert (results / "kernels-cuda.md").exists()
    shown = page.measured(results)
    assert "| KD | 8 us\\* | - | - | 2 us | **4.0** |" in shown and "GPU X, driver 580.1" in shown
    assert "have run on GPU X with driver 580.1 on 2026-12-01" in page.status(results)


def test_an_archive_is_read_twice(tmp_path):
    source, results = finished(tmp_path), tmp_path / "results"
    reading.read(source, results)
    first = {path.name: path.read_bytes() for path in results.iterdir() if path.suffix != ".png"}
    reading.read(source, results)
    assert {path.name: path.read_bytes() for path in results.iterdir() if path.suffix != ".png"} == first


def test_a_repeated_part_leaves_what_was_said_of_the_others(tmp_path):
    results = tmp_path / "results"
    reading.read(finished(tmp_path), results)
    again = {"name": "ncu", "result": "ok", "seconds": 9.0, "detail": "12 kernels"}
    reading.read(finished(tmp_path, date="2026-12-02", outcomes=[again]), results)
    outcomes = json.loads((results / "session-cuda-first.json").read_text())["outcomes"]
    assert [outcome["detail"] for outcome in outcomes] == ["12 kernels", "90 of 90 cases right (2026-12-01)"]


def test_a_second_run_alone_is_a_status(tmp_path):
    reading.read(finished(tmp_path, run="second", outcomes=[]), tmp_path / "results")
    said = page.status(tmp_path / "results")
    assert "have run on GPU X with driver 580.1 on 2026-12-01.** Their results were not compared there. [" in said


def refused(monkeypatch, capsys, *words: object) -> str:
    monkeypatch.setattr(sys, "argv", ["read", *map(str, words)])
    with pytest.raises(SystemExit, match="2"):
        reading.main()
    return capsys.readouterr().err.splitlines()[-1]


def test_figures_of_two_gpus_are_not_mixed(tmp_path, monkeypatch, capsys):
    results, other = tmp_path / "results", finished(tmp_path / "other", processor="GPU Y")
    said = refused(monkeypatch, capsys, finished(tmp_path), other, "--results", results)
    assert f"{other}: measured on GPU Y, and {results} has figures of GPU X; " in said
    assert not results.exists()
    reading.read(finished(tmp_path), results)
    (results / "session-cuda-first.json").unlink()  # the records alone say it too
    assert "has figures of GPU X" in refused(monkeypatch, capsys, other, "--results", results)
    assert json.loads((results / "logits-cuda-graph.json").read_text())["conditions"]["processor"] == "GPU X"


@pytest.mark.parametrize("damage", ["half a record", "no rows", "of a CPU", "no session", "an outcome", "flipped"])
def test_one_damaged_archive_leaves_the_results_alone(damage, tmp_path, monkeypatch, capsys):
    good, bad, results = finished(tmp_path), finished(tmp_path / "bad"), tmp_path / "results"
    folder = tmp_path / "bad" / "session"
    if damage == "half a record":
        path = folder / "records" / "logits-cuda-graph.json"
        path.write_text(path.read_text()[:300])
    elif damage == "no rows":
        (folder / "records" / "logits-cuda-graph.json").write_text('{"conditions": {}, "results": [{"p50": 1}]}')
    elif damage == "of a CPU":
        record.save_rows("logits-cpu", {}, [], folder / "records")
    elif damage == "no session":
        (folder / "session.json").write_text("[]")
    elif damage == "an outcome":
        (folder / "session.json").write_text((folder / "session.json").read_text().replace('"seconds"', '"hours"'))
    archive.write(folder, bad)
    if damage == "flipped":
        content = bytearray(bad.read_bytes())
        content[len(content) // 2 : len(content) // 2 + 40] = bytes(40)
        bad.write_bytes(content)
    said = refused(monkeypatch, capsys, good, bad, "--results", results)
    assert str(bad) in said and re.search("no archive of a session|is no record|is not of the session's device", said)
    assert not results.exists()


def test_results_that_can_not_be_written_are_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("mine")
    assert str(tmp_path / "file") in refused(monkeypatch, capsys, finished(tmp_path), "--results", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_files_may_vanish_while_they_are_packed(tmp_path, monkeypatch):
    folder = tmp_path / "session"
    record.save_rows("logits-cuda", {}, [], folder / "records")
    for name in ("session.json", "gone.log", "stays.log"):
        (folder / name).write_text("{}")
    opened = Path.open

    def open_or_lose(path: Path, *mode: str):
        if path.name == "gone.log":
            path.unlink()
        return opened(path, *mode)

    monkeypatch.setattr(Path, "open", open_or_lose)
    assert archive.write(folder, tmp_path / "a.tar.gz") == []
    monkeypatch.undo()
    assert names_in(tmp_path / "a.tar.gz") == ["session.json", "records/logits-cuda.json", "stays.log"]


def test_without_a_record_the_pages_say_that_no_gpu_has_run(tmp_path):
    assert page.measured(tmp_path) == page.NONE and page.status(tmp_path) == page.BEFORE


def test_one_command_reads_and_redraws(tmp_path, monkeypatch, capsys):
    results, refreshed = tmp_path / "results", []
    monkeypatch.setattr(record, "RESULTS", results)
    monkeypatch.setattr(reading, "refresh", lambda: refreshed.append(sorted(path.name for path in results.iterdir())))
    monkeypatch.setattr(sys, "argv", ["read", str(finished(tmp_path)), "--results", str(results)])
    reading.main()
    assert "logits-cuda-graph.json" in refreshed[0]
    assert "logits-cuda-graph" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["rehearsal", "cut", "text", "nothing", "other"])
def test_what_is_no_record_of_a_gpu_is_refused(damage, tmp_path, monkeypatch, capsys):
    source, results = finished(tmp_path, "cpu" if damage == "rehearsal" else "cuda"), tmp_path / "results"
    monkeypatch.setattr(record, "RESULTS", results)
    if damage == "cut":
        source.write_bytes(source.read_bytes()[:200])
    elif damage == "text":
        source.write_text("no archive")
    elif damage == "nothing":
        source.unlink()
    elif damage == "other":
        with tarfile.open(source, "w:gz") as other:
            other.add(__file__, "session.py")
    monkeypatch.setattr(sys, "argv", ["read", str(source), "--results", str(results)])
    with pytest.raises(SystemExit, match="2"):
        reading.main()
    said = capsys.readouterr().err.splitlines()[-1]
    assert str(source) in said and ("rehearsal" in said if damage == "rehearsal" else "no archive of a session" in said)
    assert not results.exists()


def test_an_archive_stays_small_and_leaves_half_files_to_nobody(tmp_path, monkeypatch):
    folder = tmp_path / "session"
    record.save_rows("logits-cuda", {}, [], folder / "records")
    (folder / "session.json").write_text("{}")
    (folder / "long.log").write_text("x" * 5000)
    (folder / "short.log").write_text("x" * 500)
    (folder / "weights.safetensors").write_bytes(b"x")
    monkeypatch.setattr(archive, "LIMIT", 2000)
    assert archive.write(folder, tmp_path / "a.tar.gz") == ["long.log"]
    names = ["session.json", "records/logits-cuda.json", "short.log"]
    assert names_in(tmp_path / "a.tar.gz") == names
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar.gz", "session"]
