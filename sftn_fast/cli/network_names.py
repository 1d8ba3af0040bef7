"""Names of the networks, known without importing torch. A test compares them with the registry."""

from __future__ import annotations

from sftn_fast.utils.similar_names import folded

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
"""RepDistiller's networks, for images of about 32 pixels."""

IMAGENET = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnext50_32x4d", "wide_resnet50_2", "mobilenet_v2"),
    *("shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "shufflenet_v2_x1_5", "shufflenet_v2_x2_0"),
)
"""torchvision's networks, for images of about 224 pixels."""

OTHERS = ("MobileNetV1",)
"""Networks for images of about 224 pixels that are not torchvision's."""

NETWORKS = SMALL_IMAGES + IMAGENET + OTHERS


def describe(name: str) -> str:
    """Return ``name`` with the image size that it is for, since some names differ only in their spelling."""
    if name in IMAGENET:
        return f"{name} (torchvision's, for images of 224 pixels)"
    pixels = 32 if name in SMALL_IMAGES else 224 if name in OTHERS else None
    return f"{name} (for images of {pixels} pixels)" if pixels else name


def twin_of(name: str) -> str | None:
    """Return the network whose name differs from ``name`` only in capitals and underscores, or None."""
    same = (other for other in NETWORKS if folded(other) == folded(name) and other != name)
    return next(same, None) if name in NETWORKS else None
