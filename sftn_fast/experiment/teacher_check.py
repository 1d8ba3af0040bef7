"""Checks of a teacher that came from a file, before students learn from it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from sftn_fast import engine, models
from sftn_fast.config import CLASS_ORDERS, ConfigError
from sftn_fast.data import ImageData
from sftn_fast.data.folders import in_order
from sftn_fast.distillers.teacher_mode import teacher_mode
from sftn_fast.engine import distributed
from sftn_fast.engine.divergence import near_chance
from sftn_fast.models import StagedNet
from sftn_fast.models.export import WEIGHTS

RENAMED = 20.0
"""Percentage points that renumbering the classes must gain before it is named as the cause."""
MOST_CLASSES = 2000
"""Largest number of classes for which the confusion matrix is computed."""
MOSTLY = 0.9
"""Share of the images with the same prediction from which it is called the only one."""


def doubts(network: StagedNet, top1: float, data: ImageData, layout: engine.Layout) -> list[str]:
    """Return reasons to doubt ``network``, of accuracy ``top1`` in percent, as a teacher; none if it looks right.

    Looks at its confusion matrix. All ranks have to call this.
    """
    at_chance = near_chance(top1, data.num_classes)
    chance = f"top-1 {top1:.2f} % is near chance, {100 / data.num_classes:.2f} %"
    causes = "classes in another order, images normalised otherwise or of another size, or other images altogether"
    unexplained = [f"{chance}. Students learn nothing from it. Likely causes: {causes}"] if at_chance else []
    if data.num_classes > MOST_CLASSES or (not at_chance and top1 >= 100 - RENAMED):
        return unexplained
    counts = confusion(network, data, layout)
    renamed = 100 * float(counts.amax(1).sum() / counts.sum())
    distinct = len(set(counts.argmax(1).tolist())) > data.num_classes / 2
    if distinct and renamed >= max(top1 + RENAMED, 2 * top1):
        truth, answer = next((t, a) for t, a in enumerate(counts.argmax(1).tolist()) if t != a)
        return [
            f"the classes are in another order than the teacher's: it takes images of {name_of(data, truth)} for class "
            f"{answer}, and would be right for {renamed:.2f} % of all under other numbers. Folders are numbered in the "
            "order of their names as text (1, 10, 2); rename them to the order that the teacher was trained with"
        ]
    answers = counts.sum(0)
    if at_chance and float(answers.max() / answers.sum()) > MOSTLY:
        only = name_of(data, int(answers.argmax()))
        return [f"{chance}: it takes almost all images for {only}. Were its images normalised or scaled otherwise?"]
    return unexplained


@torch.no_grad()
def confusion(network: StagedNet, data: ImageData, layout: engine.Layout) -> Tensor:
    """Return the confusion matrix over the test images of all ranks: [num_classes, num_classes] float64, true first."""
    classes = data.num_classes
    counts = torch.zeros(classes * classes, dtype=torch.float64, device=layout.device)
    with teacher_mode(network), layout.autocast():
        for batch in data.test:
            answers = network(layout.images(batch.images)).argmax(1)
            counts += torch.bincount(layout.indices(batch.target) * classes + answers, minlength=classes * classes)
    return distributed.all_sum(counts).view(classes, classes).cpu()


def check_class_names(key: str, file: str, data: ImageData) -> None:
    """Raise ConfigError if the network in ``file`` knows its classes and they are the data's in another order."""
    theirs, ours = class_names_in(file), class_names(data)
    if theirs == ours or sorted(theirs) != sorted(ours):
        return
    other = next((order for order in CLASS_ORDERS if theirs == in_order(ours, order)), None)
    remedy = (
        f"set data.class_order to {other}" if other and data.name == "folder" else "rename the folders of the images"
    )
    number = next(i for i, (a, b) in enumerate(zip(theirs, ours, strict=True)) if a != b)
    raise ConfigError(
        f"{key}: its classes are in another order than those of {data.name}: class {number} is {theirs[number]!r} "
        f"there and {ours[number]!r} here; {remedy}, or train it again on these"
    )


def class_names_in(file: str) -> list[str]:
    """Return the class names of an exported network; empty if unknown."""
    path = Path(file).expanduser()
    folder = path if path.is_dir() else path.parent
    if path != folder and path.name != WEIGHTS:
        return []
    try:
        names = models.read_config(folder).get("meta", {}).get("class_names")
    except (OSError, ValueError):
        return []  # loading the file reports what is wrong with it
    return [str(name) for name in names] if isinstance(names, list) else []


def class_names(data: ImageData) -> list[str]:
    """Return the data's class names in the order of their numbers; empty if they have none."""
    return [str(name) for name in getattr(data, "class_names", None) or ()]


def name_of(data: ImageData, number: int) -> str:
    """Return number and, if known, name of a class."""
    names = class_names(data)
    return f"class {number}" + (f" ({names[number]})" if number < len(names) else "")
