"""Search of a file for the weights of a network: under which keys, and with which prefix of their names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sftn_fast.models.staged import StagedNet
from sftn_fast.models.weight_files import WeightsError
from sftn_fast.utils.text import escape, listed, printable

COUNTER = "num_batches_tracked"
PASSED_OVER = (COUNTER, "total_ops", "total_params", "n_averaged")
"""Last parts of names of tensors that no network computes with: the counters of BatchNorm, of thop and of
torch.optim.swa_utils.AveragedModel."""
AVERAGED = re.compile(r"(^|_)(ema|swa|averaged?)(_|$)")
"""Keys or prefixes of averaged weights. They are preferred, as in timm, since scripts that average evaluate them."""
DEPTH = 4
"""Largest number of nested keys, and of parts of a prefix, that are searched."""


@dataclass
class Candidate:
    """Tensors of a file that may be the network's weights.

    Attributes:
        key: Keys under which the file has them, joined by dots.
        label: Keys and prefix.
        tensors: Tensors by the network's names where these are known, else by the file's without the prefix.
        theirs: The file's names of the tensors.
        remarks: Messages for the user: the prefix that was removed, the entries that were ignored.
        matches: Number of the network's tensors among them.
    """

    key: str
    label: str
    tensors: dict[str, Tensor]
    theirs: list[str]
    remarks: list[str]
    matches: int

    @property
    def is_averaged(self) -> bool:
        """Whether the label names averages over the steps of a training."""
        return any(AVERAGED.search(part) for part in self.label.split("."))

    def named(self, name: str) -> str:
        """Return the file's name of the tensor that the network calls ``name``."""
        return dict(zip(self.tensors, self.theirs, strict=True))[name]


class _Source(NamedTuple):
    """A mapping in the file that holds tensors by name."""

    key: str
    tensors: dict[str, Tensor]


def find_candidates(
    payload: Mapping[Any, Any], net: nn.Module, own: Mapping[str, Tensor], path: str | Path, prefix: str | None
) -> list[Candidate]:
    """Return all candidates for the weights of ``net``, the most likely first; ``own`` is its state.

    Raises:
        WeightsError: ``payload`` has no tensors by name, or none with ``prefix``.
    """
    sources = list(_sources(payload))
    if not sources:
        stranger = next((key for key, value in payload.items() if not isinstance(value, Mapping)), None)
        such = "" if stranger is None else f", such as {stranger!r}"
        raise WeightsError(f"{escape(path)} holds no weights by name, only other values{such}")
    needed = sum(name.rpartition(".")[2] != COUNTER for name in own)
    found = []
    for source in sources:
        for before in _prefixes(source, needed):
            if prefix is None or prefix.rstrip(".") in (before.rstrip("."), f"{source.key}.{before}".strip(".")):
                found.append(_candidate(source, before, net, own, payload))
    if not found:
        raise WeightsError(
            f"{escape(path)} holds no weights with the prefix {prefix!r}, but {listed(list(sources[0].tensors))}"
        )
    return sorted(found, key=lambda each: (-each.matches, len(each.label)))


def prefer(fitting: Sequence[Candidate], path: str | Path) -> Candidate | None:
    """Return the averaged candidate of ``fitting``, else the only one, or None if there is none.

    Raises:
        WeightsError: Several candidates fit, and their values differ.
    """
    averaged = [each for each in fitting if each.is_averaged]
    different: list[Candidate] = []
    for each in averaged or fitting:
        if not any(_same(each, other) for other in different):
            different.append(each)
    if len(different) > 1:
        labels = [repr(printable(each.label)) for each in different]
        raise WeightsError(
            f"{escape(path)} holds {len(different)} networks that fit, {' and '.join(labels[:4])}: save the one to use "
            f"in a file of its own, or name it, as in load_weights(..., prefix={labels[0]})"
        )
    if not different:
        return None
    (chosen,) = different
    if averaged and len(averaged) < len(fitting):
        chosen.remarks.insert(0, f"using the averaged weights, {printable(chosen.label)!r}")
    return chosen


