"""A teacher's logits in a table and in files: when they are taken instead of a pass, and when not."""

from __future__ import annotations

import errno
import logging
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sftn_fast import distillers, models
from sftn_fast.data import Batch
from sftn_fast.distillers import registry
from sftn_fast.distillers.method import Method
from sftn_fast.experiment.teacher_cache import store
from sftn_fast.experiment.teacher_cache.store import TeacherLogits
from sftn_fast.models import Features

IMAGES, CLASSES = 8, 5
LOGITS = torch.randn(IMAGES, CLASSES, generator=torch.Generator().manual_seed(0))


def kept(
    folder: Path, *, identity: str = "ours", classes: int = CLASSES, seen: int = IMAGES, **options
) -> TeacherLogits:
    like = torch.empty(1, classes, dtype=options.pop("dtype", torch.float32))
    return TeacherLogits(folder, {"teacher": identity}, num_samples=IMAGES, seen=seen, like=like, **options)


def see(logits: TeacherLogits, epoch: int, *, images: int = IMAGES, shift: float = 0.0) -> list[Tensor]:
    """Go through ``epoch``, counted from 0, in batches of two; each image has ``shift`` more than in LOGITS."""
    logits.begin_epoch(epoch)
    order = torch.arange(IMAGES).flip(0)[:images]
    seen = [logits(index, lambda index=index: LOGITS[index] + shift) for index in order.split(2)]
    logits.end_epoch(epoch + 1)
    return seen


def never() -> Tensor:
    raise AssertionError("the teacher ran")


def test_what_one_has_seen_another_reads(tmp_path):
    first = see(kept(tmp_path), 0)
    second = kept(tmp_path)
    assert second.begin_epoch(0) and second.known
    index = torch.arange(IMAGES).flip(0)
    assert torch.equal(second(index, never), torch.cat(first)) and torch.equal(second(index, never), LOGITS[index])


def test_each_epoch_has_its_own(tmp_path):
    writer, reader = kept(tmp_path), kept(tmp_path)
    for epoch in range(2):
        see(writer, epoch, shift=epoch)
    for epoch in (1, 0):
        assert torch.equal(torch.cat(see(reader, epoch, shift=99)), (LOGITS + epoch).flip(0))


def test_a_step_is_told_when_it_reads_instead_of_writing_and_finds_the_same_memory(tmp_path):
    for epoch in (1, 2):
        see(kept(tmp_path), epoch)
    logits = kept(tmp_path)
    where = logits.table.data_ptr()
    assert [logits.begin_epoch(epoch) for epoch in range(4)] == [False, True, False, True]
    assert not logits.known and logits.table.isnan().all() and logits.table.data_ptr() == where


def test_an_epoch_seen_in_part_is_not_written(tmp_path):
    see(kept(tmp_path), 0, images=IMAGES - 2)
    assert not list(tmp_path.iterdir())
    see(kept(tmp_path, seen=IMAGES - 2), 0, images=IMAGES - 2)  # as many as the loader shows
    assert [path.name for path in tmp_path.iterdir()] == ["epoch0001.safetensors"]


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 4
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def rename(path: Path) -> None:
    path.rename(path.with_name("epoch0002.safetensors"))


def of(**options) -> object:
    def write(path: Path) -> None:
        other = kept(path.parent, **options)
        other.begin_epoch(1)
        other.table.zero_()
        other._write(1)

    return write


UNFIT = {
    "cut short": (cut_short, 0, "damaged"),
    "a flipped bit": (flip_a_bit, 0, "its sha256 is another"),
    "empty": (empty, 0, "damaged"),
    "of another epoch": (rename, 1, "epoch 1 -> 2"),
    "of another teacher": (of(identity="theirs"), 0, "teacher theirs -> ours"),
    "of other classes": (of(classes=3), 0, r"\[8, 3\] -> torch.float32 \[8, 5\]"),
    "of another dtype": (of(dtype=torch.bfloat16), 0, "torch.bfloat16"),
}


