"""Networks that learn together: their losses computed by hand, and which network each loss changes."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F

from sftn_fast import cli, models, train
from sftn_fast.config import CollaborateConfig, ConfigError
from sftn_fast.tasks import CollaborativeTask

CLASSES = 4


def networks(count=3):
    torch.manual_seed(0)
    names = ("resnet8", "resnet14", "wrn_16_1")[:count]
    return [models.build(name, num_classes=CLASSES).eval() for name in names]


def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(5, 3, 8, 8, generator=generator), torch.tensor([0, 3, 1, 1, 2]), torch.arange(5)


def divergence(target, logits, temperature):
    p, log_q = (target / temperature).softmax(1), (logits / temperature).log_softmax(1)
    return temperature**2 * F.kl_div(log_q, p, reduction="batchmean")


@pytest.mark.parametrize(("peers", "share"), [("sum", 1.0), ("mean", 0.5)])
def test_mutual_learning(peers, share):
    nets = networks()
    terms = CollaborativeTask(nets, CollaborateConfig(peers=peers))(*batch())
    logits = [net(batch()[0]) for net in nets]
    ce = sum(F.cross_entropy(x, batch()[1]) for x in logits)
    kl = share * sum(divergence(peer, own, 1.0) for own in logits for peer in logits if peer is not own)
    torch.testing.assert_close(terms["total"], ce + kl)
    torch.testing.assert_close(terms["kl"], kl.detach())


def test_a_network_is_moved_by_its_own_loss_alone():
    nets = networks(2)
    CollaborativeTask(nets, CollaborateConfig())(*batch())["total"].backward()
    first = [p.grad.clone() for p in nets[0].parameters()]
    nets[0].zero_grad()
    own, peer = nets[0](batch()[0]), nets[1](batch()[0]).detach()
    (F.cross_entropy(own, batch()[1]) + divergence(peer, own, 1.0)).backward()
    for actual, parameter in zip(first, nets[0].parameters(), strict=True):
        torch.testing.assert_close(actual, parameter.grad)


@pytest.mark.parametrize("ensemble", ["mean", "minlogit"])
def test_collaborative_learning(ensemble):
    nets = networks()
    terms = CollaborativeTask(nets, CollaborateConfig(method="kdcl", ensemble=ensemble, own_views=False))(*batch())
    logits, target = [net(batch()[0]) for net in nets], batch()[1]
    if ensemble == "mean":
        wanted = sum(logits).detach() / 3
    else:
        wanted = torch.stack([x - x[torch.arange(5), target][:, None] for x in logits]).amin(0).detach()
    ce = sum(F.cross_entropy(x, target) for x in logits)
    kl = sum(divergence(wanted, x, 4.0) for x in logits)
    torch.testing.assert_close(terms["total"], 0.5 * ce + 0.5 * kl)


@pytest.mark.parametrize("method", ["dml", "kdcl"])
def test_a_view_for_each_network(method):
    nets, (images, target, index) = networks(), batch()
    views = torch.stack([images, images.flip(3), images.roll(1, 2)], 1)
    task = CollaborativeTask(nets, CollaborateConfig(method=method, own_views=True))
    assert task.views == 3
    logits = [net(views[:, number]) for number, net in enumerate(nets)]
    torch.testing.assert_close(task(views, target, index)["ce"], sum(F.cross_entropy(x, target) for x in logits))


@pytest.mark.parametrize(("method", "views"), [("dml", 1), ("kdcl", 3)])
def test_views_by_default(method, views):
    assert CollaborativeTask(networks(), CollaborateConfig(method=method)).views == views


def test_one_network_is_refused():
    with pytest.raises(ValueError, match="two networks or more"):
        CollaborativeTask(networks(1), CollaborateConfig())
    with pytest.raises(ConfigError, match=r"collaborate\.networks"):
        CollaborateConfig(networks=("resnet8",))


def test_a_run_from_the_command_line(tmp_path, capsys, monkeypatch):
    forward, seen = CollaborativeTask.forward, []
    monkeypatch.setattr(CollaborativeTask, "forward", lambda self, x, *more: seen.append(x) or forward(self, x, *more))
    options = "--config demo --data.name fake --data.train_size 32 --data.image_size 8 --optim.batch_size 16 --epochs 1"
    options += " --seeds [0] --stages [teacher,collaborate] --teacher resnet14 --collaborate.init teacher"
    options += " --collaborate.networks [resnet14,wrn_16_1,resnet8] --collaborate.method kdcl"
    options += " --engine.channels_last true --optim.accumulate 2"
    train.run(cli.parse([*options.split(), "--output", str(tmp_path / "run")])[0])
    result = json.loads((tmp_path / "run" / "seed0" / "collaborate" / "result.json").read_text())
    assert result["network"] == "resnet8"
    assert [peer["network"] for peer in result["peers"]] == ["resnet14", "wrn_16_1"]
    assert models.load(tmp_path / "run" / "student").name == "resnet8"
    assert models.load(tmp_path / "run" / "seed0" / "collaborate" / "peer2").name == "wrn_16_1"
    assert "student among peers" in capsys.readouterr().out
    assert [x.shape for x in seen] == [(4, 3, 3, 8, 8), *[(8, 3, 3, 8, 8)] * 4]  # after the trial's
    trained = seen[1:]
    assert all(x[:, number].stride(1) == 1 for x in trained for number in range(3))  # NHWC
    assert not any(
        torch.equal(x[:, first], x[:, second]) for x in trained for first, second in ((0, 1), (0, 2), (1, 2))
    )
