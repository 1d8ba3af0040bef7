"""The modules around a single op: each computes its op with the options it was built with."""

from __future__ import annotations

import inspect
from dataclasses import fields

import pytest
import torch
from torch import nn as torch_nn

from sftn_fast import config, nn, ops
from sftn_fast.compat import repdistiller

MAPS = torch.linspace(-2, 3, 2 * 3 * 4 * 4).sin().reshape(2, 3, 4, 4), torch.linspace(4, -1, 96).cos().view(2, 3, 4, 4)
ROWS = torch.linspace(-3, 3, 20).sin().view(4, 5), torch.linspace(-1, 5, 20).cos().view(4, 5)
TARGET = torch.tensor([0, 4, 1, 1])
MARGIN = torch.tensor([-0.5, -0.2, -1.0])
COST = torch.linspace(0, 1, 25).view(5, 5)

FACES = {
    "kd": (nn.KDLoss(2.0), ROWS, lambda: ops.kd_loss(*ROWS, 2.0)),
    "kd none": (nn.KDLoss(reduction="none"), ROWS, lambda: ops.kd_loss(*ROWS, reduction="none")),
    "kd_ce": (
        nn.KDCELoss(3.0, kd_weight=0.5, ce_weight=2.0, label_smoothing=0.1),
        (*ROWS, TARGET),
        lambda: ops.kd_ce_loss(*ROWS, TARGET, 3.0, kd_weight=0.5, ce_weight=2.0, label_smoothing=0.1).total,
    ),
    "sftn": (
        nn.SFTNLoss(kl_weight=1.0, branch_reduction="sum"),
        (ROWS[0], [ROWS[1], ROWS[1] + 1], TARGET),
        lambda: ops.sftn_loss(ROWS[0], [ROWS[1], ROWS[1] + 1], TARGET, kl_weight=1.0, branch_reduction="sum").total,
    ),
    "divergence": (nn.DivergenceLoss(2.0, kind="jsd"), ROWS, lambda: ops.divergence_loss(*ROWS, 2.0, kind="jsd")),
    "ttm": (nn.TTMLoss(gamma=0.3, weighted=True), ROWS, lambda: ops.ttm_loss(*ROWS, gamma=0.3, weighted=True)),
    "nkd": (nn.NKDLoss(3.0), (*ROWS, TARGET), lambda: ops.nkd_loss(*ROWS, TARGET, 3.0)),
    "dkd": (
        nn.DKDLoss(target_weight=2.0, standardize=True),
        (*ROWS, TARGET),
        lambda: ops.dkd_loss(*ROWS, TARGET, target_weight=2.0, standardize=True).total,
    ),
    "rld": (nn.RLDLoss(ranking_weight=1.0), (*ROWS, TARGET), lambda: ops.rld_loss(*ROWS, TARGET, ranking_weight=1.0)),
    "dist": (nn.DISTLoss(1.0, inter_weight=2.0), ROWS, lambda: ops.dist_loss(*ROWS, 1.0, inter_weight=2.0).total),
    "wkd": (nn.WKDLoss(COST, gamma=2.0), (*ROWS, TARGET), lambda: ops.wkd_loss(*ROWS, TARGET, COST, gamma=2.0)),
    "rkd": (nn.RKDLoss(distance_weight=1.0), ROWS, lambda: ops.rkd_loss(*ROWS, distance_weight=1.0).total),
    "rkd distance": (nn.RKDDistanceLoss(), ROWS, lambda: ops.rkd_distance_loss(*ROWS)),
    "rkd angle": (nn.RKDAngleLoss(), ROWS, lambda: ops.rkd_angle_loss(*ROWS)),
    "sp": (nn.SPLoss(), MAPS, lambda: ops.sp_loss(*MAPS)),
    "pkt": (nn.PKTLoss(eps=1e-5), ROWS, lambda: ops.pkt_loss(*ROWS, eps=1e-5)),
    "hint": (nn.HintLoss(), MAPS, lambda: ops.hint_loss(*MAPS)),
    "at": (nn.ATLoss(p=1), MAPS, lambda: ops.at_loss(*MAPS, p=1)),
    "ft": (nn.FTLoss(variant="paper"), MAPS, lambda: ops.ft_loss(*MAPS, variant="paper")),
    "ab": (nn.ABLoss(margin=0.5), MAPS, lambda: ops.ab_loss(*MAPS, margin=0.5)),
    "oh": (nn.OHLoss(MARGIN), MAPS, lambda: ops.oh_loss(*MAPS, MARGIN)),
}


