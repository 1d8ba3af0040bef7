"""The page of all methods: ``python -m sftn_fast.report.methods_page > docs/methods.md``.

What it says is read from the methods themselves, so that the document can't say anything else.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator
from functools import cache

import torch

from sftn_fast import models
from sftn_fast.distillers import registry
from sftn_fast.distillers.method import Method, NetInfo, Setup
from sftn_fast.distillers.options import options_of
from sftn_fast.distillers.spec import ALIASES, of_method
from sftn_fast.models import StagedNet
from sftn_fast.report.published import IMAGENET_PAIRS, PAIRS
from sftn_fast.report.table import markdown

IMAGE_SIZE, IMAGENET_SIZE = 32, 224  # pixels
SAMPLES = 50  # how many images there are decides about no method

INTRODUCTION = """# Methods

`python -m sftn_fast.report.methods_page > docs/methods.md` writes this file from the methods themselves.

`--method NAME` trains a method as the SFTN paper does, those on features jointly with KD; `--distill` takes any
combination with weights and options, as in `--distill at=500:p=1,kd=1,ce=0.5`; `--methods` several of those, one stage
each:

```sh
python -m sftn_fast.train --config resnet32x4_resnet8x4 --method crd
python -m sftn_fast.train --config resnet32x4_resnet8x4 --methods '["kd", "crd", "at,kd=1"]'
```

The cross-entropy with the labels, `ce`, is beside all of them; it weighs 1 where the table says nothing else.
"""

ON_IMAGENET = """## On ImageNet

`--config imagenet_resnet34_resnet18` and `--config imagenet_resnet50_resnet34` are recipes, `--config imagenet` is the
base of recipes for other pairs. `--method` takes the weights above, most of which are CIFAR-100's; for ImageNet the
authors of some name others: `--distill oh=1e-4,kd=1`, `--distill dist=2:temperature=1`.

`resnet18` to `resnet101`, `mobilenet_v2`, `shufflenet_v2_x0_5` and the like are torchvision's networks under the names
that they have there, made for 224 pixels; `ResNet50`, `MobileNetV2` and `ShuffleV2` are RepDistiller's for 32. A
trained teacher is a file, or what torchvision publishes; its accuracy is measured before a student is trained:

```sh
python -m sftn_fast.train --config imagenet_resnet34_resnet18 --teacher_file torchvision:IMAGENET1K_V1
python -m sftn_fast.train --config imagenet_resnet34_resnet18 --teacher_file resnet34.safetensors --sftn.init teacher
```

Checkpoints of timm's and torchvision's training scripts load as they are. Of averaged weights (EMA) and plain ones the
averaged are taken. Nothing in a file is ever run.
"""

TOGETHER = """## Networks that learn together

The stage `collaborate` trains several networks at once, from nothing or from this run's teacher: by `dml` each follows
each of the others, by `kdcl` all follow the mean of their logits. KDCL's networks crop and flip the images each for
itself, DML's see the same; `--collaborate.own_views` decides otherwise.

```sh
python -m sftn_fast.train --stages "[collaborate]" --collaborate.method kdcl --collaborate.networks "[resnet14,resnet8]"
```
"""


def document() -> str:
    """The whole of ``docs/methods.md``."""
    methods = [["method", "what it compares", "weight", "--method", "options"]]
    methods += [_line(name) for name in registry.names()]
    sources = [f"- `{name}`: {_source(registry.find(name))}" for name in registry.names()]
    refused = [["teacher", "student", "methods refused", "why"]]
    refused += [
        [teacher, student, f"`{name}`", reason]
        for pairs, size in ((PAIRS, IMAGE_SIZE), (IMAGENET_PAIRS, IMAGENET_SIZE))
        for teacher, student in pairs
        for name, reason in refusals(teacher, student, size).items()
    ]
    aliases = ", ".join(f"`{alias}` for `{name}`" for alias, name in ALIASES.items())
    paragraphs = [
        INTRODUCTION.rstrip(),
        markdown(methods),
        f"Names that other code bases use are understood too: {aliases}.",
        "## Sources",
        "\n".join(sources),
        "## Pairs that a method refuses",
        "Of the 13 pairs of the literature on CIFAR-100 and the 2 on ImageNet, before anything is trained. All other "
        "combinations build.",
        markdown(refused),
        ON_IMAGENET.rstrip(),
        TOGETHER.rstrip(),
    ]
    return "\n\n".join(paragraphs) + "\n"


def _line(name: str) -> list[str]:
    method = registry.find(name)
    about = (inspect.getmodule(method).__doc__ or "").splitlines()[0]  # type: ignore[union-attr]
    weight = f"{method.default_weight:g}"
    if method.weights_alone:
        alone, ce = method.weights_alone
        weight = f"{alone:g}, ce {ce:g} alone; else {weight}"
    options = "; ".join(f"`{option}`" for option in _options(method))
    return [f"`{name}`", about, weight, f"`{of_method(name)}`", options or "-"]


def _options(method: type[Method]) -> Iterator[str]:
    """Each option with its default, and the choices where it has such."""
    for option in options_of(method).values():
        default = inspect.signature(method).parameters[option.name].default
        default = method.defaults_in_words.get(option.name, default)
        choices = f" ({option.allowed})" if option.allowed.startswith("one of") else ""
        yield f"{option.name}={str(default).lower() if isinstance(default, bool) else default}{choices}"


def _source(method: type[Method]) -> str:
    """Return the paper, from the module's docstring, and the origin of the defaults, from the class's."""
    paper = _paragraphs(inspect.getmodule(method))[1]
    defaults = next(each for each in _paragraphs(method) if each.startswith("Defaults:"))
    text = re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"`\1`", f"{paper} {defaults}")
    return text.replace("``", "`")


def _paragraphs(documented: object) -> list[str]:
    """Return the paragraphs of a docstring, one line each."""
    return [" ".join(each.split()) for each in (inspect.getdoc(documented) or "").split("\n\n")]


def refusals(teacher: str, student: str, image_size: int = IMAGE_SIZE) -> dict[str, str]:
    """The methods that can't serve this pair on images of that size, with what they say."""
    # On the meta device, because some adapters are larger than the networks and nothing here looks at weights.
    with torch.device("meta"):
        setup = Setup(_about(student, image_size), _about(teacher, image_size), SAMPLES, image_size)
        return dict(_refused(registry.names(), setup))


def _refused(names: Iterable[str], setup: Setup) -> Iterator[tuple[str, str]]:
    for name in names:
        try:
            registry.find(name)(setup)
        except ValueError as error:
            yield name, str(error)


@cache
def _about(name: str, image_size: int) -> NetInfo:
    network: StagedNet = models.build(name)
    return NetInfo.of(network, image_size)


if __name__ == "__main__":
    print(document(), end="")
