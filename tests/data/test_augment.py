from __future__ import annotations

import pytest
import torch

from sftn_fast.data.augment import crop_flip, normalize

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]


def by_torchvision(image, top, left, flipped, padding, mean, std):
    """Augment one image with RandomCrop, RandomHorizontalFlip, ToTensor and Normalize, with given random draws."""
    transforms = pytest.importorskip("torchvision.transforms.functional")
    height, width = image.shape[1:]
    picture = transforms.pad(transforms.to_pil_image(image), padding)
    picture = transforms.crop(picture, top, left, height, width)
    picture = transforms.hflip(picture) if flipped else picture
    return transforms.normalize(transforms.to_tensor(picture), mean, std)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("channels", "size", "padding"), [(3, 32, 4), (1, 28, 2), (1, 8, 1), (3, 9, 0), (3, 7, 7), (1, 1, 1)]
)
def test_equals_torchvision(channels, size, padding, device):
    count = 24
    draws = torch.Generator().manual_seed(size)
    images = torch.randint(256, (count, channels, size, size), generator=draws, dtype=torch.uint8)
    top, left = torch.randint(2 * padding + 1, (2, count), generator=draws)
    top[:4] = torch.tensor([0, 0, 2 * padding, 2 * padding])  # the corners, too
    left[:4] = torch.tensor([0, 2 * padding, 0, 2 * padding])
    flipped = torch.arange(count) % 2 == 1
    mean, std = [0.5071, 0.4867, 0.4408][:channels], [0.2675, 0.2565, 0.2761][:channels]

    arguments = (tensor.to(device) for tensor in (images, top, left, flipped))
    constants = (torch.tensor(values, device=device).view(-1, 1, 1) for values in (mean, std))
    ours = normalize(crop_flip(*arguments, padding), *constants)

    draws_of_each = zip(images, top.tolist(), left.tolist(), flipped.tolist(), strict=True)
    theirs = torch.stack([by_torchvision(*draw, padding, mean, std) for draw in draws_of_each])
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.cpu(), theirs, rtol=0, atol=0 if device == "cpu" else 1e-6)


def test_the_input_stays_as_it_was():
    images = torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8)
    copy = images.clone()
    zeros = torch.zeros(2, dtype=torch.int64)
    normalize(crop_flip(images, zeros, zeros, zeros.bool(), 1), torch.zeros(3, 1, 1), torch.ones(3, 1, 1))
    assert torch.equal(images, copy)
