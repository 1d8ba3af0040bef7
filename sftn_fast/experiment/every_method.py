"""``--methods all``: every method that the pair of networks can be distilled by."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch

from sftn_fast import cli
from sftn_fast.config import ALL_METHODS, Config, ConfigError
from sftn_fast.data import ImageData
from sftn_fast.distillers import registry
from sftn_fast.distillers.method import NetInfo, Setup, TwoViewMethod
from sftn_fast.distillers.refusals import refusals
from sftn_fast.distillers.spec import VARIANTS, known, of_method, parse, variant_of
from sftn_fast.experiment import networks


def expand(config: Config, images: ImageData) -> tuple[Config, list[str]]:
    """Replace ``all`` in ``config.methods`` by the methods that are not given beside it.

    A method has the settings that its authors publish for this pair of networks, else those of ``--method``.

    Returns:
        The configuration, and a line for each method that is left out, with the reason.
    """
    given = [each for each in config.methods if each != ALL_METHODS]
    named = {_name_of(each) for each in given}
    specs = [settings_of(name, config) for name in known() if name not in named]
    left_out = dict(_left_out(config, specs, images))
    methods = (*given, *(spec for spec in specs if spec not in left_out))
    lines = [f"methods: all leaves out {spec}: {reason}" for spec, reason in left_out.items()]
    return dataclasses.replace(config, methods=methods), lines


def settings_of(name: str, config: Config) -> str:
    """Return the losses of the method or variant ``name`` for the networks of ``config``."""
    method = VARIANTS[name].name if name in VARIANTS else name
    published = registry.find(method).published.get(f"{config.teacher} {config.student}", ())
    specs = (published,) if isinstance(published, str) else published
    return next((spec for spec in specs if _name_of(spec) == name), of_method(name))


def _name_of(spec: str) -> str | None:
    """Return the one method or variant that ``spec`` is about, whether KD is beside it or not; None of several."""
    terms = parse(spec).methods
    others = [term for term in terms if term.name != "kd"] or list(terms)
    return variant_of(others[0]) or others[0].name if len(others) == 1 else None


def _left_out(config: Config, specs: list[str], images: ImageData) -> Iterator[tuple[str, str]]:
    with torch.device("meta"):
        student, teacher = (
            NetInfo.of(networks.build(name, images), images.image_size) for name in (config.student, config.teacher)
        )
        setup = Setup(student, teacher, images.num_train, images.image_size)
    yield from refusals(specs, setup)
    for spec in specs:
        try:
            cli.check_distill(dataclasses.replace(config, methods=(spec,)))
            if any(issubclass(registry.find(term.name), TwoViewMethod) for term in parse(spec).methods):
                images.with_views(2, strong=True)
        except ConfigError as error:
            yield spec, str(error)