@pytest.mark.parametrize(("module", "inputs", "op"), FACES.values(), ids=FACES.keys())
def test_the_module_is_its_op(module, inputs, op):
    result = module(*inputs)
    assert torch.equal(result.total if hasattr(result, "total") else result, op())


OPTIONS_OF_OPS = {
    nn.KDLoss: ops.kd_loss,
    nn.KDCELoss: ops.kd_ce_loss,
    nn.SFTNLoss: ops.sftn_loss,
    nn.DivergenceLoss: ops.divergence_loss,
    nn.TTMLoss: ops.ttm_loss,
    nn.NKDLoss: ops.nkd_loss,
    nn.DKDLoss: ops.dkd_loss,
    nn.RLDLoss: ops.rld_loss,
    nn.DISTLoss: ops.dist_loss,
    nn.RKDLoss: ops.rkd_loss,
    nn.RKDDistanceLoss: ops.rkd_distance_loss,
    nn.RKDAngleLoss: ops.rkd_angle_loss,
    nn.SPLoss: ops.sp_loss,
    nn.PKTLoss: ops.pkt_loss,
    nn.HintLoss: ops.hint_loss,
    nn.ATLoss: ops.at_loss,
    nn.FTLoss: ops.ft_loss,
    nn.ABLoss: ops.ab_loss,
}


def options(function) -> dict[str, object]:
    """Return the options of a signature, in order, with their defaults."""
    parameters = inspect.signature(function).parameters
    return {name: p.default for name, p in parameters.items() if p.default is not p.empty}


def test_every_module_of_an_op_is_in_the_table():
    modules = {value for value in vars(nn).values() if isinstance(value, type) and issubclass(value, nn.loss.OpLoss)}
    assert modules == set(OPTIONS_OF_OPS)


@pytest.mark.parametrize("module", OPTIONS_OF_OPS, ids=lambda module: module.__name__)
def test_a_module_has_the_options_of_its_op(module):
    """Signatures are written out for the reader and the editor; this test holds their defaults equal."""
    assert list(options(module).items()) == list(options(OPTIONS_OF_OPS[module]).items())
    kinds = [
        {name: inspect.signature(f).parameters[name].kind for name in options(module)}
        for f in (module, OPTIONS_OF_OPS[module])
    ]
    assert kinds[0] == kinds[1]


def test_the_configuration_has_the_options_of_the_op():
    defaults = {field.name: field.default for field in fields(config.SFTNConfig)}
    of_op = options(ops.sftn_loss)
    assert {name: defaults[name] for name in of_op} == of_op


@pytest.mark.parametrize("memory", [ops.CRDMemory, nn.CRDLoss], ids=["op", "module"])
def test_the_banks_have_the_same_options(memory):
    assert {name: options(memory)[name] for name in ("dim", "temperature", "momentum")} == {
        "dim": 128,
        "temperature": 0.07,
        "momentum": 0.5,
    }


def test_the_repr_shows_the_options():
    assert repr(nn.KDLoss(2.0)) == "KDLoss(temperature=2.0, reduction='batchmean', standardize=False)"
    assert repr(nn.HintLoss()) == "HintLoss()"


def test_margins_from_a_norm():
    norm = torch_nn.BatchNorm2d(2)
    norm.bias.data = torch.tensor([0.0, 0.2])
    norm.weight.data = torch.tensor([1.0, 0.5])
    loss = nn.OHLoss.from_norm(norm)
    assert loss.margin.tolist() == pytest.approx([-0.7978845608028654, -0.33437808587281054])
    assert list(loss.state_dict()) == ["margin"]
    assert not loss.margin.requires_grad


def test_crd_learns_and_remembers_in_training_only():
    torch.manual_seed(0)
    loss = nn.CRDLoss(5, 5, 10, dim=4, bank_dtype=torch.bfloat16)
    index, negatives = torch.tensor([0, 3, 5, 7]), torch.tensor([[1, 2, 9]] * 4)
    before = loss.memory.student_bank.clone()
    loss.eval()(*ROWS, index, negatives)
    assert torch.equal(loss.memory.student_bank, before)
    loss.train()(*ROWS, index, negatives).backward()
    assert not torch.equal(loss.memory.student_bank, before)
    assert all(parameter.grad.abs().sum() > 0 for parameter in loss.parameters())
    assert loss.memory.student_bank.dtype == torch.bfloat16


