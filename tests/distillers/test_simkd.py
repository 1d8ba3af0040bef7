"""SimKD: the student's new head, and that it is evaluated, exported, loaded and deployed with the student."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import golden
import pytest
import torch
import torch.nn.functional as F
from test_methods import batch
from torch import nn

from sftn_fast import distillers, engine, models, report, train
from sftn_fast.distillers.methods import simkd
from sftn_fast.export import command as export_command
from sftn_fast.models import WeightsError
from sftn_fast.models.reused_head import ReusedHead
from sftn_fast.models.staged import Head
from sftn_fast.predict import command as predict_command
from sftn_fast.tasks import DistillTask, Route
from sftn_fast.utils.checksummed import seal


def build(student: str = "resnet8", teacher: str = "wrn_16_2", spec: str = "simkd", size: int = 16):
    torch.manual_seed(0)
    networks = {"student": models.build(student, num_classes=6), "teacher": models.build(teacher, num_classes=6)}
    return distillers.build(spec, **networks, num_samples=48, image_size=size)


def test_the_distance() -> None:
    found = simkd.distance(golden.STUDENT_MAP, golden.TEACHER_MAP)
    assert found.item() == pytest.approx(2.203703485311621, rel=1e-12)


@pytest.mark.parametrize(
    ("channels", "features", "expected"),
    [(64, 64, 13568), (128, 128, 53760), (256, 256, 214016), (512, 256, 246784), (960, 256, 304128),
     (1024, 256, 312320), (512, 512, 854016), (512, 2048, 12066816), (1024, 2048, 12591104)],
)  # fmt: skip
def test_the_connector_has_the_authors_size(channels: int, features: int, expected: int) -> None:
    shape = {"channels": channels, "middle": features // 2, "features": features, "num_classes": 100, "size": None}
    with torch.device("meta"):
        head = ReusedHead(Head(channels, 100), **shape)
    assert sum(p.numel() for p in head.connector.parameters()) == expected
    learning = sum(p.numel() for p in head.parameters() if p.requires_grad)
    assert learning == expected, "the classifier is frozen, the student's own is gone"


def test_the_student_predicts_by_the_teachers_classifier() -> None:
    distiller = build()
    student, teacher = distiller.student.eval(), distiller.teacher
    assert (
        torch.equal(student.head.fc.weight, teacher.head.fc.weight)
        and student.head.fc.weight is not teacher.head.fc.weight
    )
    images = batch()[0]
    with torch.no_grad():
        connected = student.head.connector(
            student.stages[2](student.stages[1](student.stages[0](student.stem(images))))
        )
        expected = F.linear(connected.mean((2, 3)), teacher.head.fc.weight, teacher.head.fc.bias)
        torch.testing.assert_close(student(images), expected)
        theirs = teacher.forward_features(images).unpooled
        terms = distiller.eval()(*batch())
    torch.testing.assert_close(terms["simkd"], F.mse_loss(connected, theirs))
    assert distiller.weights == {"ce": 0.0, "simkd": 1.0}


def test_what_learns() -> None:
    distiller = build()
    distiller.train()(*batch())["total"].backward()
    frozen = {name for name, p in distiller.student.named_parameters() if p.grad is None}
    assert frozen == {"head.fc.weight", "head.fc.bias"} and list(distiller.parameters()) == []


@pytest.mark.parametrize(
    ("student", "teacher", "size"),
    [("resnet8", "vgg8", (2, 2)), ("MobileNetV2", "resnet8x4", None), ("wrn_16_1", "resnet14", None)],
)
def test_the_larger_map_is_pooled_to_the_smaller_one(student: str, teacher: str, size: tuple[int, int] | None) -> None:
    distiller = build(student, teacher)
    assert distiller.student.head.size == size
    assert distiller(*batch())["simkd"].isfinite()


def test_methods_beside_it_see_the_new_vectors() -> None:
    distiller = build(spec="crd:negatives=4,kd,simkd,oh")
    assert list(distiller.methods[0]) == ["crd", "kd", "simkd", "oh"]
    assert distiller.methods[0]["crd"].criterion.embed_student.linear.in_features == 128
    assert distiller.train()(*batch())["total"].isfinite()


def test_what_can_not_be_is_refused() -> None:
    distiller = build()
    with pytest.raises(ValueError, match="simkd: the student has the classifier of a teacher already"):
        distillers.build("simkd", student=distiller.student, teacher=distiller.teacher, num_samples=9, image_size=16)
    with pytest.raises(ValueError, match="simkd: factor must be at most 128"):
        build(spec="simkd:factor=129")
    nets = [models.build("resnet8", num_classes=6) for _ in range(3)]
    with pytest.raises(ValueError, match="simkd takes one teacher"):
        distillers.build("simkd", student=nets[0], teacher=nets[1:], num_samples=9, image_size=16)


def test_the_classifier_follows_a_route(tmp_path: Path) -> None:
    distiller = build()
    for number in range(2):
        models.save(models.build("wrn_16_2", num_classes=6), tmp_path / str(number))
    task = DistillTask(distiller.student, distiller, Route([tmp_path / "0", tmp_path / "1"], epochs=2))
    for epoch in range(2):
        task.begin_epoch(epoch)
        assert torch.equal(task.model.head.fc.weight, models.load(tmp_path / str(epoch)).head.fc.weight)


def test_rounded_weights_of_the_teacher_change_nothing() -> None:
    distiller = build()
    before = distiller.student.head.fc.weight.clone()
    distiller.teacher.head.fc.weight.data = before.bfloat16()
    distiller.begin_epoch(0)
    assert torch.equal(distiller.student.head.fc.weight, before)


@pytest.mark.parametrize(("student", "teacher"), [("resnet8", "vgg8"), ("wrn_16_1", "resnet14"), ("ShuffleV2", "vgg8")])
def test_an_export_is_whole(student: str, teacher: str, tmp_path: Path) -> None:
    net = build(student, teacher).student.eval()
    models.save(net, tmp_path)
    images = torch.randn(2, 3, 16, 16)
    loaded = models.load(tmp_path)
    fresh = models.build(student, num_classes=6).eval()
    models.load_weights(fresh, tmp_path)
    for other in (loaded, fresh):
        assert torch.equal(other(images), net(images)) and other.head.size == net.head.size
        assert not other.head.fc.weight.requires_grad
    config = models.read_config(tmp_path)
    assert config["format"] == 2 and config["name"] == student and config["custom"] is False
    assert models.export_state_dict(net).keys() == net.state_dict().keys()
    with pytest.raises(ValueError, match="style must be 'own'"):
        models.export_state_dict(net, "repdistiller")


def test_other_networks_keep_the_first_format(tmp_path: Path) -> None:
    models.save(models.build("resnet8", num_classes=6), tmp_path)
    config = models.read_config(tmp_path)
    assert config["format"] == 1 and "reused_head" not in config


@pytest.mark.parametrize(
    "description",
    [{}, {"size": 4}, {"size": [4]}, {"size": [0, 4]}, {"size": [4, 10**9]}, {"size": None, "more": 1}, []],
)
def test_a_damaged_description_is_refused(description: object, tmp_path: Path) -> None:
    models.save(build().student, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"reused_head": description}
    (tmp_path / "config.json").write_text(seal({key: value for key, value in config.items() if key != "checksum"}))
    with pytest.raises(WeightsError, match="reused_head"):
        models.load(tmp_path)


@pytest.mark.parametrize("layer", ["0", "3", "6"])
def test_weights_without_the_head_are_refused_and_load_nothing(layer: str, tmp_path: Path) -> None:
    """Also for shapes that ask for a network of terabytes."""
    net = build().student
    models.save(net, tmp_path / "whole")
    plain = copy.deepcopy(net)
    plain.head.connector[int(layer)] = nn.Conv2d(1, 70_000, 1)
    models.save(plain, tmp_path / "other")
    with pytest.raises(WeightsError, match="not those of a reused head"):
        models.load(tmp_path / "other")
    fresh = models.build("resnet8", num_classes=7)
    head = fresh.head
    with pytest.raises(WeightsError):
        models.load_weights(fresh, tmp_path / "whole")
    assert fresh.head is head and fresh.head.fc.out_features == 7


TINY = "--config demo --data.name fake --data.train_size 32 --data.image_size 8 --optim.batch_size 16 --epochs 2"
TINY += " --seeds 0 --teacher resnet14 --stages [teacher,distill] --distill simkd --engine.eval_every 1"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("simkd") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report.writer, "draw", lambda *args: ([], "no plot"))
        assert train.main([*TINY.split(), "--output", str(output)]) == 0
    return output


def test_a_run_exports_connector_and_classifier(finished: Path) -> None:
    job = finished / "seed0" / "distill-teacher"
    for folder in (job, job / "best", finished / "student"):
        net = models.load(folder)
        assert isinstance(net.head, ReusedHead)
        assert torch.equal(net.head.fc.weight, models.load(finished / "seed0" / "teacher").head.fc.weight)
    result = json.loads((job / "result.json").read_text())
    assert result["parameters"] == sum(p.numel() for p in models.load(job).parameters())


def test_its_accuracy_is_that_of_the_export(finished: Path) -> None:
    from sftn_fast import data
    from sftn_fast.config import DataConfig

    images = data.build(DataConfig("fake", train_size=32, image_size=8), seed=0, batch_size=16, device="cpu")
    result = json.loads((finished / "seed0" / "distill-teacher" / "result.json").read_text())
    measured = engine.evaluate(models.load(finished / "student"), images.test, engine.Layout(torch.device("cpu")))
    assert measured["top1"] == pytest.approx(result["last"]["top1"])


def test_it_can_be_deployed(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = next((finished / "samples").glob("*.png"))
    assert predict_command.main([str(finished / "student"), str(image)]) == 0
    for format in ("state_dict", "torchscript", "pt2"):
        assert (
            export_command.main([str(finished / "student"), "--format", format, "--output", str(tmp_path / format)])
            == 0
        )
    assert "differ" not in capsys.readouterr().err


def test_a_finished_run_is_kept_and_the_student_teaches_in_turn(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([*TINY.split(), "--output", str(finished)]) == 0
    assert capsys.readouterr().out.count("finished before, not trained again") == 2
    options = f"{TINY} --teacher resnet8 --distill kd --stages distill --teacher_file {finished / 'student'}"
    assert train.main([*options.split(), "--output", str(finished.parent / "next")]) == 0
