"""The package's own tasks and loaders fit the types that the engine asks for at run time."""

from __future__ import annotations

import pytest
import torch

from sftn_fast import data, models
from sftn_fast.config import DataConfig
from sftn_fast.engine import protocols
from sftn_fast.engine.protocols import DeferredTrainData, EpochTask, FrozenTask
from sftn_fast.tasks import DistillTask, SupervisedTask

from .stubs import Data, make_task


def test_a_task_of_the_package_is_told_of_epochs_and_a_bare_module_is_not() -> None:
    assert isinstance(SupervisedTask(models.build("resnet8", num_classes=3)), EpochTask)
    assert not isinstance(make_task(), EpochTask)


def test_a_loader_in_memory_defers_its_batches_and_a_plain_one_does_not() -> None:
    images = data.build(DataConfig("fake", train_size=8, image_size=8), seed=0, batch_size=4, device="cpu")
    assert isinstance(images.train, DeferredTrainData)
    assert not isinstance(Data().train, DeferredTrainData)
    made, deferred = next(images.train.epoch(0)), next(images.train.deferred_batches(0))
    assert torch.equal(deferred.make(*deferred.tensors).images, made.images)


@pytest.mark.parametrize(("kind", "protocol"), [(SupervisedTask, EpochTask), (DistillTask, FrozenTask)])
def test_a_class_fits_by_its_methods(kind: type, protocol: type) -> None:
    """A protocol with a property refuses this; from Python 3.12 on, no task with its model as a submodule would fit."""
    assert issubclass(kind, protocol)


def test_every_protocol_that_is_asked_for_has_methods_alone() -> None:
    asked = [each for each in vars(protocols).values() if getattr(each, "_is_runtime_protocol", False)]
    assert {EpochTask, FrozenTask, DeferredTrainData} <= set(asked)
    for each in asked:
        assert not issubclass(object, each), each
