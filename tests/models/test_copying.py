"""Networks with pruned or normalised weights, hooks or saved maps: copied, saved and distilled like any other."""

from __future__ import annotations

import threading
import warnings

import pytest
import torch
from torch import nn
from torch.ao import quantization
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from sftn_fast import distillers, models
from sftn_fast.models.copying import copy_network, copy_without_data, copy_without_hooks
from sftn_fast.models.staged import SMALL
from sftn_fast.sftn import StudentAwareTeacher

SIZE, CLASSES = 16, 5


def convolutions(net):
    return [module for module in net.modules() if type(module) is nn.Conv2d]


def on_convolutions(change):
    def apply(net):
        for convolution in convolutions(net):
            change(convolution)
        return net

    return apply


def with_saved_maps(net):
    """Let each convolution store its last map, with its graph, in a list and in a buffer."""
    for convolution in convolutions(net):
        convolution.saved = []
        convolution.register_buffer("last", None, persistent=False)

        def keep(module, inputs, output):
            module.saved[:] = [{"map": output * 1}]
            module.last = output * 1

        convolution.register_forward_hook(keep)
    return net


class Owner:
    """An object with a lock, which can't be copied."""

    def __init__(self):
        self.lock, self.calls = threading.Lock(), 0

    def count(self, module, inputs, output):
        self.calls += 1


def with_a_strangers_hook(net):
    owner = Owner()
    net.stages[0].register_forward_hook(owner.count)
    return net


def shared(net):
    """Use the same block twice in the last stage's second half."""
    last = net.stages[-1]
    net.stages[-1] = models.staged.Stage(last[0], models.build("resnet14", num_classes=2).stages[2][1])
    net.stages[-1].append(net.stages[-1][1])
    return net


def quantised(net):
    net.train().qconfig = quantization.get_default_qat_qconfig("fbgemm")
    return quantization.prepare_qat(net, inplace=True)


KINDS = {
    "pruned": on_convolutions(lambda conv: prune.l1_unstructured(conv, "weight", 0.3)),
    "pruned twice": on_convolutions(
        lambda conv: prune.random_structured(prune.l1_unstructured(conv, "weight", 0.2), "weight", 0.2, dim=0)
    ),
    "weight_norm, old": on_convolutions(weight_norm),
    "weight_norm": on_convolutions(parametrizations.weight_norm),
    "spectral_norm, old": on_convolutions(spectral_norm),
    "spectral_norm": on_convolutions(parametrizations.spectral_norm),
    "maps kept": with_saved_maps,
    "a stranger's hook": with_a_strangers_hook,
    "shared": shared,
    "quantisation-aware": quantised,
}


@pytest.fixture(params=KINDS)
def net(request) -> models.StagedNet:
    """A network after a training step, with tensors that have a graph."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the old functions are deprecated
        changed = KINDS[request.param](models.build("resnet8", num_classes=CLASSES))
    changed.train()(torch.randn(4, 3, SIZE, SIZE)).sum().backward()
    return changed


def test_copies(net):
    x = torch.randn(2, 3, SIZE, SIZE)
    twin = copy_network(net.eval().apply(quantization.disable_observer))
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    assert torch.equal(twin(x), net(x))
    tensors = {tensor.data_ptr() for tensor in net.state_dict().values() if tensor.numel()}
    assert tensors.isdisjoint(tensor.data_ptr() for tensor in twin.state_dict().values())
    assert torch.equal(net.tail(2)(net.forward_features(x).stages[0]), net(x))
    assert net.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())


def test_two_steps_as_student_and_as_teacher(net):
    plain = models.build("resnet8", num_classes=CLASSES)
    for student, teacher in ((net, plain), (plain, net)):
        distiller = distillers.build("kd=1,at=1", student=student, teacher=teacher, num_samples=8, image_size=SIZE)
        optimizer = torch.optim.SGD([*student.parameters(), *distiller.parameters()], lr=0.01)
        before = [parameter.clone() for parameter in student.parameters()]
        for _ in range(2):
            terms = distiller(torch.randn(4, 3, SIZE, SIZE), torch.arange(4), torch.arange(4))
            optimizer.zero_grad()
            terms["total"].backward()
            optimizer.step()
        assert torch.isfinite(terms["total"])
        assert any(not torch.equal(old, new) for old, new in zip(before, student.parameters(), strict=True))


def test_branches_and_export(net, tmp_path):
    plain = models.build("resnet14", num_classes=CLASSES)
    aware = StudentAwareTeacher(plain, net, image_size=SIZE)
    logits, branches = aware(torch.randn(2, 3, SIZE, SIZE))
    assert all(branch.shape == logits.shape for branch in branches)
    models.save(net, tmp_path)
    with torch.no_grad():
        expected = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        for parameter in net.parameters():
            parameter.add_(1)
    models.load_weights(net, tmp_path)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in net.state_dict().items())


def test_a_copy_without_data_calls_no_strangers_hook():
    net, owner, seen = models.build("resnet8", num_classes=CLASSES), Owner(), []
    net.stages[1].register_forward_hook(owner.count)
    net.stem.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    for size in (SIZE, 2 * SMALL):  # by a real pass, and by one without data
        assert net.feature_shapes(size) == models.build("resnet8").feature_shapes(size)
    assert (owner.calls, seen) == (0, [])
    for copied in (copy_without_data(net), copy_without_hooks(net)):
        assert not copied.stem._forward_pre_hooks
    net(torch.randn(1, 3, SIZE, SIZE))
    assert (owner.calls, len(seen)) == (1, 1)


def test_a_networks_own_hooks_belong_to_its_copy():
    class Remembering(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.kept = nn.Linear(2, 2), None
            self.layer.register_forward_hook(self.keep)

        def keep(self, module, inputs, output):
            self.kept = output

        def forward(self, x):
            self.layer(x)
            return self.kept

    net = Remembering()
    net(torch.ones(1, 2))
    before, twin = net.kept, copy_network(net)
    assert torch.equal(twin(torch.zeros(1, 2)), net.layer.bias[None])
    assert net.kept is before


def test_what_is_no_staged_network_is_refused_with_what_to_do():
    net = models.build("resnet8", num_classes=CLASSES)
    traced = torch.fx.symbolic_trace(net)
    for student, teacher, which in ((traced, net, "student"), (net, traced, "teacher")):
        with pytest.raises(
            TypeError, match=f"{which} must be a StagedNet, got GraphModule: models.as_staged makes one"
        ):
            distillers.build("kd=1", student=student, teacher=teacher, num_samples=8, image_size=SIZE)
