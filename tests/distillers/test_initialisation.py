"""Methods with a training before the student's, and runs that stop in the middle of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sftn_fast import cli, distillers, models, train
from sftn_fast.distillers import registry
from sftn_fast.distillers.method import Initialisation, InitTask, Method

TINY = ["--config", "demo", "--data.name", "fake", "--data.train_size", "32", "--data.image_size", "8"]
TINY += ["--optim.batch_size", "16", "--epochs", "2", "--seeds", "[0]", "--teacher", "resnet14", "--distill", "warm"]
TINY += ["--stages", "[teacher,distill]", "--engine.checkpoint_every", "1"]


class Crash(Exception):
    """Simulated power cut."""


class WarmTask(InitTask):
    """Toy: an adapter that learns to predict the teacher's pooled vector, while the student's head is frozen."""

    crash_at: int | None = None

    def __init__(self, adapter, student, teacher):
        super().__init__()
        self.adapter, self.student, self._teacher = adapter, student, (teacher,)
        student.head.requires_grad_(False)
        self.steps = 0

    def forward(self, images, target, index):
        if self.steps == WarmTask.crash_at:
            raise Crash
        self.steps += 1
        with torch.no_grad():
            wanted = self._teacher[0].forward_features(images).pooled
        total = F.mse_loss(self.adapter(self.student.forward_features(images).pooled), wanted)
        return {"total": total, "warm": total.detach()}

    def finish(self):
        self.student.head.requires_grad_(True)


class Warm(Method):
    def __init__(self, setup):
        super().__init__(setup)
        self.adapter = nn.Linear(setup.student.pooled, setup.teacher.pooled)

    def loss(self, student, teacher, batch):
        return F.mse_loss(self.adapter(student.pooled), teacher.pooled)

    def initialisation(self, student, teacher):
        return Initialisation(WarmTask(self.adapter, student, teacher), epochs=2, lr=0.01)


@pytest.fixture(autouse=True, scope="module")
def toys():
    for name in registry.names():
        registry.find(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_methods", dict(registry._methods))
        registry.register("warm")(Warm)
        yield


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The folder of a run that was not stopped, and its student."""
    folder = tmp_path_factory.mktemp("unbroken")
    return folder, run(folder)


def run(output: Path) -> dict[str, torch.Tensor]:
    train.run(cli.parse([*TINY, "--output", str(output)])[0])
    return models.load(output / "seed0" / "distill-teacher").state_dict()


@pytest.mark.parametrize("step", [1, 3])
def test_stopped_inside_the_initialisation_and_resumed(tmp_path, monkeypatch, capsys, unbroken, step):
    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(WarmTask, "crash_at", step)
        run(tmp_path / "broken")
    assert "initialisation of warm, 2 epochs" in capsys.readouterr().out
    resumed = run(tmp_path / "broken")
    assert all(torch.equal(resumed[name], value) for name, value in unbroken[1].items())


def test_the_initialisation_is_trained_and_undone(unbroken):
    lines = (unbroken[0] / "seed0" / "distill-teacher" / "init-warm" / "summary.csv").read_text().splitlines()
    assert len(lines) == 3
    assert "test_top1" not in lines[0]


def test_several_teachers_are_initialised_one_after_the_other():
    torch.manual_seed(0)
    student, *teachers = (models.build(name, num_classes=4) for name in ("resnet8", "resnet14", "wrn_16_1"))
    distiller = distillers.build("warm,kd", student=student, teacher=teachers, num_samples=8, image_size=8)
    assert [name for name, _ in distiller.initialisations()] == ["warm", "warm-2"]
