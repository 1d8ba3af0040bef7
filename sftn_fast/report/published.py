"""Published accuracies for the usual pairs of networks, and the rules by which a run may be compared with them.

CIFAR-100: top-1 in percent after 240 epochs, with *standard* teachers, from the READMEs of two repositories:

- HobbitLong/RepDistiller: last epoch, each method without KD; also teachers and students alone.
- xuguodong03/SSKD: best epoch. Its README does not say whether feature methods were trained jointly with KD. Their
  accuracies are one to three points above RepDistiller's, so we assume that they were.

ImageNet: torchvision's accuracies for its published networks (first version of the weights, 90 epochs), and those of
the README of yoshitomo-matsubara/torchdistill (100 epochs, best epoch, teacher torchvision's ResNet-34) for methods
whose configuration files have equivalent settings here.

None of these numbers is from the SFTN paper, whose tables were not available. For a student of an SFTN teacher there is
therefore no published accuracy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sftn_fast.config import ConfigError
from sftn_fast.distillers import registry
from sftn_fast.distillers.spec import parse
from sftn_fast.report.results import BEST, TOP1, Column

EPOCHS = {"cifar100": 240, "imagenet": 100}
IMAGE_SIZE = {"cifar100": 32, "imagenet": 224}  # pixels
SOURCES = {
    "cifar100": "RepDistiller's README (last epoch, method alone) and SSKD's README (best epoch, probably jointly "
    "with KD)",
    "imagenet": "torchvision (90 epochs) and torchdistill's README (best of 100 epochs)",
}

PAIRS = (
    ("wrn_40_2", "wrn_16_2"),
    ("wrn_40_2", "wrn_40_1"),
    ("resnet56", "resnet20"),
    ("resnet110", "resnet20"),
    ("resnet110", "resnet32"),
    ("resnet32x4", "resnet8x4"),
    ("vgg13", "vgg8"),
    ("vgg13", "MobileNetV2"),
    ("ResNet50", "MobileNetV2"),
    ("ResNet50", "vgg8"),
    ("resnet32x4", "ShuffleV1"),
    ("resnet32x4", "ShuffleV2"),
    ("wrn_40_2", "ShuffleV1"),
)
"""Teacher and student: seven pairs of one family, six of two. They are the columns of the tables below."""

IMAGENET_PAIRS = (("resnet50", "resnet34"), ("resnet34", "resnet18"))
"""Teacher and student on ImageNet, by torchvision's names."""

TEACHERS = {
    "wrn_40_2": 75.61,
    "resnet56": 72.34,
    "resnet110": 74.31,
    "resnet32x4": 79.42,
    "vgg13": 74.64,
    "ResNet50": 79.34,
}
STUDENTS = {
    "wrn_16_2": 73.26,
    "wrn_40_1": 71.98,
    "resnet20": 69.06,
    "resnet32": 71.14,
    "resnet8x4": 72.50,
    "vgg8": 70.36,
    "MobileNetV2": 64.60,
    "ShuffleV1": 70.50,
    "ShuffleV2": 71.82,
}

TORCHVISION = {"resnet18": 69.76, "resnet34": 73.31, "resnet50": 76.13}
"""Teachers and students alone on ImageNet, with the weights IMAGENET1K_V1."""

REPDISTILLER = """
kd      74.92 73.54 70.66 70.67 73.08 73.33 72.98  67.37 67.35 73.81 74.07 74.45 74.83
fitnet  73.58 72.24 69.21 68.99 71.06 73.50 71.02  64.14 63.16 70.69 73.59 73.54 73.73
at      74.08 72.77 70.55 70.22 72.31 73.44 71.43  59.40 58.58 71.84 71.73 72.73 73.32
sp      73.83 72.43 69.67 70.04 72.69 72.94 72.68  66.30 68.08 73.34 73.48 74.56 74.52
cc      73.56 72.21 69.63 69.48 71.48 72.97 70.71  64.86 65.43 70.25 71.14 71.29 71.38
vid     74.11 73.30 70.38 70.16 72.61 73.09 71.23  65.56 67.57 70.30 73.38 73.40 73.61
rkd     73.35 72.22 69.61 69.25 71.82 71.90 71.48  64.52 64.43 71.50 72.28 73.21 72.21
pkt     74.54 73.45 70.34 70.25 72.61 73.64 72.88  67.13 66.52 73.01 74.10 74.69 73.89
ab      72.50 72.38 69.47 69.53 70.98 73.17 70.94  66.06 67.20 70.65 73.55 74.31 73.34
ft      73.25 71.59 69.84 70.22 72.37 72.86 70.58  61.78 60.99 70.29 71.75 72.50 72.03
fsp     72.91     - 69.95 70.11 71.89 72.62 70.23      -     -     -     -     -     -
nst     73.68 72.24 69.60 69.53 71.96 73.30 71.53  58.16 64.96 71.28 74.12 74.68 74.89
crd     75.48 74.14 71.16 71.46 73.48 75.51 73.94  69.73 69.11 74.30 75.11 75.65 76.05
"""
SSKD = """
fitnet  75.75 74.12 71.60     -     - 74.31 73.54  68.58 68.54 73.84 74.82 75.11 75.55
at      75.28 74.45 71.78     -     - 74.26 73.62  69.34 69.28 73.45 74.76 75.30 75.61
sp      75.34 73.15 71.48     -     - 74.74 73.44  66.89 68.99 73.86 73.80 75.15 75.56
vid     74.79 74.20 71.71     -     - 74.82 73.96  66.91 68.88 73.75 74.28 75.78 75.36
rkd     75.40 73.87 71.48     -     - 74.47 73.72  68.50 68.46 73.73 74.20 75.74 75.45
pkt     76.01 74.40 71.44     -     - 74.17 73.37  67.89 68.44 73.53 74.06 75.18 75.51
ab      68.89 75.06 71.49     -     - 74.45 74.27  68.86 69.32 74.20 76.24 75.66 76.58
ft      75.15 74.37 71.52     -     - 75.02 73.42  69.19 69.01 73.58 74.31 74.95 75.18
crd     76.04 75.52 71.68     -     - 75.90 74.06  68.49 70.32 74.42 75.46 75.72 75.96
sskd    76.04 76.13 71.49     -     - 76.20 75.33  71.53 72.57 75.76 78.44 78.61 77.40
"""
"""A line for each method, in the order of ``PAIRS``, with a dash if the README has no number."""

