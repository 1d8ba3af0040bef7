"""Normal form of ``--distill``: the same for all texts that describe the same training."""

from __future__ import annotations

import inspect
from collections.abc import Hashable, Iterable
from itertools import combinations

from sftn_fast.config import ConfigError
from sftn_fast.distillers import registry
from sftn_fast.distillers.distiller import complete_weights
from sftn_fast.distillers.spec import parse


def normal_form(text: str) -> Hashable:
    """Return weights and options of all losses in ``text``, with the defaults of those that it leaves out.

    Raises:
        ConfigError: A part of the text is not understood.
    """
    spec = parse(text)
    methods = {term.name: registry.find(term.name) for term in spec.methods}
    options = {
        (term.name, name, value)
        for term in spec.methods
        for name, value in (_defaults(methods[term.name]) | dict(term.options)).items()
    }
    return frozenset(complete_weights(spec, methods).items()), frozenset(options)


def refuse_equal(texts: Iterable[str]) -> None:
    """Raise :class:`ConfigError` for two texts that describe the same training."""
    forms = {text: normal_form(text) for text in texts}
    for (one, form), (other, same) in combinations(forms.items(), 2):
        if form == same:
            raise ConfigError(f"methods must differ from each other, got {one!r} and {other!r}, which are the same")


def _defaults(method: type) -> dict[str, object]:
    parameters = inspect.signature(method).parameters.values()
    return {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY}
