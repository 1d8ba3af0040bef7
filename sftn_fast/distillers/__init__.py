"""Knowledge distillation: methods by name, alone or combined, as the losses of one student.

A method is one file in :mod:`sftn_fast.distillers.methods`. This package imports torch only when a distiller is built
or a method's options are looked up, so that a command line can be checked without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sftn_fast.distillers.spec import parse

if TYPE_CHECKING:
    from sftn_fast.distillers.distiller import Distiller
    from sftn_fast.models import StagedNet


def build(spec: str, *, student: StagedNet, teacher: StagedNet, num_samples: int, image_size: int) -> Distiller:
    """Build the losses that ``spec`` describes.

    Args:
        spec: Methods and weights, as in ``kd=0.9:temperature=2,ce=0.5``; see :func:`sftn_fast.distillers.spec.parse`.
        student: The network that learns.
        teacher: The network it learns from; put into evaluation mode, and never trained.
        num_samples: Training images, for methods that remember each.
        image_size: Side of the images in pixels.

    Raises:
        ConfigError: ``spec`` is not understood.
        ValueError: The networks don't fit each other or the method.
    """
    from sftn_fast.distillers.distiller import Distiller

    return Distiller(parse(spec), student=student, teacher=teacher, num_samples=num_samples, image_size=image_size)