TORCHDISTILL = {"kd=0.5:temperature=1,ce=0.5": 71.37, "crd": 70.93}
"""resnet34 to resnet18, by the losses in its configuration files. Its attention transfer (on two stages), factor
transfer and SSKD are left out, because no settings here are equivalent to theirs."""


@dataclass(frozen=True)
class Published:
    """An accuracy to compare with."""

    top1: float
    source: str
    column: Column
    """The quantity of a run that it corresponds to: accuracy after the last or the best epoch."""


def note(settings: Mapping[str, Any]) -> str:
    """Return a sentence on the source of the published accuracies for this configuration."""
    whose = SOURCES[settings["data"]["name"]]
    caveat = "They are not the SFTN paper's, which were not available."
    return f"Published accuracies, for standard teachers: {whose}. {caveat}"


def of_network(kind: str, settings: Mapping[str, Any]) -> Published | None:
    """Return the published accuracy of the standard teacher or the student alone; None for other kinds of jobs."""
    data = _data_set(settings)
    if data is None or kind not in ("teacher", "student"):
        return None
    if data == "imagenet":
        foreign = kind == "teacher" and settings.get("teacher_file") not in (None, "torchvision:IMAGENET1K_V1")
        return None if foreign else Published(TORCHVISION[settings[kind]], "torchvision", TOP1)
    table = TEACHERS if kind == "teacher" else STUDENTS
    return Published(table[settings[kind]], "RepDistiller", TOP1)


def of_method(method: str, settings: Mapping[str, Any]) -> Published | None:
    """Return the published accuracy of the standard teacher's student by ``method``, such as ``crd`` or ``at,kd=1``."""
    data = _data_set(settings)
    if data is None:
        return None
    return _on_imagenet(method, settings) if data == "imagenet" else _on_cifar100(method, settings)


def _data_set(settings: Mapping[str, Any]) -> str | None:
    """Return the data set if the configuration has a published pair, image size, training set and number of epochs."""
    data = settings.get("data", {})
    name = data.get("name")
    pairs = {"cifar100": PAIRS, "imagenet": IMAGENET_PAIRS}.get(name, ())
    resized = data.get("image_size") not in (None, IMAGE_SIZE.get(name))
    whole = not resized and not (data.get("train_size") or data.get("student_size")) and not data.get("val_size")
    epochs = {settings.get("epochs"), *(settings.get("stage_epochs") or {}).values()}
    known = (settings.get("teacher"), settings.get("student")) in pairs and whole and epochs == {EPOCHS.get(name)}
    return name if known else None


def _on_imagenet(method: str, settings: Mapping[str, Any]) -> Published | None:
    if (settings["teacher"], settings["student"]) != ("resnet34", "resnet18"):
        return None
    try:
        spec = parse(method)
    except ConfigError:  # from a version with other methods
        return None
    number = next((top1 for known, top1 in TORCHDISTILL.items() if parse(known) == spec), None)
    return None if number is None else Published(number, "torchdistill", BEST)


def _on_cifar100(method: str, settings: Mapping[str, Any]) -> Published | None:
    found = _setting(method)
    if found is None:
        return None
    name, with_kd = found
    source, table, column = ("SSKD", SSKD, BEST) if with_kd else ("RepDistiller", REPDISTILLER, TOP1)
    numbers = {line.split()[0]: line.split()[1:] for line in table.strip().splitlines()}
    number = numbers.get(name, ["-"] * len(PAIRS))[PAIRS.index((settings["teacher"], settings["student"]))]
    return None if number == "-" else Published(float(number), source, column)


def _setting(method: str) -> tuple[str, bool] | None:
    """Return the method and whether SSKD's README has it, not RepDistiller's; None for settings of neither."""
    try:
        spec = parse(method)
    except ConfigError:  # from a version with other methods
        return None
    weights = {term.name: term.weight for term in spec.methods}
    if any(term.options for term in spec.methods):
        return None
    kd = weights.pop("kd", None) if len(weights) > 1 else 0.0
    ((name, weight), *others) = weights.items()
    if others or kd not in (0.0, 1.0) or (name == "sskd" and kd):
        return None
    usual = registry.find(name)
    default, ce = usual.weights_alone if usual.weights_alone and not kd else (usual.default_weight, 1.0)
    if weight not in (None, default) or spec.ce_weight not in (None, ce):
        return None
    return name, bool(kd) or name == "sskd"
