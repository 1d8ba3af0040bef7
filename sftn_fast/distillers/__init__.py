"""Knowledge distillation methods by name, alone or combined, as the losses of one student.

A method is one file in :mod:`sftn_fast.distillers.methods`. This package imports torch only when a distiller is built
or a method's options are looked up, so that a command line is checked without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sftn_fast.distillers.registry import names, register
from sftn_fast.distillers.spec import parse

__all__ = ["build", "names", "parse", "register"]

if TYPE_CHECKING:
    from torch import Tensor

    from sftn_fast.distillers.distiller import Distiller
    from sftn_fast.models import StagedNet


def build(
    spec: str,
    *,
    student: StagedNet,
    teacher: StagedNet | Sequence[StagedNet],
    num_samples: int,
    image_size: int = 32,
    labels: Tensor | None = None,
    gather: bool = False,
) -> Distiller:
    """Build the losses that ``spec`` describes.

    Args:
        spec: Methods and weights, as in ``kd=0.9:temperature=2,ce=0.5``; see :func:`sftn_fast.distillers.spec.parse`.
        student: The network that learns.
        teacher: The network it learns from, or several; put into evaluation mode, and never trained.
        num_samples: Number of training images, for methods that remember each image.
        image_size: Side of the images in pixels.
        labels: Classes of the training images ``[num_samples]`` int64, for methods that contrast an image with images
            of other classes. Without them, the method collects labels from the batches.
        gather: Give methods that relate the images of a batch the images of all processes.

    Raises:
        ConfigError: ``spec`` is not understood.
        ValueError: The networks don't fit each other or the method.
    """
    from torch import nn

    from sftn_fast.distillers.distiller import Distiller

    # Distiller checks that they are staged networks.
    teachers = (teacher,) if isinstance(teacher, nn.Module) else tuple(teacher)
    return Distiller(
        parse(spec),
        student=student,
        teachers=teachers,
        num_samples=num_samples,
        image_size=image_size,
        labels=labels,
        gather=gather,
    )
