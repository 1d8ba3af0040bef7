"""Tensors of the layers that learn to quantise, by the names that torch.ao gives them."""

from __future__ import annotations

import re

_OBSERVER = r"(.*\.)?(weight_fake_quant|activation_post_process(_\d+)?)"
_SIZED_BY_DATA = re.compile(rf"{_OBSERVER}\.(scale|zero_point|min_val|max_val)")


def is_sized_by_data(name: str) -> bool:
    """Return whether the first batch gives this tensor its size: one number a channel; a new layer has one or none.

    The layer takes any size when it loads its state.
    """
    return _SIZED_BY_DATA.fullmatch(name) is not None
