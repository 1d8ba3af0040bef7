"""Parser of ``--distill``: ``NAME[=WEIGHT][:OPTION=VALUE]...``, separated by commas."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from sftn_fast.config import ConfigError
from sftn_fast.distillers import registry
from sftn_fast.distillers.options import OptionValue, options_of
from sftn_fast.utils.similar_names import did_you_mean, nearest

CE = "ce"
ALIASES = {
    "abound": "ab",
    "attention": "at",
    "correlation": "cc",
    "factor": "ft",
    "hint": "fitnet",
    "mlkd": "mlld",
    "ofd": "oh",
    "similarity": "sp",
}
"""Names of the methods in RepDistiller and mdistiller."""
OPTION_ALIASES = {
    "crd": {"nce_k": "negatives", "nce_t": "temperature", "nce_m": "momentum", "feat_dim": "dim"},
    "fitnet": {"hint_layer": "layer"},
}
"""Names of the options in RepDistiller's script. Its hint layer 0, the stem, is not supported."""
ALONE = (
    *("cat", "crd", "ctkd", "dist", "dkd", "hard", "kd", "lskd", "mlld", "nkd", "ofa", "rld", "sdd", "simkd", "srd"),
    *("srrl", "sskd", "ttm", "uskd", "wkd", "wkd_f", "wsld", "wttm"),
)
"""Methods that the SFTN paper or the method's own paper trains without KD beside them."""


@dataclass(frozen=True)
class Term:
    """One method of a specification."""

    name: str
    weight: float | None = None
    """None for the method's default."""
    options: Mapping[str, OptionValue] = field(default_factory=dict)


VARIANTS = {
    "lskd": Term("kd", 9.0, {"temperature": 2.0, "standardize": True}),
    "wttm": Term("ttm", 3.0, {"weighted": True}),
}
"""Methods that are published under a name of their own and are settings of another one."""


def variant_of(term: Term) -> str | None:
    """Return the name in :data:`VARIANTS` that ``term`` goes by: the one whose switches are on in it."""
    for name, variant in VARIANTS.items():
        if term.name == variant.name and _switches(variant).items() <= term.options.items():
            return name
    return None


def _switches(variant: Term) -> dict[str, OptionValue]:
    """Return the options that make ``variant`` what its name says."""
    return {option: value for option, value in variant.options.items() if isinstance(value, bool)}


@dataclass(frozen=True)
class Spec:
    """The methods in the given order, and the weight of the cross-entropy with the labels, which is always added."""

    methods: tuple[Term, ...]
    ce_weight: float | None = None
    """None for the default, which depends on the methods."""


def parse(text: str, key: str = "distill") -> Spec:
    """Read a specification of distillation losses, which the setting ``key`` gives.

    ``kd`` is knowledge distillation with its default weights. ``kd=0.9:temperature=2,ce=0.5`` sets its weight, its
    temperature, and the weight of the cross-entropy with the labels, ``ce``. RepDistiller's names are accepted too.
    Imports torch only if options are given, whose names and types come from the method's class.

    Raises:
        ConfigError: A part is not understood; the message quotes it and lists what is allowed.
    """
    try:
        return _parse(text)
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from error.__cause__


def _parse(text: str) -> Spec:
    terms = [_parse_term(piece.strip()) for piece in text.split(",")]
    for name, count in Counter(term.name for term in terms).items():
        if count > 1:
            raise _error(text, f"{name!r} is given {count} times")
    methods = tuple(term for term in terms if term.name != CE)
    if not methods:
        raise _error(text, f"give at least one method of {', '.join(registry.names())}")
    if all(term.weight == 0 for term in terms) and len(terms) > len(methods):
        raise _error(text, "every weight is 0, so that nothing would be learned; give one above 0")
    return Spec(methods, ce_weight=next((term.weight for term in terms if term.name == CE), None))


def known() -> list[str]:
    """Return the names of all methods and variants, sorted."""
    return sorted([*registry.names(), *VARIANTS])


def of_method(name: str) -> str:
    """Return the specification of one method as the SFTN paper trains it: methods on features jointly with KD."""
    name = ALIASES.get(name, name)
    if name not in registry.names() and name not in VARIANTS:
        raise ConfigError(f"method must be one of {', '.join(known())}, got {name!r}{_meant(name)}")
    return name if name in ALONE else f"{name},kd=1"


def of_weights(name: str, gamma: float | None, alpha: float | None, beta: float | None) -> str:
    """Return the specification that equals RepDistiller's ``--distill name -r gamma -a alpha -b beta``."""
    name = ALIASES.get(name, name)
    if name not in registry.names():
        known = ", ".join(registry.names())
        raise ConfigError(f"distill beside -r, -a or -b must be one method of {known}, got {name!r}{_meant(name)}")
    terms = {CE: 1.0 if gamma is None else gamma, "kd": alpha or 0.0}
    if name != "kd":
        terms[name] = beta or 0.0
    return ",".join(f"{term}={_exactly(weight)}" for term, weight in terms.items() if weight or term in (CE, name))


def _exactly(number: float) -> str:
    """Return the shortest text that reads back as ``number``."""
    short = f"{number:g}"
    return short if float(short) == number else repr(number)


def _parse_term(piece: str) -> Term:
    head, *options = piece.split(":")
    name, has_weight, weight = (part.strip() for part in head.partition("="))
    name = ALIASES.get(name, name)
    if name not in [CE, *known()]:
        raise _error(piece, f"unknown method {name!r}, known are {', '.join([CE, *known()])}{_meant(name)}")
    base = VARIANTS.get(name, Term(name))
    given = _parse_weight(piece, weight) if has_weight else base.weight
    chosen = _parse_options(piece, base.name, options)
    for option, value in _switches(base).items():
        if chosen.get(option, value) != value:
            switch = f"{option}={str(value).lower()}"
            raise _error(piece, f"{name} is {base.name} with {switch}; write {base.name} for the other one")
    return Term(base.name, given, dict(base.options) | chosen)


def _parse_weight(piece: str, text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 <= weight < math.inf:
        raise _error(piece, f"weight must be a finite number at least 0, got {text!r}")
    return weight


def _parse_options(piece: str, name: str, texts: list[str]) -> dict[str, OptionValue]:
    if not texts:
        return {}
    takes = {} if name == CE else options_of(registry.find(name))
    values: dict[str, OptionValue] = {}
    for text in texts:
        key, _, value = (part.strip() for part in text.partition("="))
        key = OPTION_ALIASES.get(name, {}).get(key, key)
        if key not in takes:
            listed = "; ".join(f"{option.name} ({option.allowed})" for option in takes.values()) or "no options"
            meant = did_you_mean(nearest(key, [*takes, *OPTION_ALIASES.get(name, {})]))
            raise _error(piece, f"unknown option {key!r}, {name} takes {listed}{meant}")
        if key in values:
            raise _error(piece, f"option {key!r} is given twice")
        try:
            values[key] = takes[key].read(value)
        except ValueError as error:
            raise _error(piece, str(error)) from None
    return values


def _meant(name: str) -> str:
    """Return a hint on the methods that ``name`` may stand for, by the names that they have here."""
    return did_you_mean(ALIASES.get(near, near) for near in nearest(name, [CE, *known(), *ALIASES]))


def _error(piece: str, problem: str) -> ConfigError:
    return ConfigError(f"in {piece!r}, {problem}")
