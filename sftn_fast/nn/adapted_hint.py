"""The hint loss with its regressor: a convolution, then BatchNorm, ReLU and squared error in one op."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sftn_fast import ops
from sftn_fast.ops import validation as check

Shape = tuple[int, int, int]


class AdaptedHint(nn.Module):
    """FitNets' hint loss (Romero et al., 2015) with RepDistiller's regressor, ``ConvReg``.

    ``forward(student_map, teacher_map)`` computes ``F.mse_loss(relu(bn(conv(student_map))), teacher_map)``. Everything
    after the convolution is :func:`sftn_fast.ops.adapted_hint_loss`. The sizes determine the kernel along each axis:

    ============================== =====================================================
    student's size S, teacher's T  convolution
    ============================== =====================================================
    ``S == 2 T``                   3, stride 2, padding 1
    ``2 S == T``                   4, stride 2, padding 1, transposed (the other axis must be equal or doubled too)
    ``S >= T``                     ``1 + S - T``, without padding: 1x1 where the maps are of one size
    ============================== =====================================================

    Parameters are ``conv.*`` and ``bn.*``, as in ``ConvReg``, so its weights load. ``bn`` is an ``nn.BatchNorm2d``. Its
    mode, momentum and running statistics have the same effect as if it were called. If ``bn`` was converted to
    ``nn.SyncBatchNorm`` or another module, it is called and :func:`sftn_fast.ops.hint_loss` compares its output.

    Args:
        student_shape: (C, H, W) of the student's map [N, C, H, W].
        teacher_shape: (C', H', W') of the teacher's map [N, C', H', W'].
        eps: ``eps`` of ``bn``.
        momentum: ``momentum`` of ``bn``; None for cumulative averages.
        track_running_stats: ``track_running_stats`` of ``bn``; False to always normalise by the batch.

    Raises:
        ValueError: if a shape is not (C, H, W) of a map, or no convolution maps one shape to the other.
    """

    conv: nn.Conv2d | nn.ConvTranspose2d
    bn: nn.BatchNorm2d

    def __init__(
        self,
        student_shape: Shape,
        teacher_shape: Shape,
        *,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        track_running_stats: bool = True,
    ) -> None:
        super().__init__()
        check.check_positive("eps", eps)
        if momentum is not None:
            check.check_fraction("momentum", momentum)
        check.check_flag("track_running_stats", track_running_stats)
        self.conv = hint_convolution(student_shape, teacher_shape)
        self.bn = nn.BatchNorm2d(teacher_shape[0], eps, momentum, track_running_stats=track_running_stats)

    def forward(self, student_map: Tensor, teacher_map: Tensor) -> Tensor:
        """Compute the loss, 0-dim float32 (float64 for float64 maps). Updates the running statistics in training."""
        check.check_feature_map("student_map", student_map)
        check.check_feature_map("teacher_map", teacher_map)
        bn = self.bn
        if type(bn) is not nn.BatchNorm2d:
            return ops.hint_loss(self.regress(student_map), teacher_map)
        tracked = not bn.training or bn.track_running_stats
        return ops.adapted_hint_loss(
            self.conv(student_map),
            teacher_map,
            bn.weight,
            bn.bias,
            bn.running_mean if tracked else None,
            bn.running_var if tracked else None,
            training=bn.training or bn.running_mean is None,
            momentum=_count_batch(bn),
            eps=bn.eps,
        )

    def regress(self, student_map: Tensor) -> Tensor:
        """Return the regressed map ``relu(bn(conv(student_map)))``, [N, C', H', W'].

        In training this counts as one more batch for ``bn``.
        """
        return F.relu(self.bn(self.conv(student_map)))


def _count_batch(bn: nn.BatchNorm2d) -> float:
    """Count a batch as a call of ``bn`` would, and return its weight in the running statistics."""
    if not (bn.training and bn.track_running_stats) or bn.num_batches_tracked is None:
        return bn.momentum or 0.0
    with torch.no_grad():
        bn.num_batches_tracked.add_(1)
    return 1.0 / float(bn.num_batches_tracked) if bn.momentum is None else bn.momentum


def hint_convolution(student: Shape, teacher: Shape) -> nn.Conv2d | nn.ConvTranspose2d:
    """Build the convolution of :class:`AdaptedHint`, from [N, *student] to [N, *teacher], with a bias."""
    for name, shape in (("student_shape", student), ("teacher_shape", teacher)):
        if not isinstance(shape, list | tuple):
            raise TypeError(f"{name} must be (C, H, W) of a map, got {shape!r}")
        for i, size in enumerate(shape):
            check.check_integer(f"{name}[{i}]", size)
        if len(shape) != 3 or min(shape) < 1:
            raise ValueError(f"no convolution from {student} to {teacher}: {name} must be (C, H, W) of a map")
    sizes = list(zip(student[1:], teacher[1:], strict=True))
    doubles = any(2 * s == t for s, t in sizes)
    if not all(s == t or (2 * s == t if doubles else s > t) for s, t in sizes):
        allowed = "height and width may be halved, cropped or kept, or doubled or kept"
        raise ValueError(f"no convolution from {student} to {teacher}: {allowed}")
    (height, by_h, pad_h), (width, by_w, pad_w) = (_kernel(s, t) for s, t in sizes)
    kind = nn.ConvTranspose2d if doubles else nn.Conv2d
    return kind(student[0], teacher[0], (height, width), (by_h, by_w), (pad_h, pad_w))


def _kernel(student: int, teacher: int) -> tuple[int, int, int]:
    """Return kernel, stride and padding along one axis."""
    if student == 2 * teacher:
        return 3, 2, 1
    if 2 * student == teacher:
        return 4, 2, 1
    return 1 + student - teacher, 1, 0
