"""timm's networks as teachers and students: methods, runs, what is refused, and files for deployment."""

from __future__ import annotations

import re

import pytest
import torch

from sftn_fast import distillers, export, models, predict, train
from sftn_fast.config import SFTNConfig
from sftn_fast.data.sources import fake
from sftn_fast.sftn import StudentAwareTeacher
from sftn_fast.tasks import SFTNTask

pytest.importorskip("timm")

VIT, CONVNEXT = "timm:test_vit:patch_size=8:depth=4:embed_dim=32:num_heads=2", "timm:test_convnext"
AVERAGING = [
    "timm:vit_tiny_patch16_224:class_token=false:global_pool=avg:depth=4:embed_dim=16:num_heads=2",
    "timm:swin_tiny_patch4_window7_224:embed_dim=16:depths=[1,1,1,1]:num_heads=[1,1,2,2]:window_size=4",
    CONVNEXT,
    "timm:edgenext_xx_small",
]
"""Networks whose head averages a map, so that each of their ends runs on a map."""
TINY = "--data.name fake --data.train_size 8 --data.image_size 32 --optim.batch_size 4 --epochs 1 --seeds 0"


@pytest.fixture(scope="module")
def pair() -> tuple[models.StagedNet, models.StagedNet]:
    torch.manual_seed(0)
    teacher, student = (models.build(name, num_classes=4, image_size=32) for name in (VIT, CONVNEXT))
    return teacher, student


@pytest.mark.parametrize("method", ["kd", "fitnet", "at", "sp", "crd"])
def test_a_vit_teaches_a_convnext(method, pair):
    teacher, student = pair
    torch.manual_seed(0)
    distiller = distillers.build(f"{method}=1", student=student, teacher=teacher, num_samples=8, image_size=32)
    before = [p.detach().clone() for p in teacher.parameters()]
    learning = [*student.parameters(), *distiller.parameters()]
    optimizer = torch.optim.SGD(learning, 0.01)
    for step in range(2):
        index = torch.arange(4) + 4 * step
        terms = distiller(torch.randn(4, 3, 32, 32), index % 4, index)
        optimizer.zero_grad()
        terms["total"].backward()
        optimizer.step()
        assert torch.isfinite(terms[method])
    assert all(p.grad is not None for p in student.parameters())
    assert all(map(torch.equal, before, teacher.parameters()))


@pytest.mark.parametrize(
    ("teacher", "student", "size"), [(VIT, CONVNEXT, 32), *((each, each, 64) for each in AVERAGING)]
)
def test_branches_of_a_timm_student_teach_a_timm_teacher(teacher, student, size):
    torch.manual_seed(0)
    networks = [models.build(name, num_classes=4, image_size=size) for name in (teacher, student)]
    assert networks[1].runs_from_stages
    task = SFTNTask(StudentAwareTeacher(*networks, image_size=size), SFTNConfig())
    optimizer = torch.optim.SGD(task.parameters(), 0.01)
    for step in range(2):
        index = torch.arange(4) + 4 * step
        total = task(torch.randn(4, 3, size, size), index % 4, index)["total"]
        optimizer.zero_grad()
        total.backward()
        assert torch.isfinite(total) and all(p.grad is not None for p in task.parameters() if p.requires_grad)
        optimizer.step()
    assert len(task.student_aware.branches) == networks[0].num_stages - 1
    with torch.no_grad():
        for network in networks:  # of a network that averages, each end runs on a map of its own
            seen = network.eval().forward_features(torch.randn(2, 3, size, size))
            if network.runs_from_stages:
                for number, stage in enumerate(seen.stages, start=2):
                    torch.testing.assert_close(network.forward_from(number, stage), seen.logits)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            f"--teacher {CONVNEXT} --student {VIT} --stages teacher sftn",
            r"can't become a student-friendly teacher for .*: timm:test_vit can't run from the map of a stage",
        ),
        (f"--teacher {CONVNEXT} --student {VIT} --stages teacher distill --distill oh", "'oh' can't teach .*pre-activ"),
        (
            f"--teacher {VIT} --student {CONVNEXT} --stages teacher distill --distill simkd",
            "'simkd' can't teach .*mean",
        ),
        (f"--teacher {CONVNEXT} --student {VIT} --stages teacher distill --distill cat", "'cat' can't teach .*mean"),
        (f"--teacher timm:test_vit:depth=2 --student {VIT} --data.image_size 24", "patches of 16 .*not divide 24"),
    ],
)
def test_a_pair_that_a_method_can_not_serve_is_refused_before_a_teacher_is_trained(options, message, tmp_path, capsys):
    assert train.main([*TINY.split(), *options.split(), "--output", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and error.count("\n") == 1, error
    assert not (tmp_path / "run").exists()


def test_a_run_resumes_and_its_student_is_deployed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(fake, "TEST_IMAGES", 16)
    folder = tmp_path / "run"
    options = [*TINY.split(), "--teacher", VIT, "--student", CONVNEXT, "--stages", "teacher", "sftn", "distill"]
    assert train.main([*options, "--output", str(folder)]) == 0
    assert "student of SFTN teacher" in capsys.readouterr().out
    assert train.main([*options, "--output", str(folder), "--resume", "must"]) == 0
    assert capsys.readouterr().out.count("not trained again") == 4
    student = models.read_config(folder / "student")
    assert (student["name"], student["custom"]) == ("timm:test_convnext", False)
    teacher = models.read_config(folder / "seed0" / "teacher")
    arguments = {"patch_size": 8, "depth": 4, "embed_dim": 32, "num_heads": 2, "img_size": 32}
    assert (teacher["name"], teacher["arguments"]) == ("timm:test_vit", arguments)
    sample = next((folder / "samples").iterdir())
    assert predict.main([str(folder / "student"), str(sample)]) == 0
    assert sample.name in capsys.readouterr().out
    assert export.main([str(folder / "student"), "--format", "torchscript"]) == 0
