"""The drop-in criteria give the values that RepDistiller's own classes computed in float64."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sftn_fast.compat import repdistiller as rd


def wave(shape, a, b, function=torch.sin):
    return function(torch.arange(math.prod(shape), dtype=torch.float64) * a + b).reshape(shape)


FS = wave((4, 6, 4, 4), 0.37, 0)
FT = wave((4, 8, 4, 4), 0.23, 0.5, torch.cos)
FT_SMALL = wave((4, 8, 2, 2), 0.23, 0.5, torch.cos)
ES, ET = wave((4, 6), 0.9, 0.3), wave((4, 8), 0.5, 0.1, torch.cos)
GS = [1.5 * wave((4, 8, 4, 4), 0.31, 0.2 * i) for i in range(3)]
GT = [1.5 * wave((4, 8, 4, 4), 0.19, 0.3 * i, torch.cos) for i in range(3)]
LOGITS = 3 * wave((4, 10), 0.7, 0.1), 3 * wave((4, 10), 0.3, 0.2, torch.cos)

GOLDEN = {
    "DistillKL": (lambda: rd.DistillKL(4)(*LOGITS), 2.821670978906749),
    "DistillKL T=1": (lambda: rd.DistillKL(1.0)(*LOGITS), 1.143223150032633),
    "HintLoss": (lambda: rd.HintLoss()(GS[0], GT[0]), 2.203703485311621),
    "Attention": (lambda: rd.Attention()([FS], [FT]), [0.005261305153243119]),
    "Attention, pooled": (lambda: rd.Attention()([FS], [FT_SMALL]), [0.007992679371332212]),
    "Similarity": (lambda: rd.Similarity()([FS], [FT]), [0.0211774776774002]),
    "RKDLoss": (lambda: rd.RKDLoss()(ES, ET), 11.753469646055127),
    "RKDLoss, distance": (lambda: rd.RKDLoss(1, 0)(ES, ET), 0.14759243656666204),
    "RKDLoss, angle": (lambda: rd.RKDLoss(0, 1)(ES, ET), 0.1612731746377715),
    "PKT": (lambda: rd.PKT()(ES, ET), 0.14513043829739586),
    "ABLoss": (lambda: rd.ABLoss(3)(GS, GT), [0.19590431899577115, 0.392650955597854, 0.7858076144383164]),
    "FactorTransfer": (lambda: rd.FactorTransfer()(GS[0], GT[0]), 0.12357702022109802),
    "NSTLoss": (lambda: rd.NSTLoss()([GS[0]], [GT[0]]), [0.6478540938379678]),
    "FSP": (
        lambda: rd.FSP([g.shape for g in GS], [g.shape for g in GT])(GS, GT),
        [1.6769374824707413, 1.682895482583676],
    ),
    "Correlation": (lambda: rd.Correlation()(ES, wave((4, 6), 0.5, 0.1, torch.cos)), 3.005024518858749),
}


@pytest.mark.parametrize(("call", "golden"), GOLDEN.values(), ids=GOLDEN.keys())
def test_repdistillers_values(call, golden):
    value = call()
    actual = [x.item() for x in value] if isinstance(value, list) else value.item()
    assert actual == pytest.approx(golden, rel=1e-11)


def test_vid_with_given_convolutions():
    loss = rd.VIDLoss(6, 8, 8).double()
    assert loss.log_scale.tolist() == pytest.approx([4.99322918] * 8, rel=1e-7)
    assert list(loss.state_dict()) == ["log_scale", "regressor.0.weight", "regressor.2.weight", "regressor.4.weight"]
    with torch.no_grad():
        loss.log_scale.fill_(math.log(math.expm1(5 - 1e-5)))
        for convolution in loss.regressor[::2]:
            convolution.weight.copy_(0.3 * wave(convolution.weight.shape, 0.11, 0.4))
    assert loss(FS, FT).item() == pytest.approx(0.879343759837722, rel=1e-11)
    assert loss(FS, FT_SMALL).dim() == 0


def test_crd_as_the_original_computes_it():
    """Two steps with given negatives, compared with the original's arithmetic."""
    torch.manual_seed(0)
    n, k, b = 20, 5, 4
    options = SimpleNamespace(s_dim=6, t_dim=9, feat_dim=8, n_data=n, nce_k=k, nce_t=0.07, nce_m=0.5)
    crd = rd.CRDLoss(options).double()
    banks = [crd.contrast.student_bank.clone(), crd.contrast.teacher_bank.clone()]
    z = [None, None]
    for step in range(2):
        f_s, f_t = torch.randn(b, 6).double(), torch.randn(b, 9).double()
        idx = torch.randperm(n)[:b]
        contrast_idx = torch.cat([idx[:, None], torch.stack([torch.randperm(n)[:k] for _ in idx])], 1)
        embeddings = [embed(f).detach() for embed, f in ((crd.embed_s, f_s), (crd.embed_t, f_t))]
        expected = 0
        for side, other in ((0, 1), (1, 0)):
            out = torch.exp((banks[other][contrast_idx] * embeddings[side][:, None]).sum(-1) / 0.07)
            z[side] = out.mean() * n if step == 0 else z[side]
            x = out / z[side]
            noise = k / n
            log_positive = (x[:, 0] / (x[:, 0] + noise + 1e-7)).log()
            expected -= (log_positive.sum() + (noise / (x[:, 1:] + noise + 1e-7)).log().sum()) / b
        loss = crd(f_s, f_t, idx, contrast_idx)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        loss.backward()
        assert all(parameter.grad.abs().sum() > 0 for parameter in crd.parameters())
        for side in (0, 1):
            row = 0.5 * banks[side][idx] + 0.5 * embeddings[side]
            banks[side][idx] = row / row.norm(dim=1, keepdim=True)
    torch.testing.assert_close(crd.contrast.student_bank.double(), banks[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(crd.contrast.teacher_bank.double(), banks[1], rtol=1e-5, atol=1e-6)


def test_crd_draws_negatives_where_none_are_given():
    options = SimpleNamespace(s_dim=3, t_dim=3, feat_dim=4, n_data=10, nce_k=7, nce_t=0.07, nce_m=0.5)
    loss = rd.CRDLoss(options)(torch.randn(2, 3), torch.randn(2, 3), torch.tensor([1, 2]))
    assert loss.isfinite() and loss.dim() == 0


def test_the_mode_relax_updates_the_image_itself():
    options = SimpleNamespace(s_dim=3, t_dim=3, feat_dim=4, n_data=10, nce_k=2, nce_t=0.07, nce_m=0.5)
    crd = rd.CRDLoss(options)
    before = crd.contrast.student_bank.clone()
    crd(torch.randn(1, 3), torch.randn(1, 3), torch.tensor([1]), torch.tensor([[4, 5, 6]]))
    changed = (crd.contrast.student_bank != before).any(1)
    assert changed.nonzero().flatten().tolist() == [1]


def test_factor_transfer_with_other_powers():
    factor = rd.FactorTransfer(p1=2, p2=2)
    expected = (factor.factor(GS[0]) - factor.factor(GT[0])).square().mean()
    assert factor(GS[0], GT[0]).item() == pytest.approx(expected.item())


def test_unequal_lists_are_paired_from_the_front_with_a_warning():
    with pytest.warns(UserWarning, match="student has 3 maps, teacher 2"):
        assert len(rd.Attention()(GS, GT[:2])) == 2


def test_svd_of_networks_that_agree_is_zero():
    losses = rd.KDSVD()(GS, GS)
    assert len(losses) == 2
    assert all(loss.item() < 1e-6 for loss in losses)
    assert all(loss > 0 for loss in rd.KDSVD()(GS, GT))


def test_fsp_refuses_other_channels():
    with pytest.raises(ValueError, match="same channels"):
        rd.FSP([(4, 6, 4, 4)], [(4, 8, 4, 4)])


def test_a_training_loop_runs_on():
    """The lines of a step in RepDistiller's scripts, on a toy problem."""
    torch.manual_seed(0)
    student, teacher = (nn.Conv2d(3, width, 3, padding=1) for width in (4, 6))
    images = torch.randn(8, 3, 5, 5)
    criterion = rd.Attention()
    optimizer = torch.optim.SGD(student.parameters(), 50.0)
    totals = []
    for _ in range(20):
        with torch.no_grad():
            g_t = [teacher(images)]
        loss = sum(criterion([student(images)], g_t))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        totals.append(loss.item())
    assert totals[-1] < 0.8 * totals[0]
