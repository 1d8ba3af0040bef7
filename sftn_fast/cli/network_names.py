"""The names of the networks, for a refusal that costs no import of torch; a test holds them to the registry."""

from __future__ import annotations

SMALL_IMAGES = (
    *("MobileNetV2", "resnet8", "resnet14", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110"),
    *(
        "resnet8x4",
        "resnet32x4",
        "ResNet18",
        "ResNet50",
        "ShuffleV1",
        "ShuffleV2",
        "vgg8",
        "vgg11",
        "vgg13",
        "vgg16",
        "vgg19",
    ),
    *("wrn_16_1", "wrn_16_2", "wrn_40_1", "wrn_40_2"),
)
"""RepDistiller's networks, for images of 32 pixels or so."""

IMAGENET = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnext50_32x4d", "wide_resnet50_2", "mobilenet_v2"),
    *("shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "shufflenet_v2_x1_5", "shufflenet_v2_x2_0"),
)
"""torchvision's networks, for images of 224 pixels or so."""

OTHERS = ("MobileNetV1",)
"""For images of 224 pixels as well, and not torchvision's."""

NETWORKS = SMALL_IMAGES + IMAGENET + OTHERS


def describe(name: str) -> str:
    """Return ``name`` with what tells it from a network whose name looks the same."""
    if name in IMAGENET:
        return f"{name} (torchvision's, for images of 224 pixels)"
    pixels = 32 if name in SMALL_IMAGES else 224 if name in OTHERS else None
    return f"{name} (for images of {pixels} pixels)" if pixels else name


def twin_of(name: str) -> str | None:
    """Return the other network whose name differs from ``name`` only in capitals and underscores, if there is one."""
    same = (other for other in NETWORKS if folded(other) == folded(name) and other != name)
    return next(same, None) if name in NETWORKS else None


def folded(name: str) -> str:
    """Return ``name`` without what people write differently: capitals, underscores, hyphens."""
    return name.lower().replace("_", "").replace("-", "")
