"""Loader of weights from any project: translates names without guessing, checks values, and loads all or none."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sftn_fast.models.candidates import COUNTER, Candidate, find_candidates, prefer
from sftn_fast.models.registry import names
from sftn_fast.models.staged import StagedNet
from sftn_fast.models.weight_files import WeightsError, safetensors
from sftn_fast.utils.observers import is_sized_by_data
from sftn_fast.utils.text import escape, listed, printable

__all__ = ["Say", "WeightsError", "assign", "safetensors"]

logger = logging.getLogger(__name__)

Say = Callable[[str], object]
"""Receives one line for the user."""
SHOWN = 5
"""Largest number of mismatched tensors that a message lists."""
BOUNDS = (".min_val", ".max_val")
"""Last parts of names of the bounds in torch.ao's observers, which are infinite before the first batch."""


def assign(
    net: nn.Module,
    payload: Mapping[Any, Any],
    path: str | Path,
    *,
    prefix: str | None = None,
    keep_head: bool = False,
    say: Say | None = None,
) -> None:
    """Copy the weights in ``payload`` into ``net``, all of them or none.

    Args:
        net: The network.
        payload: Content of a file.
        path: The file, for messages.
        prefix: Key or prefix of the network to load, if the file holds several.
        keep_head: Keep the network's own classifier if the file's has another number of classes.
        say: Called with one line about prefixes, ignored entries and conversions; by default it is logged as a warning.

    Raises:
        WeightsError: No network in the file fits, or several do; or values can't be weights.
    """
    own = {name: tensor for name, tensor in net.state_dict().items() if isinstance(tensor, Tensor)}
    candidates = find_candidates(payload, net, own, path, prefix)
    fitting = [each for each in candidates if not _differences(own, each)]
    if not fitting and keep_head:
        fitting = [each for each in candidates if not _differences(own, each, _Classes.of(net))]
    chosen = prefer(fitting, path)
    if chosen is None:
        raise WeightsError(_mismatch(net, own, candidates[0], path))
    values, remarks = _values(own, chosen, path)
    kept = [name for name in own if name not in values and not _is_counter(name)]
    if kept:
        classes = f"{len(chosen.tensors[kept[0]])} classes, this network {len(own[kept[0]])}"
        remarks.insert(0, f"loaded all but the classifier ({listed(kept)}): the file has {classes}")
    net.load_state_dict(values, strict=False)
    remarks = [*chosen.remarks, *remarks]
    if remarks:
        (say or logger.warning)(f"{escape(path)}: {'; '.join(remarks)}")


class _Classes(NamedTuple):
    """Number of a network's classes, and what the names of its classifier's tensors begin with."""

    number: int
    names: tuple[str, ...]

    @classmethod
    def of(cls, net: nn.Module) -> _Classes | None:
        """Return those of ``net``; None for a network that does not tell."""
        return cls(net.num_classes, net.head_names) if isinstance(net, StagedNet) else None


def _differences(own: Mapping[str, Tensor], found: Candidate, classes: _Classes | None = None) -> list[str]:
    """Return a line for each tensor that differs in shape or is missing on one side, up to :data:`SHOWN` in all.

    If ``classes`` is given, a classifier for that many classes may differ from the file's in its number of classes.
    """
    lacking = [name for name in own if name not in found.tensors and not _is_counter(name)]
    extra = [name for name in found.tensors if name not in own]
    other = [
        name
        for name, tensor in own.items()
        if name in found.tensors
        and not _same_shape(name, found.tensors[name], tensor)
        and not _differs_in_classes(name, found.tensors[name], tensor, classes)
    ]
    kinds = [
        [
            f"{printable(name)}: {_shape(found.tensors[name])} in the file, {_shape(own[name])} in the network"
            for name in other
        ],
        [f"{printable(name)}: {_shape(own[name])} in the network, not in the file" for name in lacking],
        [
            f"{printable(found.named(name))}: {_shape(found.tensors[name])} in the file, not in the network"
            for name in extra
        ],
    ]
    shares = [0, 0, 0]
    for turn in range(3 * SHOWN):  # alternate, so that one kind does not hide the others
        kind = turn % 3
        shares[kind] += sum(shares) < SHOWN and shares[kind] < len(kinds[kind])
    lines = [line for kind, share in zip(kinds, shares, strict=True) for line in kind[:share]]
    more = sum(map(len, kinds)) - len(lines)
    return [*lines, f"and {more} more"] if more else lines


