"""The real libraries, offline: what they have recorded, read back as they read it."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engine.stubs import Data, StoppingLoader, run_fit

from sftn_fast.loggers import RunInfo, Services, checks

PARAMETERS = {"optim.lr": 0.05, "stages": ["teacher"], "output": "x" * 7000, "data.white": None}


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the libraries out of the home folder and off the network, and their settings out of the environment."""
    for name in ("WANDB_API_KEY", "WANDB_DIR", "WANDB_PROJECT", "MLFLOW_TRACKING_URI", "TRACKIO_SPACE_ID"):
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("MLFLOW_DISABLE_TELEMETRY", "MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"):
        monkeypatch.setenv(name, "1" if "HTTP" in name else "true")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "TRACKIO_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))


class Crash(Exception):
    pass


def train_twice(root: Path, name: str) -> list[dict[str, Any]]:
    """Train until a crash, resume to the end, and return the records of the training."""
    (root / "later").mkdir(parents=True)
    folder = root / "seed0" / "teacher"
    folder.mkdir(parents=True)
    checks.check([name], root)
    checks.prepare([name], root)
    for stop in (15, None):
        data = Data()
        if stop is not None:
            data.train = StoppingLoader(data.train, stop, Crash)
        else:  # the library names its folders by the second
            os.environ["WANDB_DIR"] = str(root / "later")
        info = RunInfo(root.name, "seed0/teacher", "teacher", root, folder, PARAMETERS)
        try:
            with Services([name]).open(info) as run:
                result = run_fit(folder, services=run, data=data, engine={"log_every": 2})
                run.results({"top1_last": result.last["test_top1"]})
                run.pictures([picture(root)])
        except Crash:
            assert stop is not None
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def picture(root: Path) -> Path:
    image = pytest.importorskip("PIL.Image")
    image.new("RGB", (4, 4)).save(root / "report.png")
    return root / "report.png"


def test_mlflow(tmp_path, caplog):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    pytest.importorskip("sqlalchemy")
    root = tmp_path / "my run"
    records = train_twice(root, "mlflow")
    assert not caplog.records
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{root}/mlflow/mlflow.db")
    experiment = client.get_experiment_by_name("my run")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "seed0/teacher" and run.info.status == "FINISHED" and run.data.tags["kind"] == "teacher"
    assert run.data.params["optim.lr"] == "0.05" and run.data.params["stages"] == "['teacher']"
    for kind, name in (("train", "total"), ("epoch", "test_top1")):
        history = client.get_metric_history(run.info.run_id, f"{kind}/{name}")
        wanted = [(each["step"], each[name]) for each in records if each["kind"] == kind]
        assert [(point.step, point.value) for point in history] == wanted
    assert run.data.metrics["result/top1_last"] == records[-1]["test_top1"]
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["report.png"]
    assert not (tmp_path / "home").exists()


def test_wandb(tmp_path, caplog):
    pytest.importorskip("wandb", reason="wandb is not installed")
    root = tmp_path / "my run"
    records = train_twice(root, "wandb")
    assert not caplog.records
    files = [*root.glob("wandb/offline-run-*/*.wandb"), *root.glob("later/wandb/offline-run-*/*.wandb")]
    assert len(files) == 2
    runs, rows, parameters = [], [], {}
    for file in files:
        for record in wandb_records(file.read_bytes()):
            if record.HasField("run"):
                runs.append((record.run.run_id, record.run.run_group, record.run.job_type, record.run.display_name))
                parameters |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            if record.HasField("history"):
                items = record.history.item
                rows.append({item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items})
    assert len({run_id for run_id, *_ in runs}) == 1
    assert {run[1:] for run in runs} == {("my run", "teacher", "seed0/teacher")}
    assert parameters["optim.lr"] == 0.05
    for kind, name in (("train", "total"), ("epoch", "test_top1")):
        points = [(row["step"], row[f"{kind}/{name}"]) for row in rows if f"{kind}/{name}" in row]
        assert points == [(each["step"], each[name]) for each in records if each["kind"] == kind]
    assert [row["result/top1_last"] for row in rows if "result/top1_last" in row] == [records[-1]["test_top1"]]
    assert sum(any(key.startswith("report") for key in row) for row in rows) == 1
    assert not (tmp_path / "home").exists()


def wandb_records(content: bytes) -> Iterator[Any]:
    """Yield the records of a .wandb file: a header of 7 bytes, then the blocks of a LevelDB log."""
    from wandb.proto.wandb_internal_pb2 import Record

    position, parts = 7, b""
    while position + 7 <= len(content):
        left = 32768 - position % 32768
        if left < 7:  # too short for a header
            position += left
            continue
        length, kind = struct.unpack_from("<HB", content, position + 4)
        parts += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(parts)
            parts = b""


def test_trackio(tmp_path, monkeypatch, caplog):
    pytest.importorskip("trackio", reason="trackio is not installed")
    storage = pytest.importorskip("trackio.sqlite_storage")
    monkeypatch.setattr(storage, "TRACKIO_DIR", tmp_path / "TRACKIO_DIR")  # which it reads when it is imported
    records = train_twice(tmp_path / "my-run", "trackio")
    assert not caplog.records
    store = storage.SQLiteStorage
    assert store.get_runs("my-run") == ["seed0/teacher"]
    rows = store.get_logs("my-run", "seed0/teacher")
    for kind, name in (("train", "total"), ("epoch", "test_top1")):
        points = [(row["step"], row[f"{kind}/{name}"]) for row in rows if f"{kind}/{name}" in row]
        assert points == [(each["step"], each[name]) for each in records if each["kind"] == kind]


def test_tensorboard(tmp_path, caplog):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    records = train_twice(tmp_path, "tensorboard")
    assert not caplog.records
    events = EventAccumulator(str(tmp_path / "seed0" / "teacher" / "tensorboard"))
    events.Reload()
    for kind, name in (("train", "total"), ("epoch", "test_top1")):
        points = [(event.step, event.value) for event in events.Scalars(f"{kind}/{name}")]
        wanted = [(each["step"], pytest.approx(each[name])) for each in records if each["kind"] == kind]
        assert points == wanted
    assert events.Tags()["images"] == ["report"]


def test_a_server_that_is_not_there_is_refused_in_one_line(tmp_path, monkeypatch):
    pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(
        checks.LoggerError, match=r"^logger mlflow can't use MLFLOW_TRACKING_URI=http://127\.0\.0\.1:9: .*refused"
    ):
        checks.check(["mlflow"], tmp_path)
    assert not list(tmp_path.iterdir())
