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
from sftn_fast.distillers.spec import known, of_method, parse
from sftn_fast.experiment import networks


def expand(config: Config, images: ImageData) -> tuple[Config, list[str]]:
    """Replace ``all`` in ``config.methods`` by the methods that are not given beside it.

    A method has the settings that its authors publish for this pair of networks, else those of ``--method``.

    Returns:
        The configuration, and a line for each method that is left out, with the reason.
    """
    given = [each for each in config.methods if each != ALL_METHODS]
    named = {_main_method(each) for each in given}
    specs = [spec for name in known() if _main_method(spec := settings_of(name, config)) not in named]
    left_out = dict(_left_out(config, specs, images))
    methods = (*given, *(spec for spec in specs if spec not in left_out))
    lines = [f"methods: all leaves out {spec}: {reason}" for spec, reason in left_out.items()]
    return dataclasses.replace(config, methods=methods), lines


def settings_of(name: str, config: Config) -> str:
    """Return the losses of the method ``name`` for the networks of ``config``."""
    published = registry.find(name).published if name in registry.names() else {}
    specs = published.get(f"{config.teacher} {config.student}", of_method(name))
    return specs if isinstance(specs, str) else specs[0]


def _main_method(spec: str) -> str:
    """Return the method beside KD in ``spec``, or the whole of KD's own specification."""
    names = [term.name for term in parse(spec).methods if term.name != "kd"]
    return names[0] if names else spec


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