@pytest.mark.parametrize(("change", "epoch", "words"), UNFIT.values(), ids=UNFIT)
def test_a_file_that_does_not_fit_is_a_warning_and_written_anew(change, epoch, words, tmp_path, caplog):
    see(kept(tmp_path), 0)
    change(tmp_path / "epoch0001.safetensors")
    with caplog.at_level(logging.WARNING):
        assert torch.equal(torch.cat(see(kept(tmp_path), epoch, shift=1)), LOGITS.flip(0) + 1)
    (warning,) = caplog.messages
    assert "is not used" in warning and "the teacher runs" in warning
    assert re.search(words, warning)
    assert torch.equal(torch.cat(see(kept(tmp_path), epoch, shift=99)), LOGITS.flip(0) + 1)


def test_a_full_disk_is_a_warning(tmp_path, monkeypatch, caplog):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store, "write_atomically", full)
    see(kept(tmp_path), 0)
    assert "No space left on device; training continues" in caplog.text


def test_images_that_are_never_augmented_need_one_pass_for_all_epochs(tmp_path):
    passes = []

    def of_all():
        passes.append(1)
        return ((index, LOGITS[index]) for index in torch.arange(IMAGES).split(3))

    for _ in range(2):
        logits = kept(tmp_path, unaugmented=of_all)
        assert [logits.begin_epoch(epoch) for epoch in (5, 6, 7)] == [True, False, False]
        assert torch.equal(logits(torch.tensor([7, 0]), never), LOGITS[[7, 0]])
    assert len(passes) == 1 and [path.name for path in tmp_path.iterdir()] == ["every.safetensors"]


def networks():
    torch.manual_seed(0)
    return models.build("resnet8", num_classes=CLASSES), models.build("wrn_16_1", num_classes=CLASSES)


def build(spec: str, student, teacher):
    torch.manual_seed(1)  # layers of the methods' own
    return distillers.build(spec, student=student, teacher=teacher, num_samples=IMAGES, image_size=8)


LOGITS_SUFFICE = [name for name in registry.names() if not registry.find(name).needs_features]


@pytest.mark.parametrize("spec", [*LOGITS_SUFFICE, ",".join(LOGITS_SUFFICE), "dkd,ab,fsp"])
def test_a_method_that_reads_logits_alone_has_the_same_loss(spec, tmp_path):
    batch = torch.randn(IMAGES, 3, 8, 8), torch.arange(IMAGES) % CLASSES, torch.arange(IMAGES)
    student, teacher = networks()[0].eval(), models.build("resnet14", num_classes=CLASSES)
    usual = build(spec, student, teacher)(*batch)
    for _ in ("written", "read"):
        distiller, logits = build(spec, student, teacher), kept(tmp_path)
        distiller.keep_logits(logits)
        # Not the distiller's, which would begin dkd's warm-up as well.
        logits.begin_epoch(0)
        terms = distiller(*batch)
        logits.end_epoch(1)
        assert terms.keys() == usual.keys() and all(torch.equal(terms[name], usual[name]) for name in terms)
        terms["total"].backward()
    assert logits.known


def test_the_distiller_passes_the_epoch_on(tmp_path):
    see(kept(tmp_path), 1)
    distiller = build("kd", *networks())
    distiller.keep_logits(kept(tmp_path))
    assert [distiller.begin_epoch(epoch) for epoch in range(3)] == [False, True, True]


BEFOREHAND = ("ab", "fsp")  # have no loss while the student learns


@pytest.mark.parametrize("name", sorted({*registry.names()} - {*LOGITS_SUFFICE, *BEFOREHAND}))
def test_other_methods_are_refused(name, tmp_path):
    teacher = models.build("resnet14", num_classes=CLASSES)
    distiller = build(f"kd,{name}", networks()[0], teacher)
    with pytest.raises(ValueError, match=f"{name} reads more of the teacher"):
        distiller.keep_logits(kept(tmp_path))


def test_several_teachers_are_refused(tmp_path):
    student, teacher = networks()
    with pytest.raises(ValueError, match="of one teacher, got 2"):
        build("kd", student, [teacher, teacher]).keep_logits(kept(tmp_path))


class Liar(Method):
    """Says that it reads logits alone, and does not."""

    needs_features = False

    def loss(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        return (student.pooled.mean() - teacher.pooled.mean()).square()


def test_a_method_that_reads_more_than_it_says_is_an_error(tmp_path, forgotten_plugins):
    registry.register("liar")(Liar)
    distiller = build("liar", *networks())
    distiller.keep_logits(kept(tmp_path))
    with pytest.raises(AttributeError, match="pooled"):
        distiller(torch.randn(2, 3, 8, 8), torch.arange(2), torch.arange(2))
