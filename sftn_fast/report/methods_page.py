"""Generator of ``docs/methods.md``: ``python -m sftn_fast.report.methods_page > docs/methods.md``.

The page is read from the methods' classes, so that it can't disagree with them.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from functools import cache

import torch

from sftn_fast import models
from sftn_fast.distillers import registry
from sftn_fast.distillers.method import Method, NetInfo, Setup
from sftn_fast.distillers.options import options_of
from sftn_fast.distillers.refusals import refusals
from sftn_fast.distillers.spec import ALIASES, VARIANTS, Term, of_method
from sftn_fast.report import published_since
from sftn_fast.report.published import IMAGENET_PAIRS, PAIRS
from sftn_fast.report.table import markdown

IMAGE_SIZE, IMAGENET_SIZE = 32, 224  # pixels
SAMPLES = 50  # number of training images; no method is refused for it

INTRODUCTION = """# Methods

This file is generated: `python -m sftn_fast.report.methods_page > docs/methods.md`.

`--method NAME` selects a method with the settings of the SFTN paper, where feature methods are trained jointly with KD.
`--distill` takes any combination with weights and options, such as `--distill at=500:p=1,kd=1,ce=0.5`. `--methods`
takes several combinations and trains a student by each:

```sh
python -m sftn_fast.train --config resnet32x4_resnet8x4 --method crd
python -m sftn_fast.train --config resnet32x4_resnet8x4 --methods kd crd at,kd=1
python -m sftn_fast.train --config resnet32x4_resnet8x4 --methods all
```

`all` is every method of this page that can serve the pair of networks, in its authors' settings for the pair where
they publish any. A method given beside it keeps the settings that it is given with: `--methods all at=60,kd=1`.

The cross-entropy with the labels, `ce`, is part of every combination. Its weight is 1 unless the table says otherwise.
"""

ON_IMAGENET = """## On ImageNet

`--config imagenet_resnet34_resnet18` and `--config imagenet_resnet50_resnet34` are recipes. `--config imagenet` is the
base of recipes for other pairs. `--method` uses the weights above, most of which were chosen for CIFAR-100. The authors
of some methods give others for ImageNet: `--distill oh=1e-4,kd=1`, `--distill dist=2:temperature=1`.

`resnet18` to `resnet101`, `mobilenet_v2`, `shufflenet_v2_x0_5` and similar names are torchvision's networks, for images
of 224 pixels. `ResNet50`, `MobileNetV2` and `ShuffleV2` are RepDistiller's, for 32 pixels. A trained teacher comes from
a file or from torchvision. Its accuracy is measured before a student is trained:

```sh
python -m sftn_fast.train --config imagenet_resnet34_resnet18 --teacher_file torchvision:IMAGENET1K_V1
python -m sftn_fast.train --config imagenet_resnet34_resnet18 --teacher_file resnet34.safetensors --sftn.init teacher
```

Checkpoints of timm's and torchvision's training scripts can be loaded directly. If a checkpoint has averaged weights
(EMA), they are used. No code in a file is ever run.
"""

TOGETHER = """## Collaborative learning

The stage `collaborate` trains several networks at once, from random weights or from the run's teacher. With `dml` each
network learns from each of the others; with `kdcl` all learn from the mean of their logits. KDCL crops and flips the
images differently for each network, DML does not; `--collaborate.own_views` changes that.

```sh
python -m sftn_fast.train --stages collaborate --collaborate.method kdcl --collaborate.networks "[resnet14,resnet8]"
```
"""


def document() -> str:
    """Return the content of ``docs/methods.md``."""
    methods = [["family", "method", "what it compares", "weight", "--method", "options"]]
    methods += [[family, *_line(name)] for family, names in registry.by_family().items() for name in names]
    sources = [f"- `{name}`: {_source(registry.find(name))}" for name in registry.names()]
    refused = [["teacher", "student", "method", "reason"]]
    refused += [
        [teacher, student, f"`{name}`", reason]
        for pairs, size in ((PAIRS, IMAGE_SIZE), (IMAGENET_PAIRS, IMAGENET_SIZE))
        for teacher, student in pairs
        for name, reason in refused_by(teacher, student, size).items()
    ]
    aliases = ", ".join(f"`{alias}` for `{name}`" for alias, name in ALIASES.items())
    variants = ", ".join(f"`{name}` for `{_written(term)}`" for name, term in VARIANTS.items())
    paragraphs = [
        INTRODUCTION.rstrip(),
        markdown(methods),
        f"The names of other code bases work too: {aliases}. Some settings have names of their own: {variants}.",
        "## Sources",
        "\n".join(sources),
        "## Settings for single pairs",
        "What the authors publish for single pairs of networks, for `--distill`:",
        markdown(_published()),
        "## Published accuracies since 2021",
        "Top-1 in percent with standard teachers, for a reader to hold against: the sources differ in epochs and views "
        "of the images, and in whether they print the best epoch or the last. No run is compared with them. A report "
        "names what it compares a run with.",
        "\n".join(published_since.sources()),
        "CIFAR-100:",
        markdown(published_since.cifar100_table()),
        "ImageNet:",
        markdown(published_since.imagenet_table()),
        "## Unsupported pairs",
        "Of the 13 usual pairs on CIFAR-100 and the 2 on ImageNet, these methods refuse the following before anything "
        "is trained. All other combinations work.",
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


def _written(term: Term) -> str:
    """Return ``term`` as ``--distill`` takes it."""
    options = (f"{name}={_as_text(value)}" for name, value in term.options.items())
    return ":".join([f"{term.name}={term.weight:g}", *options])


def _as_text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def _published() -> list[list[str]]:
    """Return a table with a row for each method and pair of networks that have a published specification."""
    rows = [["method", "teacher", "student", "--distill"]]
    for name in registry.names():
        for pair, specs in registry.find(name).published.items():
            for spec in (specs,) if isinstance(specs, str) else specs:
                rows.append([f"`{name}`", *pair.split(), f"`{spec}`"])
    return rows


def _options(method: type[Method]) -> Iterator[str]:
    """Yield each option with its default and, if there are any, its choices."""
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


def refused_by(teacher: str, student: str, image_size: int = IMAGE_SIZE) -> dict[str, str]:
    """Return the methods that refuse this pair on images of ``image_size`` pixels, with their error messages."""
    setup = Setup(_about(student, image_size), _about(teacher, image_size), SAMPLES, image_size)
    return dict(refusals(registry.names(), setup))


@cache
def _about(name: str, image_size: int) -> NetInfo:
    with torch.device("meta"):  # no weights are needed
        return NetInfo.of(models.build(name), image_size)


if __name__ == "__main__":
    print(document(), end="")
