"""Published accuracies of the methods since 2021, for a reader to hold against; no run is compared with them.

They come from papers and READMEs that differ in epochs, views of the images, and in whether they print the best epoch
or the last. Where a source is not the method's own, the sources are named.
"""

from __future__ import annotations

from sftn_fast.report.published import IMAGENET_PAIRS, PAIRS

SOURCES = {
    "own": "paper or README of the method itself",
    "LSKD": "paper or README of logit standardisation (CVPR 2024), for many pairs the best epoch",
    "TTM": "paper of transformed teacher matching (ICLR 2024)",
    "SimKD": "README of SimKD (CVPR 2022)",
    "quoted": "a table of the method's authors, as others quote it; not seen in the original",
}

CIFAR100 = """
kd      LSKD   74.92 73.54 70.66 70.67 73.08 73.33 72.98      -     -     -     -     -     -
lskd    LSKD   76.11 74.37 71.43 71.48 74.17 76.62 74.36  68.61 69.02     -     - 75.56     -
ctkd    LSKD   75.45 73.93 71.19 70.99 73.52 73.39 73.52  68.50 68.67     -     - 75.37     -
dkd     LSKD   76.24 74.81 71.97 71.06 74.11 76.32 74.68      -     -     -     -     -     -
dkd     TTM        -     -     -     -     -     -     -  69.71 70.35     - 76.45 77.07 76.70
mlld    LSKD   76.63 75.35 72.19 71.89 74.11 77.08 75.18  70.57 71.04     -     - 78.44     -
simkd   LSKD   75.53 74.53 71.05 71.06 73.92 78.08 74.89  69.44 69.97     -     - 78.39     -
cat     LSKD   75.60 74.82 71.62 71.37 73.62 76.91 74.65  69.13 71.36     -     - 78.41     -
reviewkd LSKD  76.12 75.09 71.89 71.34 73.89 75.63 74.84      -     -     -     -     -     -
dist    TTM    75.51 74.73 71.75 71.65 73.69 76.31 73.89  68.50 68.66 74.11 76.34 77.35 76.40
ttm     own    76.23 74.32 71.83 71.46 73.97 76.17 74.33  68.98 69.24 74.87 74.18 76.57 75.39
wttm    own    76.37 74.58 71.92 71.67 74.13 76.06 74.44  69.16 69.59 74.82 74.37 76.55 75.42
rld     quoted     - 74.88 72.00 71.67 74.02 76.64 74.93      -     -     -     -     -     -
nkd     quoted 75.43     - 71.18 71.26     - 76.35 74.86      -     -     -     -     -     -
wkd     own        -     -     -     -     - 76.53     -      -     -     -     -     - 76.72
wkd_f   own        -     -     -     -     - 76.77     -      -     -     -     -     - 77.36
srrl    SimKD      -     -     -     -     - 75.39 73.23      -     -     -     -     -     -
"""
"""Top-1 in percent on CIFAR-100, a line for each method and source, in the order of ``PAIRS``."""

IMAGENET = {
    "lskd": (71.42, "LSKD"),
    "ctkd": (71.38, "LSKD"),
    "dkd": (71.70, "LSKD"),
    "mlld": (71.90, "LSKD"),
    "simkd": (71.59, "LSKD"),
    "cat": (71.26, "LSKD"),
    "reviewkd": (71.61, "LSKD"),
    "dist": (72.07, "own"),
    "wttm": (72.19, "own"),
    "rld": (71.91, "quoted"),
    "wkd": (72.49, "own"),
    "wkd_f": (72.50, "own"),
    "srd": (71.87, "own"),
    "nkd": (71.96, "own"),
    "srrl": (71.73, "own"),
}
"""Top-1 in percent on ImageNet of resnet18, taught by resnet34."""


def cifar100_table() -> list[list[str]]:
    """Return a table with a row for each method and source, and a column for each pair."""
    heading = ["method", "source", *(f"{teacher} {student}" for teacher, student in PAIRS)]
    rows = [line.split() for line in CIFAR100.strip().splitlines()]
    return [heading, *([f"`{name}`", *rest] for name, *rest in rows)]


def imagenet_table() -> list[list[str]]:
    """Return a table with a row for each method."""
    teacher, student = IMAGENET_PAIRS[1]
    heading = ["method", "source", f"{teacher} {student}"]
    return [heading, *([f"`{name}`", source, f"{top1:.2f}"] for name, (top1, source) in IMAGENET.items())]


def sources() -> list[str]:
    """Return a line for each source."""
    return [f"- {name}: {about}." for name, about in SOURCES.items()]
