"""What a training does with loggers: nothing else than without them, whatever they do."""

from __future__ import annotations

import json
import random
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine.stubs import Data, StoppingLoader, make_task, run_fit, without_timing

from sftn_fast import report, train
from sftn_fast.engine import Interrupted
from sftn_fast.experiment import resume
from sftn_fast.loggers import Logger, RunInfo, Services, base, run_ids

TINY = "--config demo --data.name fake --data.train_size 32 --data.image_size 8 --optim.batch_size 16 --epochs 1"
TINY += " --seeds 0 --teacher resnet14 --student resnet8 --engine.log_every 1"


class Service:
    """What all recorders of a test have received."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, str | None]] = []
        self.infos: list[RunInfo] = []
        self.logged: list[tuple[str, str, int, int]] = []
        self.pictures: list[str] = []
        self.closed: list[bool] = []
        self.fails_in: str | None = None
        self.error: type[BaseException] = RuntimeError

    def steps(self, kind: str) -> list[int]:
        return [step for _, name, step, _ in self.logged if name.startswith(f"{kind}/total")]


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Service:
    """Put a recorder in the place of wandb; it is as rude as libraries are."""
    received = Service()

    class Recorder(Logger):
        name = "wandb"
        module = "json"

        def begin(self, run_id: str | None, step: int) -> str:
            received.begun.append((self.info.name, run_id))
            received.infos.append(self.info)
            self._disturb("begin")
            return run_id or f"id{len(received.begun)}"

        def log(self, metrics: Mapping[str, float], step: int, *, row: int) -> None:
            self._disturb("log")
            received.logged += [(self.info.name, name, step, row) for name in metrics]

        def pictures(self, files: Sequence[Path]) -> None:
            self._disturb("pictures")
            received.pictures += [file.name for file in files]

        def close(self, *, finished: bool) -> None:
            received.closed.append(finished)
            self._disturb("close")

        def _disturb(self, method: str) -> None:
            print("noise")
            random.random(), np.random.rand(), torch.rand(3)  # noqa: NPY002
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            if received.fails_in == method:
                raise received.error("the network\nis down")

    monkeypatch.setitem(base._loggers, "wandb", Recorder)
    return received


def fit(folder: Path, *, services: Services | None = None, **options: Any) -> Any:
    """Train with the services as a job does."""
    folder.mkdir(parents=True, exist_ok=True)
    info = RunInfo("experiment", "seed0/teacher", "teacher", folder, folder, {"epochs": 2})
    with (services or Services(["wandb"])).open(info) as run:
        result = run_fit(folder, services=run, **options)
        run.results({"top1_last": result.last["test_top1"]})
        run.pictures([folder / "report.png"])
    return result


def weights(task: torch.nn.Module) -> list[torch.Tensor]:
    return list(task.state_dict().values())


@pytest.mark.parametrize(
    ("method", "error"),
    [(None, None), ("begin", RuntimeError), ("log", SystemExit), ("pictures", OSError), ("close", EOFError)],
)
def test_a_logger_neither_stops_nor_changes_a_training(tmp_path, service, caplog, capsys, method, error):
    alone, logged = make_task(), make_task()
    handler = signal.getsignal(signal.SIGTERM)
    expected = run_fit(tmp_path / "alone", task=alone, epochs=1)
    service.fails_in, service.error = method, error or RuntimeError
    result = fit(tmp_path / "logged", task=logged, epochs=1)
    assert without_timing(result.last) == without_timing(expected.last)
    assert all(torch.equal(*pair) for pair in zip(weights(alone), weights(logged), strict=True))
    assert signal.getsignal(signal.SIGTERM) is handler
    assert "noise" not in capsys.readouterr().out
    lines = [record.getMessage() for record in caplog.records]
    assert lines == ["logger wandb failed and is off; training continues without it: the network is down"] * bool(
        method
    )
    assert len(service.closed) == 1, "a logger that failed is closed as well"


def test_a_logger_that_failed_stays_off(tmp_path, service, caplog):
    services = Services(["wandb"])
    service.fails_in = "log"
    fit(tmp_path / "one", services=services, epochs=1)
    service.fails_in = None
    fit(tmp_path / "two", services=services, epochs=1)
    assert len(service.begun) == 1 and caplog.text.count("is off") == 1


def test_names_and_steps_are_those_of_the_log(tmp_path, service):
    fit(tmp_path, data=Data(with_val=True))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    expected = [
        (f"{line['kind']}/{name}", line["step"]) for line in lines for name in line if isinstance(line[name], float)
    ]
    assert [(name, step) for _, name, step, _ in service.logged] == [*expected, ("result/top1_last", 20)]
    names = {name for name, _ in expected}
    assert names >= {"train/total", "train/ce", "train/hint", "train/lr", "train/images_per_second"}
    assert names >= {"epoch/train_total", "epoch/val_top1", "epoch/test_top1", "epoch/test_ce"}


class Crash(Exception):
    pass


@pytest.mark.parametrize(("how", "stops"), [(signal.SIGTERM, (12, 17)), (Crash, (19, 15))])
def test_a_resumed_training_continues_its_run_and_repeats_no_step(tmp_path, service, how, stops):
    """Stopped after a checkpoint, or crashed once and once more before it is as far as the first time."""
    for stop in stops:
        data = Data()
        data.train = StoppingLoader(data.train, stop, how)
        with pytest.raises((Crash, Interrupted)):
            run = Services(["wandb"]).open(RunInfo("experiment", "teacher", "teacher", tmp_path, tmp_path))
            run_fit(tmp_path, services=run, data=data, engine={"checkpoint_every": 10, "log_every": 1})
    fit(tmp_path, engine={"log_every": 1})
    assert service.steps("train") == list(range(1, 21))
    rows = [row for _, _, _, row in service.logged]
    assert rows == sorted(rows)
    assert [run_id for _, run_id in service.begun] == [None, "id1", "id1"]


def test_a_logger_that_joins_later_gets_what_it_has_not_seen(tmp_path, service):
    data = Data()
    data.train = StoppingLoader(data.train, 15, Crash)
    with pytest.raises(Crash):
        run_fit(tmp_path, data=data, engine={"log_every": 1})
    fit(tmp_path, engine={"log_every": 1})
    assert service.steps("train") == list(range(11, 21))


@pytest.mark.parametrize("content", ["", "[]", '{"wandb": 1}', '{"wandb": {"id": 3, "sent": {"train": "x"}}}'])
def test_a_damaged_file_of_ids_means_a_new_run(tmp_path, service, content):
    (tmp_path / run_ids.FILE).write_text(content)
    fit(tmp_path, epochs=1)
    assert service.begun == [("seed0/teacher", None)]
    assert run_ids.read(tmp_path)["wandb"].id == "id1"


def test_a_copy_of_a_run_is_another_run_at_the_services(tmp_path):
    folder = tmp_path / "one" / "seed0" / "teacher"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text("{}")
    run_ids.write(folder, "wandb", run_ids.Entry("id1", {"train": 3}))
    (tmp_path / "two").mkdir()
    resume.copy(tmp_path / "one", tmp_path / "two")
    assert [path.name for path in (tmp_path / "two" / "seed0" / "teacher").iterdir()] == ["result.json"]


def run(output: Path, *options: str) -> int:
    return train.main([*TINY.split(), "--output", str(output), *options])


def test_each_job_is_a_run_and_the_report_is_one_more(tmp_path, service, monkeypatch, capsys):
    def draw(folder: Path, *_: Any) -> tuple[list[Any], str]:
        (folder / "report.png").write_bytes(b"picture")
        return [], "no plot"

    monkeypatch.setattr(report.writer, "draw", draw)
    options = ["--stages", "student,distill,teacher", "--distill", "ab:init_epochs=1"]
    assert run(tmp_path / "runs", *options, "--logger", "wandb") == 0
    assert "logger wandb: " in capsys.readouterr().out
    jobs = [f"seed0/{name}" for name in ("teacher", "student", "distill-teacher", "distill-teacher/init-ab")]
    assert {info.name: info.kind for info in service.infos} == {
        **dict(zip(jobs, ("teacher", "student", "distill", "initialisation"), strict=True)), "summary": "summary"
    }  # fmt: skip
    assert {info.experiment for info in service.infos} == {"runs"}
    teacher = next(info for info in service.infos if info.kind == "teacher")
    assert teacher.parameters["optim.batch_size"] == 16 and teacher.parameters["job.seed"] == 0
    assert teacher.parameters["environment.torch"] == torch.__version__
    of_teacher = {name for run_name, name, _, _ in service.logged if run_name == jobs[0]}
    assert of_teacher >= {"train/total", "epoch/test_top1", "result/top1_last", "result/seconds"}
    of_report = {name for run_name, name, _, _ in service.logged if run_name == "summary"}
    assert of_report >= {f"result/{job}/top1_last" for job in jobs[:3]} and service.pictures == ["report.png"]
    before, count = (tmp_path / "runs/seed0/teacher/result.json").read_bytes(), len(service.logged)
    for logger in ("wandb", "[]", "wandb,wandb"):
        assert run(tmp_path / "runs", *options, "--logger", logger) == 0
    assert (tmp_path / "runs/seed0/teacher/result.json").read_bytes() == before
    assert len(service.logged) == count, "nothing that is there already is logged again"


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio", "tensorboard"])
def test_a_missing_library_is_refused_before_any_work(tmp_path, monkeypatch, capsys, name):
    monkeypatch.setitem(sys.modules, base.find(name).module, None)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    assert run(tmp_path / "run", "--logger", f"tensorboard,{name}") == 2
    out, err = capsys.readouterr()
    assert err.count("\n") == 1 and f"pip install 'sftn_fast[{name}]'" in err and "seed 0" not in out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["check", "prepare"])
def test_a_service_that_refuses_ends_the_run_before_any_training(tmp_path, service, monkeypatch, capsys, method):
    def refuse(root: Path) -> None:
        raise PermissionError("no such\nproject")

    monkeypatch.setattr(base.find("wandb"), method, staticmethod(refuse))
    assert run(tmp_path / "run", "--logger", "wandb") == 2
    assert capsys.readouterr().err == "error: logger wandb can't be used: no such project\n"
    assert not service.begun and not (tmp_path / "run" / "config.yaml").exists()


def test_a_link_in_the_place_of_a_services_folder_is_refused(tmp_path, service, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "wandb").symlink_to(tmp_path)
    assert run(tmp_path / "run", "--logger", "wandb") == 2
    assert "is a link" in capsys.readouterr().err


def test_an_unknown_logger_is_refused_by_name(tmp_path, capsys):
    assert run(tmp_path / "run", "--logger", "tensorboard,visdom") == 2
    assert capsys.readouterr().err.count("\n") == 1