def _mismatch(net: nn.Module, own: Mapping[str, Tensor], nearest: Candidate, path: str | Path) -> str:
    name = net.name if isinstance(net, StagedNet) else type(net).__name__
    what = f"{name} with {net.num_classes} classes" if isinstance(net, StagedNet) else name
    if not _differences(own, nearest, _Classes.of(net)):
        what += " (all but the classifier does: sftn.init accepts such a file, and load_weights(..., keep_head=True))"
    twins = [other for other in names() if other != name and other.lower() == name.lower()]
    what += "".join(f" ({twin} is another network)" for twin in twins)
    lines = "".join(f"\n  {line}" for line in _differences(own, nearest))
    under = f"under {printable(nearest.key)!r} " if nearest.key else ""
    return f"{escape(path)} does not fit {what}; the file has {under}{listed(nearest.theirs)}:{lines}"


def _values(own: Mapping[str, Tensor], found: Candidate, path: str | Path) -> tuple[dict[str, Tensor], list[str]]:
    """Check the candidate's tensors; return the values to copy into the network, and remarks for the user."""
    values, faults, converted = {}, [], set()
    missing = [name for name in own if _is_counter(name) and name not in found.tensors]
    for name, tensor in own.items():
        given = found.tensors.get(name)
        if _is_counter(name):
            counted = None if given is None else _count(given)
            if counted is None and given is not None:
                missing.append(name)
            values[name] = torch.full_like(tensor, counted or 0)
        elif given is not None and _same_shape(name, given, tensor):
            fault = find_fault(name, given, tensor.dtype)
            if fault:
                faults.append(f"{printable(found.named(name))} {fault}")
            elif given.dtype != tensor.dtype:
                converted.add(f"converted {_dtype(given)} weights to {_dtype(tensor)}")
            values[name] = given
    if faults:
        raise WeightsError(f"{escape(path)} holds what can't be weights, so nothing was loaded: {listed(faults, '; ')}")
    remarks = sorted(converted)
    if missing:
        remarks.append(f"set {len(missing)} counters {COUNTER}, which the file lacks, to 0")
    return values, remarks


def find_fault(name: str, given: Tensor, dtype: torch.dtype) -> str | None:
    """Return why ``given`` can't be a weight of this ``dtype``, or None if it can."""
    if given.is_meta:
        return "has a shape and no data (meta)"
    if given.layout is not torch.strided or given.is_nested:
        return f"is not dense ({str(given.layout).removeprefix('torch.')})"
    if given.is_quantized:
        return f"is quantised ({_dtype(given)})"
    floats = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    if dtype.is_floating_point and given.dtype not in floats:
        return f"is {_dtype(given)}, not floating point of 16 bits or more"
    whole = not (given.is_floating_point() or given.is_complex() or given.dtype == torch.bool)
    if not dtype.is_floating_point and not (whole or given.dtype == dtype):
        return f"is {_dtype(given)}, not {str(dtype).removeprefix('torch.')}"
    if not dtype.is_floating_point:
        return None
    if name.endswith(BOUNDS):
        return None
    held = given.detach().to(dtype)
    if not torch.isfinite(held).all():
        beyond = torch.isfinite(given).all()
        return (
            f"has values beyond {str(dtype).removeprefix('torch.')}"
            if beyond
            else "has values that are NaN or infinite"
        )
    if name.endswith("running_var") and bool((held < 0).any()):
        return "has negative variances"
    return None


def _is_counter(name: str) -> bool:
    return name.rpartition(".")[2] == COUNTER


def _count(given: Tensor) -> int | None:
    """Return the number of batches in a counter; None if it is unreadable, such as after ``half()`` of a large one."""
    if (
        given.is_meta
        or given.numel() != 1
        or given.is_complex()
        or given.is_quantized
        or given.layout is not torch.strided
    ):
        return None
    number = given.item()
    return int(number) if 0 <= number < 2**63 else None


def _same_shape(name: str, given: Tensor, own: Tensor) -> bool:
    if is_sized_by_data(name):
        return given.dim() <= 1 and own.dim() <= 1
    return given.shape == own.shape or (_is_counter(name) and given.numel() == 1)


def _differs_in_classes(name: str, given: Tensor, own: Tensor, classes: _Classes | None) -> bool:
    """Return whether this tensor of the head has a row per class, and only the number of rows differs."""
    if classes is None or not name.startswith(classes.names):
        return False
    return 0 < given.dim() == own.dim() and len(own) == classes.number and given.shape[1:] == own.shape[1:]


def _shape(tensor: Tensor) -> list[int]:
    return list(tensor.shape)


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