def _same(one: Candidate, other: Candidate) -> bool:
    return one.tensors.keys() == other.tensors.keys() and all(
        tensor is other.tensors[name]
        or (
            tensor.dtype == other.tensors[name].dtype
            and tensor.layout is torch.strided is other.tensors[name].layout
            and not (tensor.is_meta or other.tensors[name].is_meta)
            and torch.equal(tensor, other.tensors[name])
        )
        for name, tensor in one.tensors.items()
    )


def _sources(
    payload: Mapping[Any, Any], key: str = "", depth: int = 0, seen: set[int] | None = None
) -> Iterator[_Source]:
    """Yield each mapping that holds tensors by name, once even if it appears several times."""
    seen = set() if seen is None else seen
    if id(payload) in seen:
        return
    seen.add(id(payload))
    named = {name: value for name, value in payload.items() if isinstance(name, str)}
    tensors = {name: value for name, value in named.items() if isinstance(value, Tensor)}
    if tensors:
        yield _Source(key, tensors)
    for name, value in named.items():
        if isinstance(value, Mapping) and depth < DEPTH:
            yield from _sources(value, f"{key}.{name}".lstrip("."), depth + 1, seen)


def _prefixes(source: _Source, needed: int) -> list[str]:
    """Return the prefixes to try: none, and each one that at least half as many names share as are ``needed``."""
    starts: Counter[str] = Counter()
    for name in source.tensors:
        parts = name.split(".")
        starts.update(".".join(parts[:depth]) + "." for depth in range(1, min(DEPTH, len(parts) - 1) + 1))
    return ["", *(start for start, count in starts.items() if count >= max(1, needed // 2))]


def _candidate(
    source: _Source, before: str, net: nn.Module, own: Mapping[str, Tensor], payload: Mapping[Any, Any]
) -> Candidate:
    theirs = [name for name in source.tensors if name.startswith(before)]
    names = _own_names([name.removeprefix(before) for name in theirs], net, own)
    harmless = [name not in own and name.rpartition(".")[2] in PASSED_OVER for name in names]
    kept = [(name, other) for name, other, left in zip(names, theirs, harmless, strict=True) if not left]
    left_out = _counted(other.rpartition(".")[2] for other, left in zip(theirs, harmless, strict=True) if left)
    depth = max(1, before.count("."))
    left_out += _counted(".".join(name.split(".")[:depth]) for name in source.tensors if not name.startswith(before))
    left_out += [
        printable(name) for name in payload if name not in source.tensors and name != source.key.partition(".")[0]
    ]
    remarks = [f"removed the prefix {before!r}"] if before else []
    if left_out:
        remarks.append(f"ignored: {', '.join(left_out[:12])}{' ...' if len(left_out) > 12 else ''}")
    tensors = {name: source.tensors[other] for name, other in kept}
    matches = len(tensors.keys() & own.keys())
    label = f"{source.key}.{before}".strip(".")
    return Candidate(source.key, label, tensors, [other for _, other in kept], remarks, matches)


def _counted(names: Iterable[str]) -> list[str]:
    """Return each of ``names`` once, with the number of its tensors if there are several."""
    return [printable(name) if n == 1 else f"{printable(name)} ({n} tensors)" for name, n in Counter(names).items()]


def _own_names(names: Sequence[str], net: nn.Module, own: Mapping[str, Tensor]) -> list[str]:
    """Translate a file's ``names`` into the network's, by the translation that matches most of them."""
    best = list(names)
    if not isinstance(net, StagedNet):
        return best
    for plainer in (names, [_without_backbone(name) for name in names]):
        renamed = [net.own_name(name) for name in plainer]
        # Two names for one tensor are reported as a mismatch, since either value may be the right one.
        if len(set(renamed)) == len(names) and len(own.keys() & set(renamed)) > len(own.keys() & set(best)):
            best = renamed
    return best


def _without_backbone(name: str) -> str:
    """Remove OpenMMLab's prefixes: ``backbone.`` of the network, ``head.`` or ``cls_head.`` of the classifier."""
    return re.sub(r"^(head|cls_head)\.(fc|classifier|linear)\.", r"\2.", name).removeprefix("backbone.")