def test_an_embedding_of_zero_is_zero():
    embed = nn.Embed(3, 4)
    torch_nn.init.zeros_(embed.linear.bias)
    assert torch.equal(embed(torch.zeros(2, 3)), torch.zeros(2, 4))
    torch.testing.assert_close(embed(torch.randn(2, 3)).norm(dim=1), torch.ones(2))


WRONG = [None, True, "x", [1], -1, 0, -1.5, 1e40, float("nan"), float("inf"), 10**400, torch.tensor(1.0)]


@pytest.mark.parametrize("module", OPTIONS_OF_OPS, ids=lambda module: module.__name__)
def test_an_option_is_refused_at_construction_as_the_op_refuses_it(module):
    inputs = next(inputs for built, inputs, _ in FACES.values() if type(built) is module)
    for name in options(module):
        for value in WRONG:
            try:
                OPTIONS_OF_OPS[module](*inputs, **{name: value})
            except (TypeError, ValueError) as error:
                with pytest.raises(type(error)) as caught:
                    module(**{name: value})
                assert str(caught.value) == str(error) and name in str(error)
            else:
                module(**{name: value})


def crd(**options):
    return nn.CRDLoss(**{"student_dim": 5, "teacher_dim": 5, "num_samples": 9, **options})


def vid(**options):
    return nn.VIDLoss(**{"student_channels": 5, "teacher_channels": 5, **options})


def adapted(**options):
    return nn.AdaptedHint(**{"student_shape": (4, 8, 8), "teacher_shape": (4, 8, 8), **options})


SIZES, SHAPES = (
    [None, True, "x", 2.0, 0, -2, [3]],
    [None, 8, "abc", (4, 8.0, 8), (True, 8, 8), (0, 8, 8), (4, 8), [[1]] * 3],
)
OF_LAYERS = {
    (crd, "student_dim"): SIZES,
    (crd, "teacher_dim"): SIZES,
    (crd, "num_samples"): SIZES,
    (crd, "dim"): SIZES,
    (crd, "temperature"): [0, -1, float("nan"), None, "x"],
    (crd, "momentum"): [-1, 2, float("nan"), None, "x"],
    (crd, "bank_dtype"): [None, torch.int64, "float32"],
    (nn.Embed, "in_features"): SIZES,
    (vid, "student_channels"): SIZES,
    (vid, "teacher_channels"): SIZES,
    (vid, "mid_channels"): SIZES[1:],
    (vid, "init_variance"): [None, "x", 0, -1, float("nan"), float("inf"), 1e-6, 1e4],
    (vid, "eps"): [None, "x", 0, -1, float("nan")],
    (adapted, "student_shape"): SHAPES,
    (adapted, "teacher_shape"): SHAPES,
    (adapted, "eps"): [None, "x", 0, -1, float("nan")],
    (adapted, "momentum"): ["x", -1, 2, float("nan")],
    (adapted, "track_running_stats"): [None, 1, "no"],
    (nn.KDSVDLoss, "k"): SIZES,
    (nn.OHLoss, "margin"): [None, 1.0, [1.0], MAPS[0], TARGET, MARGIN.clone().requires_grad_()],
    (repdistiller.DistillKL, "T"): [None, "x", 0, -1, float("nan")],
    (repdistiller.Attention, "p"): [None, "x", 0, -1, float("nan")],
    (repdistiller.RKDLoss, "w_d"): [None, "x", float("nan")],
    (repdistiller.RKDLoss, "w_a"): [None, "x", float("nan")],
    (repdistiller.ABLoss, "feat_num"): SIZES,
    (repdistiller.FactorTransfer, "p1"): [None, "x", float("nan")],
    (repdistiller.FactorTransfer, "p2"): [None, "x", float("nan")],
    (repdistiller.KDSVD, "k"): SIZES,
}


@pytest.mark.parametrize(("build", "name"), OF_LAYERS, ids=lambda x: x if isinstance(x, str) else x.__name__)
def test_an_argument_is_refused_at_construction(build, name):
    for value in OF_LAYERS[build, name]:
        with pytest.raises(
            (TypeError, ValueError), match="dtype" if name == "bank_dtype" else rf"\b{name}\b"
        ) as caught:
            build(**{name: value})
        assert type(caught.value) in (TypeError, ValueError)
