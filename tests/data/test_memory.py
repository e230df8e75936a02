"""Crops, flips and normalisation of whole batches, compared with torchvision's of one image."""

import pytest
import torch
from torchvision.transforms import functional as F

from synflow_pl.data.memory import MemorySource, crop_and_flip, normalise, offsets_and_flips


def test_a_crop_of_a_padded_image() -> None:
    # 0 0 0 0
    # 0 1 2 0   the window at row 0, column 1 is  0 0   mirrored  0 0
    # 0 3 4 0                                     1 2             2 1
    # 0 0 0 0
    image = torch.tensor([[[[1, 2], [3, 4]]]], dtype=torch.uint8)
    drawn = torch.tensor([[0, 0], [1, 1], [0, 1]])
    found = crop_and_flip(image.expand(2, -1, -1, -1), drawn, padding=1)
    assert found.tolist() == [[[[0, 0], [1, 2]]], [[[0, 0], [2, 1]]]]


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 6, 6), (3, 5, 7)])
@pytest.mark.parametrize("padding", [0, 1, 4])
def test_every_crop_and_flip_equals_torchvisions(shape: tuple[int, int, int], padding: int) -> None:
    places = range(2 * padding + 1)
    drawn = torch.tensor(
        [(row, column, flip) for row in places for column in places for flip in (0, 1)]
    ).T
    images = torch.randint(256, (drawn.shape[1], *shape), dtype=torch.uint8)
    found = crop_and_flip(images, drawn, padding)
    for image, (row, column, flip), cropped in zip(images, drawn.T.tolist(), found, strict=True):
        expected = F.crop(F.pad(image, [padding]), row, column, *shape[1:])
        assert torch.equal(cropped, F.hflip(expected) if flip else expected)


def test_all_bytes_are_normalised_to_the_floats_of_torchvision() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, -1, -1)
    mean, std = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)
    found = normalise(images, *(torch.tensor(values).view(-1, 1, 1) for values in (mean, std)))
    expected = F.normalize(F.to_tensor(images[0].permute(1, 2, 0).numpy()), list(mean), list(std))
    assert torch.equal(found[0], expected)
    assert torch.equal(found[1], expected)


def test_offsets_and_flips_are_in_range() -> None:
    numbers = torch.tensor([0, 2**31 - 1, 8 << 31, 2**62, 2**63 - 1])
    drawn = offsets_and_flips(numbers, 4)
    # 2^31 - 1 = 9 * 238,609,294 + 1.
    assert drawn.tolist() == [[0, 1, 0, 0, 1], [0, 0, 8, 0, 1], [0, 0, 0, 1, 1]]


def test_images_without_a_random_number_are_not_augmented() -> None:
    images = torch.randint(256, (5, 3, 8, 8), dtype=torch.uint8)
    memory = MemorySource(images, torch.arange(5), mean=(0.0,) * 3, std=(1.0,) * 3, padding=4)
    ((found, labels),) = memory.read([(torch.tensor([3, 1]), None)])
    torch.testing.assert_close(found * 255, images[[3, 1]].float())
    assert labels.tolist() == [3, 1]


@pytest.mark.gpu
def test_crops_and_flips_are_equal_on_gpu_and_cpu() -> None:
    images = torch.randint(256, (64, 3, 32, 32), dtype=torch.uint8)
    numbers = torch.randint(2**62, (64,))
    batches = []
    for device in ("cpu", "cuda"):
        memory = MemorySource(
            images, torch.arange(64), mean=(0.5,) * 3, std=(0.2,) * 3, padding=4, device=device
        )
        ((found, labels),) = memory.read([(torch.arange(64), numbers)])
        assert found.device.type == labels.device.type == device
        batches.append(found.cpu())
    torch.testing.assert_close(*batches)
