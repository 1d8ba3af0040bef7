"""The losses in plain PyTorch, with the names and signatures of :mod:`sftn_fast.ops`.

The oracle of the tests, a baseline of the benchmarks, and what runs where there is no kernel. Arithmetic is float32
for half-precision inputs, as in the kernels. The functions trust their arguments; :mod:`sftn_fast.ops` checks them.
"""

from sftn_fast.ops.reference.contrastive import crd_loss
from sftn_fast.ops.reference.logits import kd_ce_loss, kd_loss, sftn_loss

__all__ = ["crd_loss", "kd_ce_loss", "kd_loss", "sftn_loss"]
