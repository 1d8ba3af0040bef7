"""CRD's memory as a method: labels known or learned, and the state of a run."""

from __future__ import annotations

import torch
from test_methods import CLASSES, SAMPLES, batch, build


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
