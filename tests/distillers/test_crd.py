"""CRD as a method: labels given or collected, and the memory in the state of a run."""

from __future__ import annotations

import pytest
import torch
from test_methods import CLASSES, SAMPLES, batch, build

from sftn_fast import ops
from sftn_fast.distillers.methods import crd
from sftn_fast.distillers.spec import parse


def test_labels_are_learned_from_the_batches():
    distiller = build("crd:negatives=4", labels=False)
    method = distiller.methods[0]["crd"]
    assert (method.labels == -1).all()
    distiller(*batch())
    _, target, index = batch()
    assert torch.equal(method.labels[index], target)
    assert (method.labels >= 0).sum() == len(index)
    assert "methods.0.crd.labels" in distiller.state_dict()


def test_given_labels_are_no_part_of_the_state():
    distiller = build("crd:negatives=4:bank=bfloat16:dim=16")
    assert torch.equal(distiller.methods[0]["crd"].labels, torch.arange(SAMPLES) % CLASSES)
    assert "methods.0.crd.labels" not in distiller.state_dict()
    memory = distiller.methods[0]["crd"].criterion.memory
    assert memory.student_bank.dtype == torch.bfloat16 and memory.student_bank.shape == (SAMPLES, 16)


def test_the_memory_follows_in_training_alone():
    distiller = build("crd:negatives=4")
    bank = distiller.methods[0]["crd"].criterion.memory.student_bank
    before = bank.clone()
    distiller.eval()(*batch())
    assert torch.equal(bank, before)
    distiller.train()(*batch())
    changed = (bank != before).any(1).nonzero().flatten()
    assert torch.equal(changed, batch()[2].sort().values)


def test_one_of_the_same_class_is_any_of_it():
    labels = torch.tensor([5, 0, 5, 9, 0, 5, 7])
    index = torch.tensor([0, 1, 3, 6, 2]).repeat(2000)
    torch.manual_seed(0)
    drawn = crd.same_class(index, labels)
    assert torch.equal(labels[drawn], labels[index])
    counts = torch.bincount(drawn[index == 0], minlength=7)
    assert counts.nonzero().flatten().tolist() == [0, 2, 5]
    assert all(abs(count - 2000 / 3) < 5 * (2000 * 2 / 9) ** 0.5 for count in counts[counts > 0].tolist())


@pytest.mark.parametrize("labels", [True, False])
def test_the_relaxed_positive(labels, monkeypatch):
    """Compute the loss of the drawn positives, but update the memory at the images' own rows."""
    distiller = build("crd:negatives=4:mode=relax,ce=0", labels=labels).train()
    distiller.student.eval()
    images, target, index = batch()
    distiller.eval()(images, target, index)  # sets the normalisers and collects the labels
    method = distiller.methods[0]["crd"]
    others = torch.arange(SAMPLES).view(-1, CLASSES)[:, target].T[:, 3].contiguous()
    fixed = ((index[:, None] + torch.arange(1, 5)) % SAMPLES).sort().values
    monkeypatch.setattr(crd, "same_class", lambda *_: others)
    monkeypatch.setattr(ops, "sample_negatives", lambda *_, **__: fixed)
    criterion = method.criterion
    with torch.no_grad():
        pooled = [net.eval().forward_features(images).pooled for net in distiller._held]
        ours, theirs = criterion.embed_student(pooled[0]), criterion.embed_teacher(pooled[1])
        expected = ops.crd_loss(ours, theirs, others, fixed, criterion.memory, update=False)
    before = criterion.memory.student_bank.clone()
    distiller.train()
    distiller.student.eval()
    terms = distiller(images, target, index)
    torch.testing.assert_close(terms["crd"], expected)
    changed = (criterion.memory.student_bank != before).any(1).nonzero().flatten()
    assert torch.equal(changed, index.sort().values)


def test_options_by_the_names_of_repdistillers_script():
    (term,) = parse("crd=0.8:nce_k=4096:nce_t=0.1:nce_m=0.4:feat_dim=64:mode=relax").methods
    assert term.options == {"negatives": 4096, "temperature": 0.1, "momentum": 0.4, "dim": 64, "mode": "relax"}
    (term,) = parse("hint:hint_layer=3").methods
    assert (term.name, term.options) == ("fitnet", {"layer": 3})
    with pytest.raises(ValueError, match="'negatives' is given twice"):
        parse("crd:nce_k=4096:negatives=4")
