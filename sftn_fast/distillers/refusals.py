"""What methods refuse: pairs of networks that they can't relate."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from sftn_fast.distillers import registry
from sftn_fast.distillers.method import Setup
from sftn_fast.distillers.spec import parse


def refusals(specs: Iterable[str], setup: Setup) -> Iterator[tuple[str, str]]:
    """Yield the specifications of which a method refuses ``setup``, with its error message."""
    # No weights are needed, and some adapters are larger than the networks.
    with torch.device("meta"):
        for spec in specs:
            try:
                for term in parse(spec).methods:
                    registry.find(term.name)(setup, **term.options)
            except ValueError as error:
                yield spec, str(error)
